"""``CheckedTask``: a user's task with its optional members filled in and every returned value checked.

Exceptions from the user's own code pass through; ``pipeline`` turns them into messages.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeopt.errors import TaskError, did_you_mean
from edgeopt.records.budget import Budget
from edgeopt.records.scoring import ScoreDirection, ScoreKind
from edgeopt.task.batch_axes import BatchAxes
from edgeopt.task.dynamic_axes import Dims
from edgeopt.task.interface import Batch, BatchStep, ModelInterface
from edgeopt.task.modules import describe_rounding, in_float32, is_double, narrow_types, prepare_module
from edgeopt.task.protocol import (
    Training,
    check_training,
    read_input_sizes,
    read_preprocessing,
    read_unseen_rows,
    read_width_rules,
)
from edgeopt.task.random_states import RandomStates, draw_in_order, use_random_states
from edgeopt.task.states import StateFeedback, read_states
from edgeopt.task.values import describe_value, flat_outputs, to_numpy

_SCORE_SAMPLES = 1000
"""Samples on which the trained network shows what its outputs are."""
_REQUIRED_METHODS = ("build_model", "example_inputs", "train_batches", "eval_batches", "loss", "score")


class CheckedTask:
    """A user's task with its optional members filled in and every returned value checked.

    The optional members are those that ``Task`` lists. Inside edgeopt, inputs and outputs are flat tuples of tensors;
    ``loss``, ``distill_loss`` and ``score`` of the user get outputs in the nesting of the model.
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
        self.notes: list[str] = []
        """What the report has to say about the task."""
        self.name: str = str(getattr(task, "name", "") or spec)
        self.training = check_training(getattr(task, "training", None) or Training(), spec)
        self.labels: tuple[str, ...] = tuple(getattr(task, "labels", ()))
        self.preprocessing = read_preprocessing(task, spec)
        self.licence: str = str(getattr(task, "licence", "") or "")
        self.students: Mapping[str, Any] = getattr(task, "students", None) or {}
        self.budgets: Mapping[str, Budget] = getattr(task, "budgets", None) or {}
        self.width_rules = read_width_rules(task, spec)
        self.unseen_rows = read_unseen_rows(task, spec)
        self.input_sizes = read_input_sizes(task, spec)
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
        """The trained model, in evaluation mode and float32, run once on the example inputs."""
        _ = self.interface.example_outputs
        return self.interface.module

    @cached_property
    def interface(self) -> ModelInterface:
        """The inputs and outputs of the trained model."""
        module = prepare_module(self.task.build_model(), "build_model()", self.spec)
        narrow = narrow_types(module)
        if narrow:
            names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in narrow))
            self.notes.append(f"the model's {names} weights were widened to float32 for training and export")
        was_double = is_double(module)
        if was_double:
            self.notes.append("the model's float64 weights were rounded to float32, and the file takes float32 inputs")
        interface = ModelInterface(self.task, in_float32(module), self.spec, self.notes, was_double=was_double)
        if was_double:
            exact = ModelInterface(self.task, module, self.spec, [])
            self.notes += describe_rounding(exact.example_outputs[0], interface.example_outputs[0])
        return interface

    def student(self, name: str) -> nn.Module:
        """Return one of the task's students.

        Raises:
            TaskError: it is not a module, does not run on the example inputs, or has other outputs than the model.
        """
        student = prepare_module(self.students[name](), f"students['{name}']()", self.spec)
        student = in_float32(student)
        self.interface.check_student(student, name)
        return student

    @property
    def example_inputs(self) -> tuple[Tensor, ...]:
        """One batch of inputs, flat."""
        return self.interface.layout.example

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the graph's inputs."""
        return self.interface.input_names

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return self.interface.output_names

    @property
    def axes(self) -> BatchAxes:
        """The batch dimension of each input and output."""
        return self.interface.axes

    def nest_outputs(self, values: Sequence[Any]) -> Any:
        """Return tensors or arrays, one for each output of the graph, in the nesting that the model returns."""
        return self.interface.example_outputs[1].nest(values)

    @cached_property
    def states(self) -> dict[str, str]:
        """Inputs that are outputs of the batch before, and these outputs."""
        return read_states(self.task, self.interface)

    @cached_property
    def trace_dims(self) -> tuple[Dims, ...]:
        """The dynamic dimensions of a trace: those of the graph, and those in which training batches differ from it.

        Training crops are often smaller than the images that a network is evaluated on.
        """
        with use_random_states(RandomStates(0)):
            batch = next(iter(self.task.train_batches(0)), None)
        if batch is None:
            return self.interface.graph_dims
        source = "train_batches()"
        inputs, _ = self.interface.split(batch, source, StateFeedback(self.states, self.interface, source).complete)
        return self.interface.open_dims(inputs)

    def train_epoch(self, seed: int) -> Iterator[Batch]:
        """Yield one epoch, the same for the same seed.

        The draws of the training between batches (dropout) do not disturb the user's loader.
        """
        dims = self.trace_dims
        return draw_in_order(seed, lambda: self._check_batches("train_batches()", self.task.train_batches(seed), dims))

    def eval_batches(self) -> Iterator[Batch]:
        """Yield the selection set, which decides."""
        return (batch for batch, _ in self.eval_steps())

    def eval_steps(self) -> Iterator[BatchStep]:
        """Yield the selection set with whether a batch's states are outputs of the one before.

        A loader that shuffles gives the same order each time: results are found again by what was scored.
        """
        return draw_in_order(0, lambda: self._check_steps("eval_batches()", self.task.eval_batches()))

    def test_batches(self) -> Iterator[Batch] | None:
        """Return the test set, which is looked at once, or None if the task has none."""
        steps = self.test_steps()
        return None if steps is None else (batch for batch, _ in steps)

    def test_steps(self) -> Iterator[BatchStep] | None:
        """Return the test set with whether a batch's states are outputs of the one before."""
        function = getattr(self.task, "test_batches", None)
        with use_random_states(RandomStates(0)):
            batches = function() if callable(function) else None
        return None if batches is None else draw_in_order(0, lambda: self._check_steps("test_batches()", batches))

    def calibration_batches(self) -> Iterator[Batch]:
        """Return batches that calibrate int8: the task's own if it has some, otherwise training batches.

        Training crops of another size than the graph's are repeated or cut to that size.
        """
        function = getattr(self.task, "calibration_batches", None)
        if callable(function):
            return draw_in_order(0, lambda: self._check_batches("calibration_batches()", function()))
        return ((self.interface.fit_sizes(inputs), targets) for inputs, targets in self.train_epoch(0))

    @property
    def shows_own_inputs(self) -> bool:
        """Whether the task says which inputs a bundle may show."""
        return callable(getattr(self.task, "golden_inputs", None))

    def golden_batches(self) -> Iterator[Batch]:
        """Yield the batch that a bundle may show, without targets."""
        return self._check_batches("golden_inputs()", [(self.task.golden_inputs(), None)])

    def _check_batches(self, source: str, batches: Iterable[Any], dims: Sequence[Dims] = ()) -> Iterator[Batch]:
        return (batch for batch, _ in self._check_steps(source, batches, dims))

    def _check_steps(self, source: str, batches: Iterable[Any], dims: Sequence[Dims] = ()) -> Iterator[BatchStep]:
        """Yield batches with their inputs flat; only the batch and dynamic dimensions may differ from the example."""
        dims = dims or self.interface.graph_dims
        feedback = StateFeedback(self.states, self.interface, source)
        is_empty = True
        for batch in batches:
            is_empty = False
            inputs, targets = self.interface.split(batch, source, feedback.complete)
            self.interface.check_inputs(source, inputs, dims)
            feedback.keep(inputs)
            yield (inputs, targets), feedback.continues
        if is_empty:
            raise TaskError(
                f"{self.spec}: {source} yields no batches. A loader with drop_last=True needs at least one whole "
                "batch; a generator or an iterator is empty when it was used before, so return a new one at each call."
            )

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
                outputs.append([to_numpy(value) for value in self.interface.run(inputs)])
                samples += self.axes.count(inputs)
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
        found = self.task.score(pairs)
        if not isinstance(found, int | float | np.number | np.ndarray | Tensor) or np.size(to_numpy(found)) != 1:
            raise TaskError(
                f"{self.spec}: score() returned {describe_value(found)}; it has to return one number for all pairs."
            )
        value = float(found)
        if not np.isfinite(value):
            raise TaskError(f"{self.spec}: score() returned {value}; it has to be a finite number.")
        return value

    def sample_scores(self, pairs: Sequence[tuple[Any, Any]]) -> NDArray[np.float64] | None:
        """Return one score per sample, or None if the task has no ``sample_scores``."""
        return self._numbers("sample_scores", pairs)

    def sample_statistics(self, pairs: Sequence[tuple[Any, Any]]) -> NDArray[np.float64] | None:
        """Return the row of numbers of each sample that the score is computed from, or None if the task has none.

        Raises:
            TaskError: they are not one row of numbers for each sample, or ``score_statistics`` and ``score_rows`` are
                missing.
        """
        found = self._numbers("sample_statistics", pairs)
        has_score = self.scores_rows or callable(getattr(self.task, "score_statistics", None))
        if found is not None and (found.ndim != 2 or not has_score):
            raise TaskError(
                f"{self.spec}: sample_statistics() returned shape {found.shape}; it has to be (samples, numbers), and "
                "score_statistics(sums) has to return the score from the sums over the samples, or score_rows(rows) "
                "from the rows of any draw of samples."
            )
        return found

    @property
    def scores_rows(self) -> bool:
        """Whether the score is computed from rows of ``sample_statistics``, instead of their sums."""
        return callable(getattr(self.task, "score_rows", None))

    def score_rows(self, rows: NDArray[np.float64]) -> float:
        """Return the score from rows of ``sample_statistics``."""
        return float(self.task.score_rows(rows))

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
        value = self.task.loss(self.nest_outputs(flat_outputs(outputs)), targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise TaskError(f"{self.spec}: loss() has to return a tensor with one element, not {value!r:.80}.")
        return value.reshape(())

    def distill_loss(self, outputs: Any, teacher: Any, targets: Any) -> Tensor | None:
        """Return the task's own distillation loss, or None if it has none."""
        function = getattr(self.task, "distill_loss", None)
        if function is None:
            return None
        nested = self.nest_outputs(flat_outputs(outputs))
        value: Tensor = function(nested, self.nest_outputs(flat_outputs(teacher)), targets)
        return value.reshape(()) if isinstance(value, Tensor) and value.numel() == 1 else value

    @property
    def has_training_step(self) -> bool:
        """Whether the task has its own ``training_step``."""
        return callable(getattr(self.task, "training_step", None))

    def training_step(
        self, model: nn.Module, inputs: tuple[Tensor, ...], targets: Any, teacher_outputs: tuple[Tensor, ...]
    ) -> Tensor:
        """Return the loss of the task's own training step, which runs the model itself.

        The user's function calls the model as it is called elsewhere, with inputs in the form of ``example_inputs()``,
        and gets outputs in the nesting of the trained model; the teacher's outputs have the same nesting.

        Raises:
            TaskError: it is not a tensor with one element that depends on the model.
        """
        layout = self.interface.layout

        def run(*args: Any, **named: Any) -> Any:
            return self.nest_outputs(flat_outputs(model(*layout.flatten_call(args, named))))

        value = self.task.training_step(run, layout.nest(inputs), targets, self.nest_outputs(teacher_outputs))
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise TaskError(
                f"{self.spec}: training_step() has to return the loss as a tensor with one element that depends on "
                f"the model, not {value!r:.80}."
            )
        return value.reshape(())

    def train_length(self, seed: int) -> int | None:
        """Return the number of batches of an epoch if the user's loader knows it, or None."""
        with use_random_states(RandomStates(seed)):
            batches = self.task.train_batches(seed)
        try:
            return len(batches)
        except TypeError:
            return None

    @cached_property
    def source_file(self) -> Path | None:
        """The file that defines the task."""
        module = sys.modules.get(getattr(self.task, "source_module", None) or type(self.task).__module__)
        file = getattr(module, "__file__", None)
        return Path(file) if file else None
