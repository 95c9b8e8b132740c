"""Which epoch's weights a training keeps: the last ones that are no worse than the best by more than noise.

The best of many epochs owes a part of its score to luck, which other data do not repeat: where the samples that pick an
epoch also judge the file, the file would look better than it is. Rates fall to zero over a training, so the last epoch
is nearly always as good as any, and it was not picked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeopt.passes.distill.compute import CPU, ComputeDevice
from edgeopt.passes.distill.teacher import to_channels_last
from edgeopt.scoring.drop import is_mean, mean_drop_interval, sums_drop_interval
from edgeopt.task import CheckedTask
from edgeopt.task.states import feed_states
from edgeopt.task.values import flat_outputs, to_numpy


class EpochScore(NamedTuple):
    """A network's score on the selection set."""

    value: float
    rows: NDArray[np.float64]
    """Of each sample: its score, or the numbers that the score is computed from; empty if the task gives neither."""


def run_selection(module: Callable[..., Any], task: CheckedTask, compute: ComputeDevice = CPU) -> list[tuple[Any, Any]]:
    """Return a torch module's outputs on the selection set with the targets; its states are its own."""
    pairs: list[tuple[Any, Any]] = []
    outputs: tuple[Tensor, ...] = ()
    with torch.no_grad():
        for (inputs, targets), continues in task.eval_steps():
            fed = feed_states(task.states, task.interface, inputs, outputs) if continues else inputs
            outputs = flat_outputs(module(*to_channels_last(compute.put(fed))))
            pairs.append((task.nest_outputs([to_numpy(value) for value in outputs]), to_numpy(targets)))
    return pairs


def evaluate(module: Callable[..., Any], task: CheckedTask, compute: ComputeDevice = CPU) -> float:
    """Return a torch module's score on the selection set. It helps to choose an epoch; it never judges a file."""
    return task.score(run_selection(module, task, compute))


def score_epoch(module: Callable[..., Any], task: CheckedTask, compute: ComputeDevice) -> EpochScore:
    """Return a module's score with what shows how much of it is noise."""
    pairs = run_selection(module, task, compute)
    value = task.score(pairs)
    samples = task.sample_scores(pairs)
    if samples is not None and is_mean(value, samples):
        return EpochScore(value, samples)
    rows = None if task.scores_rows else task.sample_statistics(pairs)
    return EpochScore(value, np.empty(0) if rows is None else rows)


class EpochChoice:
    """The choice so far.

    Args:
        task: Has the score.
    """

    def __init__(self, task: CheckedTask) -> None:
        self.task = task
        self.best: EpochScore | None = None

    def takes(self, score: EpochScore) -> bool:
        """Tell whether an epoch takes the place of the one that was kept so far.

        Args:
            score: Of the epoch, which is later than all others.
        """
        best = self.best
        if best is None or self.task.is_as_good(score.value, best.value):
            self.best = score
            return True
        return not self._is_worse(best, score)

    def _is_worse(self, best: EpochScore, score: EpochScore) -> bool:
        """Tell whether an epoch's score is below the best one by more than noise (95 %); without rows, below it."""
        direction = self.task.score_direction
        if not score.rows.size or best.rows.shape != score.rows.shape:
            return True
        if score.rows.ndim == 1:
            return mean_drop_interval(best.rows, score.rows, direction).low > 0
        return sums_drop_interval(best.rows, score.rows, self.task.score_statistics, direction).low > 0

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        if self.best is None:
            return {}
        return {"value": torch.tensor(self.best.value, dtype=torch.float64), "rows": torch.from_numpy(self.best.rows)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue from what ``tensors`` returned."""
        if tensors:
            self.best = EpochScore(float(tensors["value"]), tensors["rows"].numpy())
