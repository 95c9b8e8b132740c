"""Evaluation of a task: its selection set as arrays, and the scores of a file's outputs.

In: a task, and a file's outputs on the set. Out: one score, or one per sample.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import InputError
from edgeopt.pipeline.boundary import run_user_code
from edgeopt.pipeline.given_model import open_given_task
from edgeopt.pipeline.processes import prepare_for_forks
from edgeopt.pipeline.user_code import load_guarded_task
from edgeopt.records.preprocessing import DataOptions
from edgeopt.records.scoring import ScoreDirection, ScoreKind, ScoreWish
from edgeopt.scoring.facts import flat_arrays
from edgeopt.task import Batch, BatchStep, CheckedTask
from edgeopt.task.batch_axes import count_samples
from edgeopt.task.values import to_numpy
from edgeopt.tasks.given.onnx_file import OnnxTask

NamedArrays = dict[str, NDArray[Any]]


def open_task(
    spec: str, data: str | None, score_wish: ScoreWish | None = None, options: DataOptions | None = None
) -> CheckedTask | OnnxTask:
    """Load a task: a bare ``.onnx`` with its inputs (random if ``data`` is None), or the user's Python.

    Args:
        spec: As the user named it.
        data: Of a bare ``.onnx``.
        score_wish: How a bare ``.onnx`` is to be scored; None leaves it to the data.
        options: How its data become inputs.

    Raises:
        TaskError, DataError: see ``edgeopt.task.load_task`` and ``OnnxTask``.
        InputError: inputs or a score were given for a task that brings its own.
    """
    if spec.endswith(".onnx"):
        return open_given_task(Path(spec), data, score_wish, options)
    if data:
        raise InputError(f"--data goes with a bare .onnx model; the task '{spec}' brings its own data.")
    if options is not None and options != DataOptions():
        raise InputError(
            f"--mean, --std, --size, --layout, --color and --state go with the data of a bare .onnx model; the task "
            f"'{spec}' brings its own data."
        )
    if score_wish is not None and score_wish != ScoreWish():
        raise InputError(
            f"--score, --score-output and --ignore-label go with a bare .onnx model. The task '{spec}' says itself how "
            "it is scored: by its score(), or by score=KIND, score_output=NAME and ignore_label=N of "
            "edgeopt.classification(...)."
        )
    prepare_for_forks()
    return load_guarded_task(spec)


class EvaluationSet:
    """A task's evaluation batches, and its scores.

    Args:
        task: The user's task, or a given ``.onnx``.
    """

    def __init__(self, task: CheckedTask | OnnxTask) -> None:
        self.task = task
        self.lock = threading.RLock()
        """Held while the user's code runs, which knows nothing of threads."""
        self.inputs: list[NamedArrays]
        self.targets: list[Any]
        """One entry per batch; empty if a given file is judged by agreement."""
        self.continues: list[bool] = []
        """Of each batch of a task in Python, whether its states are outputs of the one before."""
        self.inputs, self.targets = self._load()

    @property
    def samples(self) -> int:
        """The number of samples."""
        return sum(self.counts)

    @property
    def states(self) -> dict[str, str]:
        """Inputs that are outputs of the step before, and these outputs."""
        return self.task.states

    @property
    def zero_states(self) -> tuple[str, ...]:
        """The states that are zeros at the beginning of every recording."""
        return tuple(
            name for name in self.states if not any(batch[name].any() for batch in self.fed_inputs if name in batch)
        )

    @property
    def fed_inputs(self) -> list[NamedArrays]:
        """The inputs as files are scored on them: states are each file's own, so later steps have none."""
        if isinstance(self.task, OnnxTask):
            return self.task.fed_batches()
        return self.without_fed_states(self.inputs, self.continues)

    def without_fed_states(self, batches: Sequence[NamedArrays], continues: Sequence[bool]) -> list[NamedArrays]:
        """Return batches; those whose states are outputs of the batch before, without states."""
        return [
            {name: values for name, values in batch.items() if not (goes_on and name in self.states)}
            for batch, goes_on in zip(batches, continues, strict=True)
        ]

    @property
    def counts(self) -> list[int]:
        """The number of samples in each batch."""
        return [self.count(batch) for batch in self.inputs]

    def count(self, batch: NamedArrays) -> int:
        """Return the number of samples in a batch, which may lack states."""
        axes = dict(zip(self.task.input_names, self.task.axes.inputs, strict=True))
        return count_samples(batch, tuple(axes[name] for name in batch))

    @property
    def score_direction(self) -> ScoreDirection:
        """Whether a higher or a lower score is better."""
        direction: ScoreDirection = self._call_user("score_direction", lambda: self.task.score_direction)
        return direction

    @property
    def score_kind(self) -> ScoreKind | None:
        """What the score is, once it is settled; None if the task scores itself."""
        kind: ScoreKind | None = self._call_user("the score", lambda: self.task.score_kind)
        return kind

    @property
    def score_wish(self) -> ScoreWish | None:
        """What the user asked for on the command line, for keys of scores."""
        return self.task.score_wish if isinstance(self.task, OnnxTask) else None

    def settle_score(self, baseline: Sequence[NamedArrays]) -> ScoreKind | None:
        """Decide what the score is, and return it; None if the task scores itself.

        Args:
            baseline: Outputs of the baseline on the set; a task in Python runs its network itself.
        """
        if not isinstance(self.task, OnnxTask):
            return self.score_kind
        if self.task.score_kind is None:
            names = self.task.output_names
            outputs = [flat_arrays(self.task.nest_outputs([batch[name] for name in names])) for batch in baseline]
            self.task.settle_score(outputs, names, self.targets or None)
        return self.task.score_kind

    def _call_user(self, part: str, function: Callable[..., Any], *args: Any) -> Any:
        with self.lock:
            return run_user_code(self.task.spec, part, function, *args)

    def _load(self) -> tuple[list[NamedArrays], list[Any]]:
        if isinstance(self.task, OnnxTask):
            return self.task.batches(), self.task.target_batches() or []
        found: list[tuple[tuple[NamedArrays, Any], bool]] = self._call_user(
            "eval_batches()", self._to_steps, self.task.eval_steps
        )
        self.continues = [continues for _, continues in found]
        return [inputs for (inputs, _), _ in found], [targets for (_, targets), _ in found]

    def _to_steps(self, source: Callable[[], Iterator[BatchStep]]) -> list[tuple[tuple[NamedArrays, Any], bool]]:
        """Return all of a task's batches as arrays, with whether their states are outputs of the batch before."""
        continues: list[bool] = []

        def batches() -> Iterator[Batch]:
            for batch, goes_on in source():
                continues.append(goes_on)
                yield batch

        return list(zip(self._to_arrays(batches), continues, strict=True))

    def _to_arrays(
        self, source: Callable[[], Iterator[Batch]], min_samples: int | None = None
    ) -> list[tuple[NamedArrays, Any]]:
        """Return a task's batches as arrays: all, or the first that together have ``min_samples``."""
        batches: list[tuple[NamedArrays, Any]] = []
        count = 0
        for inputs, targets in source():
            arrays = dict(zip(self.task.input_names, (to_numpy(value) for value in inputs), strict=True))
            batches.append((arrays, to_numpy(targets)))
            count += self.task.axes.count(arrays)
            if min_samples is not None and count >= min_samples:
                break
        return batches

    def pairs(
        self, outputs: Sequence[NamedArrays], targets: Sequence[Any], names: Sequence[str] = ()
    ) -> list[tuple[Any, Any]]:
        """Return pairs of outputs and targets, as the task's ``score`` expects them.

        Args:
            outputs: Of a file, one entry per batch.
            targets: In the same batches.
            names: Of the outputs, in the task's order; empty for the task's own names.
        """
        names = names or self.task.output_names
        return list(
            zip((self.task.nest_outputs([batch[name] for name in names]) for batch in outputs), targets, strict=True)
        )

    def score(self, pairs: Sequence[tuple[Any, Any]]) -> float:
        """Return the task's score."""
        value: float = self._call_user("score()", self.task.score, pairs)
        return value

    def sample_scores(self, pairs: Sequence[tuple[Any, Any]]) -> NDArray[np.float64] | None:
        """Return one score per sample, or None if the task doesn't give any."""
        value: NDArray[np.float64] | None = self._call_user("sample_scores()", self.task.sample_scores, pairs)
        return value

    def sample_statistics(self, pairs: Sequence[tuple[Any, Any]]) -> NDArray[np.float64] | None:
        """Return the row of numbers of each sample that the score is computed from, or None if the task gives none."""
        value: NDArray[np.float64] | None = self._call_user("sample_statistics()", self.task.sample_statistics, pairs)
        return value

    def score_statistics(self, sums: NDArray[np.float64]) -> float:
        """Return the score from the sums of ``sample_statistics``."""
        value: float = self._call_user("score_statistics()", self.task.score_statistics, sums)
        return value

    @property
    def scores_rows(self) -> bool:
        """Whether the score is computed from the rows of ``sample_statistics``, instead of their sums."""
        return not isinstance(self.task, OnnxTask) and self.task.scores_rows

    def score_rows(self, rows: NDArray[np.float64]) -> float:
        """Return the score from the rows of ``sample_statistics``, or from their sums."""
        if isinstance(self.task, OnnxTask) or not self.task.scores_rows:
            return self.score_statistics(rows.sum(0))
        value: float = self._call_user("score_rows()", self.task.score_rows, rows)
        return value
