"""Loading a task by the name that the user gave: ``fashion``, ``module:name`` or ``file.py:name``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from edgeopt.errors import TaskError, did_you_mean
from edgeopt.task.checked import CheckedTask
from edgeopt.tasks.given.onnx_trainable import TRAINING_SUFFIX
from edgeopt.tasks.given.onnx_training import OnnxTrainingTask

_READY_TASKS = {
    "camvid_detection": "edgeopt.tasks.ready.camvid_detection:CamVidDetection",
    "camvid_segmentation": "edgeopt.tasks.ready.camvid_segmentation:CamVidSegmentation",
    "docstring_topics": "edgeopt.tasks.ready.docstring_topics:DocstringTopics",
    "fashion": "edgeopt.tasks.ready.fashion:task",
    "fashion_vit": "edgeopt.tasks.ready.fashion:FashionVisionTransformer",
    "spoken_digits": "edgeopt.tasks.ready.spoken_digits:SpokenDigits",
    "spoken_digits_by_speaker": "edgeopt.tasks.ready.spoken_digits:SpokenDigitsBySpeaker",
    "spoken_digits_convolution": "edgeopt.tasks.ready.spoken_digits:SpokenDigitsByConvolution",
    "spoken_digits_recurrent": "edgeopt.tasks.ready.spoken_digits:SpokenDigitsRecurrent",
    "spoken_digits_streaming": "edgeopt.tasks.ready.spoken_digits_streaming:SpokenDigitsStreaming",
}


def check_task_file(path: Path) -> None:
    """Check that the file of a task is there.

    Raises:
        TaskError: it isn't.
    """
    if not path.is_file():
        others = [entry.name for entry in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise TaskError(f"task file {path} does not exist{did_you_mean(path.name, others)}.")


def import_file(path: Path) -> ModuleType:
    """Import a Python file by its path, with its folder on ``sys.path`` as for a script."""
    check_task_file(path)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def import_module(name: str, spec: str) -> ModuleType:
    """Import a module by name, also from the current folder."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise TaskError(
            f"task '{spec}': there is no module '{error.name}'. Give module:name, file.py:name, model.onnx, or a ready "
            f"task: {', '.join(sorted(_READY_TASKS))}{did_you_mean(spec, _READY_TASKS)}."
        ) from error


def load_task(spec: str) -> CheckedTask:
    """Load a task by ``fashion``, ``module:name`` or ``file.py:name``.

    ``name`` is a task, or a function or class that returns one when called without arguments.

    Raises:
        TaskError: the file, the module or the name does not exist, or a method of the task is missing.
    """
    if spec.endswith(TRAINING_SUFFIX):
        return CheckedTask(OnnxTrainingTask(Path(spec)), spec)
    source, _, attribute = _READY_TASKS.get(spec, spec).rpartition(":")
    if not source:
        raise TaskError(
            f"there is no ready task '{spec}'{did_you_mean(spec, _READY_TASKS)}. "
            f"Ready: {', '.join(sorted(_READY_TASKS))}. Your own: module:name or file.py:name."
        )
    module = import_file(Path(source)) if source.endswith(".py") else import_module(source, spec)
    if not hasattr(module, attribute):
        others = [name for name in vars(module) if not name.startswith("_")]
        raise TaskError(f"task '{spec}': {source} has no '{attribute}'{did_you_mean(attribute, others)}.")
    task = getattr(module, attribute)
    if isinstance(task, type) or (callable(task) and not hasattr(task, "build_model")):
        task = task()
    return CheckedTask(task, spec)
