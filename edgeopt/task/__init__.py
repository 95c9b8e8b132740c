"""The boundary to the user's code: the members of a task, how it is loaded, and how each part is checked.

In: ``fashion``, ``module:name`` or ``file.py:name``. Out: a ``CheckedTask``, which checks every value before the rest
of edgeopt sees it. PyTorch is imported when a name here is first used: a given ``.onnx`` needs only ``batch_axes`` and
``dynamic_axes``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeopt.task.checked import CheckedTask
    from edgeopt.task.interface import Batch, BatchStep
    from edgeopt.task.load import load_task
    from edgeopt.task.protocol import Task, Training

__all__ = ["Batch", "BatchStep", "CheckedTask", "Task", "Training", "load_task"]

_MODULES = {
    "Batch": "interface",
    "CheckedTask": "checked",
    "BatchStep": "interface",
    "Task": "protocol",
    "Training": "protocol",
    "load_task": "load",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'edgeopt.task' has no attribute '{name}'")
    return getattr(importlib.import_module(f"edgeopt.task.{_MODULES[name]}"), name)
