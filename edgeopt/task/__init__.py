"""The boundary to the user's code: the members of a task, how it is loaded, and how each part is checked.

In: ``fashion``, ``module:name`` or ``file.py:name``. Out: a ``CheckedTask``, which checks every value before the rest
of edgeopt sees it.
"""

from edgeopt.task.checked import CheckedTask
from edgeopt.task.interface import Batch
from edgeopt.task.load import load_task
from edgeopt.task.protocol import Task, Training

__all__ = ["Batch", "CheckedTask", "Task", "Training", "load_task"]
