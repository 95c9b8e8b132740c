"""edgeopt: the smallest ONNX file of a trained PyTorch model that keeps a target's limits.

The names in ``__all__`` are what a task file is written against. Everything else is private by convention and may
change. ``import edgeopt`` stays light: torch is imported when a name that needs it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeopt.errors import EdgeoptError, TaskError
    from edgeopt.records.budget import Budget
    from edgeopt.records.preprocessing import ImagePreprocessing, SoundPreprocessing
    from edgeopt.records.recipe import Importance
    from edgeopt.task import Batch, CheckedTask, Task, Training, load_task
    from edgeopt.tasks.classification import classification, regression
    from edgeopt.tasks.detection import detection
    from edgeopt.tasks.image_folder import image_folder
    from edgeopt.tasks.segmentation import segmentation
    from edgeopt.tasks.unlabelled import unlabelled

__version__ = "0.1.0"
__all__ = [
    "Batch",
    "Budget",
    "CheckedTask",
    "EdgeoptError",
    "ImagePreprocessing",
    "Importance",
    "SoundPreprocessing",
    "Task",
    "TaskError",
    "Training",
    "__version__",
    "classification",
    "detection",
    "image_folder",
    "load_task",
    "regression",
    "segmentation",
    "unlabelled",
]

_MODULES = {
    "Batch": "edgeopt.task",
    "Budget": "edgeopt.records.budget",
    "CheckedTask": "edgeopt.task",
    "EdgeoptError": "edgeopt.errors",
    "ImagePreprocessing": "edgeopt.records.preprocessing",
    "Importance": "edgeopt.records.recipe",
    "SoundPreprocessing": "edgeopt.records.preprocessing",
    "Task": "edgeopt.task",
    "TaskError": "edgeopt.errors",
    "Training": "edgeopt.task",
    "classification": "edgeopt.tasks.classification",
    "detection": "edgeopt.tasks.detection",
    "image_folder": "edgeopt.tasks.image_folder",
    "load_task": "edgeopt.task",
    "regression": "edgeopt.tasks.classification",
    "segmentation": "edgeopt.tasks.segmentation",
    "unlabelled": "edgeopt.tasks.unlabelled",
}
"""Public name to the module that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'edgeopt' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
