"""The boundary to the user's code: the members of a task, how it is loaded, and how each part is checked.

In: ``fashion``, ``module:name`` or ``file.py:name``. Out: a ``CheckedTask``, which checks every value before the rest
of edgeopt sees it. Exceptions from the user's own code pass through; ``pipeline`` turns them into messages.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeopt.errors import TaskError, did_you_mean
from edgeopt.records.base import Record
from edgeopt.records.budget import Budget
from edgeopt.records.recipe import Importance, Optimizer

_Arrays: TypeAlias = tuple[NDArray[Any], ...]
Batch: TypeAlias = tuple[tuple[Tensor, ...], Any]
"""Inputs and targets of one batch."""

_READY_TASKS = {"fashion": "edgeopt.tasks.fashion:task"}
_REQUIRED_METHODS = ("build_model", "example_inputs", "train_batches", "eval_batches", "loss", "score")


class Training(Record, frozen=True, kw_only=True):
    """How the candidates of a task are trained, and how their channels are scored for pruning."""

    epochs: int = 10
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.05
    weight_decay: float = 5e-4
    temperature: float = 4.0
    kl_weight: float = 0.9
    mse_weight: float = 0.0
    hard_weight: float = 0.1
    importance: Importance = Importance()
    """How channels are scored before some are removed."""
    group_lasso: float = 0.0
    """If above 0, a quarter of the epochs comes before pruning and shrinks channels with a penalty of this strength."""


class Task(Protocol):
    """A user's task: these methods, and optional members that ``CheckedTask`` lists."""

    name: str

    def build_model(self) -> nn.Module:
        """Return the trained model."""

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return one batch of inputs; it also becomes the golden inputs of the bundle."""

    def train_batches(self, seed: int) -> Iterable[tuple[Any, Any]]:
        """Return one epoch of ``(inputs, targets)``."""

    def eval_batches(self) -> Iterable[tuple[Any, Any]]:
        """Return the selection set, which decides: batches of ``(inputs, targets)``."""

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return the training loss, a scalar."""

    def score(self, pairs: Iterable[tuple[Any, Any]]) -> float:
        """Return the score of ``(outputs, targets)`` pairs of arrays over the whole set; higher is better."""


def as_tuple(inputs: Any) -> tuple[Tensor, ...]:
    """Return model inputs as a tuple: a single tensor becomes a tuple of one."""
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


def as_outputs(arrays: Sequence[NDArray[Any]]) -> Any:
    """Return arrays as ``score`` expects them: a single array as it is, several as a tuple."""
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def flat_outputs(outputs: Any) -> tuple[Tensor, ...]:
    """Return a model's outputs as a flat tuple of tensors, in the exporter's order."""
    return tuple(torch.utils._pytree.tree_leaves(outputs))


def to_numpy(value: Any) -> Any:
    """Return tensors as arrays, through tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, Mapping):
        return {key: to_numpy(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(to_numpy(item) for item in value)
    return np.asarray(value)


class RandomStates:
    """The states of torch's, numpy's and Python's global generators after seeding with ``seed``."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator()
        generator.manual_seed(seed)
        self.torch = generator.get_state()
        self.numpy = np.random.RandomState(seed % 2**32).get_state()
        self.python = random.Random(seed).getstate()  # noqa: S311 - data augmentation, not secrets


@contextmanager
def use_random_states(states: RandomStates) -> Iterator[None]:
    """Run a block with the global generators in ``states``, then save their new states there and restore the old."""
    before = (torch.get_rng_state(), np.random.get_state(), random.getstate())
    torch.set_rng_state(states.torch)
    np.random.set_state(states.numpy)
    random.setstate(states.python)
    try:
        yield
    finally:
        states.torch, states.numpy, states.python = torch.get_rng_state(), np.random.get_state(), random.getstate()
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


class CheckedTask:
    """A user's task with its optional members filled in and every returned value checked.

    Optional members of the user's task: ``test_batches()``, ``sample_scores(pairs)`` (one score per sample, for paired
    intervals), ``students`` (name to a function that builds a smaller network), ``training`` (``Training``),
    ``calibration_batches()``, ``distill_loss(outputs, teacher_outputs, targets)``, ``input_names``, ``output_names``,
    ``labels``, ``preprocessing``, ``postprocessing``, ``budgets`` (target name to ``Budget``), ``teacher`` (path of an
    ``.onnx`` file that teaches instead of the trained model, which is still what is compressed and compared with).
    """

    kind = "torch"

    def __init__(self, task: Any, spec: str) -> None:
        missing = [name for name in _REQUIRED_METHODS if not callable(getattr(task, name, None))]
        if missing:
            others = [name for name in dir(task) if name[0] != "_" and name not in _REQUIRED_METHODS]
            raise TaskError(
                f"task '{spec}' ({type(task).__name__}) has no method "
                f"{', '.join(f'{name}()' for name in missing)}{did_you_mean(missing[0], others)}. A task needs "
                f"{', '.join(f'{name}()' for name in _REQUIRED_METHODS)}; `edgeopt init` writes an example."
            )
        self.task = task
        self.spec = spec
        self.name: str = str(getattr(task, "name", "") or spec)
        self.training: Training = getattr(task, "training", None) or Training()
        self.labels: tuple[str, ...] = tuple(getattr(task, "labels", ()))
        self.preprocessing: str = getattr(task, "preprocessing", "")
        self.postprocessing: str = getattr(task, "postprocessing", "")
        self.students: Mapping[str, Any] = getattr(task, "students", None) or {}
        self.budgets: Mapping[str, Budget] = getattr(task, "budgets", None) or {}
        self.teacher = self._check_teacher(getattr(task, "teacher", None))

    def _check_teacher(self, given: Any) -> Path | None:
        if given is None:
            return None
        if not isinstance(given, str | Path) or Path(given).suffix != ".onnx":
            raise TaskError(
                f"{self.spec}: teacher has to be the path of an .onnx file, not {given!r:.80}. Export a PyTorch "
                "network with torch.onnx.export; without `teacher` the trained model teaches."
            )
        return Path(given)

    @cached_property
    def model(self) -> nn.Module:
        """The trained model, in evaluation mode, run once on the example inputs."""
        model = self.task.build_model()
        if not isinstance(model, nn.Module):
            raise TaskError(f"{self.spec}: build_model() returned {type(model).__name__}, not a torch.nn.Module.")
        model = model.eval().cpu()
        self.check_runs(model, "the model")
        return model

    def check_runs(self, model: nn.Module, title: str) -> tuple[Tensor, ...]:
        """Run ``model`` on the example inputs and return its outputs; ``title`` names it in errors.

        Raises:
            TaskError: it does not run, or an output is not finite.
        """
        inputs = self.example_inputs
        try:
            with torch.no_grad():
                outputs = flat_outputs(model(*inputs))
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
            raise TaskError(
                f"{self.spec}: {title} does not run on example_inputs() of shape {shapes}: {error}. "
                "Make example_inputs() return one batch that the model accepts."
            ) from error
        for index, output in enumerate(outputs):
            if isinstance(output, Tensor) and output.is_floating_point() and not bool(torch.isfinite(output).all()):
                raise TaskError(
                    f"{self.spec}: output {index} of {title} is not finite on example_inputs() (NaN or infinity). "
                    "Check the weights that build_model() loads."
                )
        return outputs

    @cached_property
    def example_inputs(self) -> tuple[Tensor, ...]:
        """One batch of inputs."""
        inputs = self.task.example_inputs()
        inputs = (inputs,) if isinstance(inputs, Tensor) else inputs
        if not isinstance(inputs, tuple | list) or not inputs or not all(isinstance(v, Tensor) for v in inputs):
            raise TaskError(f"{self.spec}: example_inputs() has to return a tuple of tensors, not {inputs!r:.80}.")
        return tuple(inputs)

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        """Names of the graph's inputs."""
        count = len(self.example_inputs)
        default = ("input",) if count == 1 else tuple(f"input_{index}" for index in range(count))
        return self._names("input_names", default)

    @cached_property
    def output_names(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        count = len(self.check_runs(self.model, "the model"))
        default = ("output",) if count == 1 else tuple(f"output_{index}" for index in range(count))
        return self._names("output_names", default)

    def _names(self, member: str, default: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(getattr(self.task, member, None) or default)
        if len(names) != len(default):
            raise TaskError(f"{self.spec}: {member} has {len(names)} names for {len(default)} tensors.")
        return names

    def train_epoch(self, seed: int) -> Iterator[Batch]:
        """Yield one epoch, the same for the same seed.

        The user's loader draws from torch's, numpy's and Python's generators in separate states, which are seeded here
        and swapped in for each batch. So the draws of the training between batches (dropout) do not disturb it.
        """
        with use_random_states(loader := RandomStates(seed)):
            batches = iter(self._check_batches("train_batches", self.task.train_batches(seed)))
        while True:
            with use_random_states(loader):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def eval_batches(self) -> Iterator[Batch]:
        """Yield the selection set, which decides."""
        yield from self._check_batches("eval_batches", self.task.eval_batches())

    def test_batches(self) -> Iterator[Batch] | None:
        """Return the test set, which is looked at once, or None if the task has none."""
        function = getattr(self.task, "test_batches", None)
        batches = function() if callable(function) else None
        return None if batches is None else self._check_batches("test_batches", batches)

    def calibration_batches(self) -> Iterator[Batch]:
        """Return batches that calibrate int8: the task's own if it has some, otherwise training batches."""
        function = getattr(self.task, "calibration_batches", None)
        if callable(function):
            return self._check_batches("calibration_batches", function())
        return self.train_epoch(0)

    def _check_batches(self, source: str, batches: Iterable[tuple[Any, Any]]) -> Iterator[Batch]:
        expected = tuple(value.shape[1:] for value in self.example_inputs)
        count = 0
        for count, batch in enumerate(batches, 1):  # noqa: B007 - count is read below
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise TaskError(f"{self.spec}: {source}() yields {type(batch).__name__}, not (inputs, targets).")
            inputs = as_tuple(batch[0])
            shapes = tuple(value.shape[1:] for value in inputs)
            if shapes != expected:
                raise TaskError(
                    f"{self.spec}: {source}() yields inputs of shape {[tuple(value.shape) for value in inputs]}, but "
                    f"example_inputs() has {[tuple(value.shape) for value in self.example_inputs]}; only the first "
                    "dimension, the batch, may differ."
                )
            yield inputs, batch[1]
        if count == 0:
            raise TaskError(f"{self.spec}: {source}() yields no batches.")

    def score(self, pairs: Sequence[tuple[Any, Any]]) -> float:
        """Return the task's score of pairs of arrays.

        Raises:
            TaskError: the score is not a finite number.
        """
        value = float(self.task.score(pairs))
        if not np.isfinite(value):
            raise TaskError(f"{self.spec}: score() returned {value}; it has to be a finite number, higher is better.")
        return value

    def sample_scores(self, pairs: Sequence[tuple[Any, Any]]) -> NDArray[np.float64] | None:
        """Return one score per sample, or None if the task has no ``sample_scores``."""
        function = getattr(self.task, "sample_scores", None)
        return None if function is None else np.asarray(function(pairs), dtype=np.float64)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return the task's training loss."""
        value = self.task.loss(outputs, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise TaskError(f"{self.spec}: loss() has to return a tensor with one element, not {value!r:.80}.")
        return value

    def distill_loss(self, outputs: Any, teacher: Any, targets: Any) -> Tensor | None:
        """Return the task's own distillation loss, or None if it has none."""
        function = getattr(self.task, "distill_loss", None)
        return None if function is None else function(outputs, teacher, targets)

    @cached_property
    def source_file(self) -> Path | None:
        """The file that defines the task."""
        module = sys.modules.get(getattr(self.task, "source_module", None) or type(self.task).__module__)
        file = getattr(module, "__file__", None)
        return Path(file) if file else None


def import_file(path: Path) -> ModuleType:
    """Import a Python file by its path, with its folder on ``sys.path`` as for a script."""
    if not path.is_file():
        others = [entry.name for entry in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise TaskError(f"task file {path} does not exist{did_you_mean(path.name, others)}.")
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
