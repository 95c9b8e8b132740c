"""What a task is judged on: its evaluation batches as arrays, and the scores of a file's outputs on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import InputError
from edgeopt.pipeline.boundary import run_user_code
from edgeopt.task import Batch, CheckedTask, as_outputs, load_task, to_numpy
from edgeopt.tasks.onnx_file import OnnxTask

NamedArrays = dict[str, NDArray[Any]]


def open_task(spec: str, data: Path | None) -> CheckedTask | OnnxTask:
    """Load a task: a bare ``.onnx`` with its inputs (random without), or the user's Python.

    Raises:
        TaskError, DataError: see ``edgeopt.task.load_task`` and ``OnnxTask``.
        InputError: inputs were given for a task that brings its own.
    """
    if spec.endswith(".onnx"):
        return OnnxTask(Path(spec), data)
    if data:
        raise InputError(f"--data goes with a bare .onnx model; the task '{spec}' brings its own data.")
    return run_user_code(spec, "loading the task", load_task, spec)


class EvaluationSet:
    """A task's evaluation batches, and its scores.

    Args:
        task: The user's task, or a given ``.onnx``.
    """

    def __init__(self, task: CheckedTask | OnnxTask) -> None:
        self.task = task
        self.inputs: list[NamedArrays]
        self.targets: list[Any]
        """One entry a batch; empty where a given file is judged by agreement."""
        self.inputs, self.targets = self._evaluation()

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return sum(len(next(iter(batch.values()))) for batch in self.inputs)

    def _user(self, what: str, function: Callable[..., Any], *args: Any) -> Any:
        return run_user_code(self.task.spec, what, function, *args)

    def _evaluation(self) -> tuple[list[NamedArrays], list[Any]]:
        if isinstance(self.task, OnnxTask):
            return self.task.batches(), self.task.target_batches() or []
        pairs: list[tuple[NamedArrays, Any]] = self._user("eval_batches()", self._arrays, self.task.eval_batches)
        return [inputs for inputs, _ in pairs], [targets for _, targets in pairs]

    def _arrays(self, source: Callable[[], Iterator[Batch]], limit: int | None = None) -> list[tuple[NamedArrays, Any]]:
        """Return a task's batches as arrays, up to ``limit`` samples."""
        found: list[tuple[NamedArrays, Any]] = []
        count = 0
        for inputs, targets in source():
            arrays = dict(zip(self.task.input_names, (to_numpy(value) for value in inputs), strict=True))
            found.append((arrays, to_numpy(targets)))
            count += len(next(iter(arrays.values())))
            if limit is not None and count >= limit:
                break
        return found

    def pairs(
        self, outputs: Sequence[NamedArrays], targets: Sequence[Any], names: Sequence[str] = ()
    ) -> list[tuple[Any, Any]]:
        """Return what ``score`` takes: outputs beside the targets.

        Args:
            outputs: Of a file, one entry a batch.
            targets: In the same batches.
            names: Of the outputs in the task's order; the task's own names, which take its model, where there are none.
        """
        names = names or self.task.output_names
        return list(zip((as_outputs([batch[name] for name in names]) for batch in outputs), targets, strict=True))

    def score(self, pairs: Sequence[tuple[Any, Any]]) -> float:
        """Return the task's score."""
        value: float = self._user("score()", self.task.score, pairs)
        return value

    def sample_scores(self, pairs: Sequence[tuple[Any, Any]]) -> NDArray[np.float64] | None:
        """Return one score a sample, or None where the task has none."""
        value: NDArray[np.float64] | None = self._user("sample_scores()", self.task.sample_scores, pairs)
        return value
