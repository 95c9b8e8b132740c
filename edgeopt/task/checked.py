"""``CheckedTask``: a user's task with its optional members filled in and every returned value checked.

Exceptions from the user's own code pass through; ``pipeline`` turns them into messages.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeopt.errors import TaskError, did_you_mean
from edgeopt.records.budget import Budget
from edgeopt.records.scoring import ScoreDirection, ScoreKind
from edgeopt.task.protocol import Training
from edgeopt.task.random_states import RandomStates, use_random_states
from edgeopt.task.values import as_tuple, flat_outputs, to_numpy

Batch: TypeAlias = tuple[tuple[Tensor, ...], Any]
"""Inputs and targets of one batch."""

_SCORE_SAMPLES = 1000
"""Samples on which the trained network shows what its outputs are."""
_REQUIRED_METHODS = ("build_model", "example_inputs", "train_batches", "eval_batches", "loss", "score")


class CheckedTask:
    """A user's task with its optional members filled in and every returned value checked.

    Optional members of the user's task: ``test_batches()``, ``score_direction`` (``"higher"`` or ``"lower"``), and
    ``sample_scores(pairs)`` (one score per sample, for paired intervals; it counts only if its mean is the score),
    ``sample_statistics(pairs)`` and ``score_statistics(sums)`` (numbers for each sample, and the score from their sums
    over samples: the fast way to the interval of a score that isn't a mean), ``students`` (name to a function that
    builds a smaller network), ``training`` (``Training``), ``calibration_batches()``,
    ``distill_loss(outputs, teacher_outputs, targets)``, ``input_names``, ``output_names``, ``labels``,
    ``preprocessing``, ``postprocessing``, ``budgets`` (target name to ``Budget``), ``teacher`` (path of an ``.onnx``
    file that teaches instead of the trained model, which is still what is compressed and compared with).
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

    @property
    def postprocessing(self) -> str:
        """How an app reads the outputs, in the task's words."""
        return str(getattr(self.task, "postprocessing", ""))

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

    @cached_property
    def score_kind(self) -> ScoreKind | None:
        """What the score is, if the task leaves it to edgeopt, as ``edgeopt.classification`` does; otherwise None.

        The trained network runs on the first samples of the selection set, and all labels are read.
        """
        settle = getattr(self.task, "settle_score", None)
        if not callable(settle):
            return None
        outputs: list[list[NDArray[Any]]] = []
        targets: list[Any] = []
        samples = 0
        for inputs, target in self.eval_batches():
            targets.append(to_numpy(target))
            if samples < _SCORE_SAMPLES:
                with torch.no_grad():
                    outputs.append([to_numpy(value) for value in flat_outputs(self.model(*inputs))])
                samples += len(inputs[0])
        kind: ScoreKind = settle(outputs, self.output_names, targets)
        return kind

    @property
    def score_direction(self) -> ScoreDirection:
        """Whether a higher or a lower score is better."""
        direction = self.score_kind.direction if self.score_kind else getattr(self.task, "score_direction", "higher")
        if direction not in ("higher", "lower"):
            raise TaskError(
                f"{self.spec}: score_direction is {direction!r}; it has to be 'higher' or 'lower' (better)."
            )
        return "higher" if direction == "higher" else "lower"

    def is_as_good(self, score: float, other: float) -> bool:
        """Tell whether a score is at least as good as another one."""
        return score >= other if self.score_direction == "higher" else score <= other

    def score(self, pairs: Sequence[tuple[Any, Any]]) -> float:
        """Return the task's score of pairs of arrays.

        Raises:
            TaskError: the score is not a finite number.
        """
        _ = self.score_kind
        value = float(self.task.score(pairs))
        if not np.isfinite(value):
            raise TaskError(f"{self.spec}: score() returned {value}; it has to be a finite number.")
        return value

    def sample_scores(self, pairs: Sequence[tuple[Any, Any]]) -> NDArray[np.float64] | None:
        """Return one score per sample, or None if the task has no ``sample_scores``."""
        return self._numbers("sample_scores", pairs)

    def sample_statistics(self, pairs: Sequence[tuple[Any, Any]]) -> NDArray[np.float64] | None:
        """Return the numbers of each sample that add up to the score's, or None if the task has none.

        Raises:
            TaskError: they are not one row of numbers for each sample, or ``score_statistics`` is missing.
        """
        found = self._numbers("sample_statistics", pairs)
        if found is not None and (found.ndim != 2 or not callable(getattr(self.task, "score_statistics", None))):
            raise TaskError(
                f"{self.spec}: sample_statistics() returned shape {found.shape}; it has to be (samples, numbers), and "
                "score_statistics(sums) has to return the score from the sums over the samples."
            )
        return found

    def score_statistics(self, sums: NDArray[np.float64]) -> float:
        """Return the score from the sums of ``sample_statistics``."""
        return float(self.task.score_statistics(sums))

    def _numbers(self, member: str, pairs: Sequence[tuple[Any, Any]]) -> NDArray[np.float64] | None:
        function = getattr(self.task, member, None)
        _ = self.score_kind
        found = None if function is None else function(pairs)
        return None if found is None else np.asarray(found, dtype=np.float64)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return the task's training loss."""
        _ = self.score_kind
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
