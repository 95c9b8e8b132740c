"""The one seam to the user's code: what a task has to offer, how it is loaded, and how each part is checked.

In: ``fashion``, ``module:name`` or ``file.py:name``. Out: a ``CheckedTask``, whose every answer has been looked at
before the rest of edgeopt sees it. Exceptions of the user's own code pass through; ``pipeline`` gives them words.
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
from edgeopt.records.recipe import Importance as Importance
from edgeopt.records.recipe import Optimizer

_Arrays: TypeAlias = tuple[NDArray[Any], ...]
Batch: TypeAlias = tuple[tuple[Tensor, ...], Any]
"""Inputs and targets of one step."""

READY_TASKS = {"fashion": "edgeopt.tasks.fashion:task"}
REQUIRED = ("build_model", "example_inputs", "train_batches", "eval_batches", "loss", "score")


class Training(Record, frozen=True, kw_only=True):
    """How a candidate of this task is trained; the ready tasks and ``classification`` fill it in."""

    epochs: int = 10
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.05
    weight_decay: float = 5e-4
    temperature: float = 4.0
    kl_weight: float = 0.9
    mse_weight: float = 0.0
    hard_weight: float = 0.1
    importance: Importance = Importance()
    """How channels are scored before they are cut."""
    group_lasso: float = 0.0
    """Above 0, a quarter of the epochs comes before the cut and shrinks channels with a penalty of this strength."""


class Task(Protocol):
    """What a user writes. Optional members: see ``CheckedTask``."""

    name: str

    def build_model(self) -> nn.Module:
        """Return the trained model."""

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return one batch of inputs, which also becomes the golden inputs of the bundle."""

    def train_batches(self, seed: int) -> Iterable[tuple[Any, Any]]:
        """Return one epoch of ``(inputs, targets)``."""

    def eval_batches(self) -> Iterable[tuple[Any, Any]]:
        """Return the batches that decide."""

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return the training loss, a scalar."""

    def score(self, pairs: Iterable[tuple[Any, Any]]) -> float:
        """Return the score of ``(outputs, targets)`` pairs of arrays over the whole set; higher is better."""


def as_tuple(inputs: Any) -> tuple[Tensor, ...]:
    """Return model inputs as a tuple: a lone tensor becomes a tuple of one."""
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


def as_outputs(arrays: Sequence[NDArray[Any]]) -> Any:
    """Return arrays in the shape that ``score`` expects: one array alone, or a tuple."""
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


class Randomness:
    """The states of torch's, numpy's and Python's global generators after seeding with ``seed``."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator()
        generator.manual_seed(seed)
        self.torch = generator.get_state()
        self.numpy = np.random.RandomState(seed % 2**32).get_state()
        self.python = random.Random(seed).getstate()  # noqa: S311 - data augmentation, not secrets


@contextmanager
def own_randomness(state: Randomness) -> Iterator[None]:
    """Run a block with the global generators in ``state``; keep their new state there, and restore what was before."""
    before = (torch.get_rng_state(), np.random.get_state(), random.getstate())
    torch.set_rng_state(state.torch)
    np.random.set_state(state.numpy)
    random.setstate(state.python)
    try:
        yield
    finally:
        state.torch, state.numpy, state.python = torch.get_rng_state(), np.random.get_state(), random.getstate()
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


class CheckedTask:
    """A user's task with its optional members filled in and every answer checked.

    Optional members of the user's task: ``test_batches()``, ``sample_scores(pairs)`` (one score a sample, for paired
    intervals), ``students`` (name to a function that builds a smaller network), ``training`` (``Training``),
    ``calibration_batches()``, ``distill_loss(outputs, teacher_outputs, targets)``, ``input_names``, ``output_names``,
    ``labels``, ``preprocessing``, ``postprocessing``, ``budgets`` (target name to ``Budget``), ``teacher`` (path of an
    ``.onnx`` that teaches in the trained model's place; what is compressed, and compared with, stays that model).
    """

    kind = "torch"

    def __init__(self, task: Any, spec: str) -> None:
        missing = [name for name in REQUIRED if not callable(getattr(task, name, None))]
        if missing:
            close = did_you_mean(missing[0], [name for name in dir(task) if name[0] != "_" and name not in REQUIRED])
            raise TaskError(
                f"task '{spec}' ({type(task).__name__}) has no method "
                f"{', '.join(f'{name}()' for name in missing)}{close}. "
                "A task needs " + ", ".join(f"{name}()" for name in REQUIRED) + "; `edgeopt init` writes an example."
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
        self.teacher = self._teacher(getattr(task, "teacher", None))

    def _teacher(self, given: Any) -> Path | None:
        if given is None:
            return None
        if not isinstance(given, str | Path) or Path(given).suffix != ".onnx":
            raise TaskError(
                f"{self.spec}: teacher has to be the path of an .onnx file, not {given!r:.80}. Export another PyTorch "
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

    def check_runs(self, model: nn.Module, what: str) -> tuple[Tensor, ...]:
        """Run ``model`` on the example inputs and return its outputs.

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
                f"{self.spec}: {what} does not run on example_inputs() of shape {shapes}: {error}. "
                "Let example_inputs() return one batch as the model takes it."
            ) from error
        for index, output in enumerate(outputs):
            if isinstance(output, Tensor) and output.is_floating_point() and not bool(torch.isfinite(output).all()):
                raise TaskError(
                    f"{self.spec}: output {index} of {what} is not finite on example_inputs() (NaN or infinity). "
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

        The user's loader draws from torch's, numpy's and Python's generators in a state of its own, which is seeded
        here and swapped in for each batch: what the training draws between batches (dropout) does not disturb it.
        """
        with own_randomness(loader := Randomness(seed)):
            batches = iter(self._batches("train_batches", self.task.train_batches(seed)))
        while True:
            with own_randomness(loader):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def eval_batches(self) -> Iterator[Batch]:
        """Yield the batches that decide."""
        yield from self._batches("eval_batches", self.task.eval_batches())

    def test_batches(self) -> Iterator[Batch] | None:
        """Return the batches that are looked at once, or None where the task has none."""
        batches = getattr(self.task, "test_batches", None)
        found = batches() if callable(batches) else None
        return None if found is None else self._batches("test_batches", found)

    def calibration_batches(self) -> Iterator[Batch]:
        """Yield batches that calibrate int8: the task's own, else training batches."""
        batches = getattr(self.task, "calibration_batches", None)
        if callable(batches):
            return self._batches("calibration_batches", batches())
        return self.train_epoch(0)

    def _batches(self, source: str, batches: Iterable[tuple[Any, Any]]) -> Iterator[Batch]:
        expected = tuple(value.shape[1:] for value in self.example_inputs)
        count = 0
        for count, batch in enumerate(batches, 1):  # noqa: B007 - count is read below
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise TaskError(f"{self.spec}: {source}() yields {type(batch).__name__}, not (inputs, targets).")
            inputs = as_tuple(batch[0])
            shapes = tuple(value.shape[1:] for value in inputs)
            if shapes != expected:
                raise TaskError(
                    f"{self.spec}: {source}() yields inputs of shape {[tuple(value.shape) for value in inputs]} where "
                    f"example_inputs() has {[tuple(value.shape) for value in self.example_inputs]}; only the first "
                    "dimension, the batch, may differ."
                )
            yield inputs, batch[1]
        if count == 0:
            raise TaskError(f"{self.spec}: {source}() yields nothing.")

    def score(self, pairs: Sequence[tuple[Any, Any]]) -> float:
        """Return the task's score of arrays.

        Raises:
            TaskError: the score is not a finite number.
        """
        value = float(self.task.score(pairs))
        if not np.isfinite(value):
            raise TaskError(f"{self.spec}: score() returned {value}; it has to be a finite number, higher is better.")
        return value

    def sample_scores(self, pairs: Sequence[tuple[Any, Any]]) -> NDArray[np.float64] | None:
        """Return one score a sample, or None where the task has no such thing."""
        function = getattr(self.task, "sample_scores", None)
        return None if function is None else np.asarray(function(pairs), dtype=np.float64)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return the task's training loss."""
        value = self.task.loss(outputs, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise TaskError(f"{self.spec}: loss() has to return a tensor with one element, not {value!r:.80}.")
        return value

    def distill_loss(self, outputs: Any, teacher: Any, targets: Any) -> Tensor | None:
        """Return the task's own distillation loss, or None where it has none."""
        function = getattr(self.task, "distill_loss", None)
        return None if function is None else function(outputs, teacher, targets)

    @cached_property
    def source_file(self) -> Path | None:
        """The file whose text defines the task."""
        module = sys.modules.get(getattr(self.task, "source_module", None) or type(self.task).__module__)
        file = getattr(module, "__file__", None)
        return Path(file) if file else None


def import_file(path: Path) -> ModuleType:
    """Import a Python file by its path, with its folder on ``sys.path`` as a script has it."""
    if not path.is_file():
        near = did_you_mean(
            path.name, [entry.name for entry in path.parent.glob("*.py")] if path.parent.is_dir() else []
        )
        raise TaskError(f"task file {path} does not exist{near}.")
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
    """Import a module by name; the current folder counts."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise TaskError(
            f"task '{spec}': there is no module '{error.name}'. Give module:name, file.py:name, model.onnx, or a ready "
            f"task: {', '.join(sorted(READY_TASKS))}{did_you_mean(spec, READY_TASKS)}."
        ) from error


def load_task(spec: str) -> CheckedTask:
    """Load a task by ``fashion``, ``module:name`` or ``file.py:name``.

    ``name`` is a task, or a function or class that returns one when called without arguments.

    Raises:
        TaskError: what is missing, and the nearest name that exists.
    """
    place, _, attribute = READY_TASKS.get(spec, spec).rpartition(":")
    if not place:
        raise TaskError(
            f"there is no ready task '{spec}'{did_you_mean(spec, READY_TASKS)}. "
            f"Ready: {', '.join(sorted(READY_TASKS))}. Your own: module:name or file.py:name."
        )
    module = import_file(Path(place)) if place.endswith(".py") else import_module(place, spec)
    if not hasattr(module, attribute):
        close = did_you_mean(attribute, [name for name in vars(module) if not name.startswith("_")])
        raise TaskError(f"task '{spec}': {place} has no '{attribute}'{close}.")
    found = getattr(module, attribute)
    if isinstance(found, type) or (callable(found) and not hasattr(found, "build_model")):
        found = found()
    return CheckedTask(found, spec)
