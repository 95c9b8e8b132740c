"""edgeopt: the smallest ONNX file of a trained PyTorch model that keeps a target's limits.

``edgeopt.classification`` and ``edgeopt.Training`` are what a user's task file needs; torch is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeopt.task import Training as Training
    from edgeopt.tasks.classification import classification as classification

__version__ = "0.1.0"
__all__ = ["Importance", "Training", "__version__", "classification"]


def __getattr__(name: str) -> Any:
    if name == "classification":
        from edgeopt.tasks.classification import classification

        return classification
    if name == "Importance":
        from edgeopt.task import Importance

        return Importance
    if name == "Training":
        from edgeopt.task import Training

        return Training
    raise AttributeError(f"module 'edgeopt' has no attribute '{name}'")
