"""The losses of an epoch, each checked to be finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgeopt.errors import DivergedError


class LossCheck:
    """The losses of an epoch, each checked to be finite; on a GPU many at a time, so that it need not wait.

    Args:
        epoch: From 0.
        steps: After how many losses they are checked.
    """

    def __init__(self, epoch: int, steps: int) -> None:
        self.epoch = epoch
        self.steps = steps
        self.waiting: list[Tensor] = []
        self.values: list[float] = []

    def check(self, loss: Tensor) -> None:
        """Check a loss before its gradient changes anything, if every loss is checked."""
        if self.steps == 1:
            self._raise_unless_finite(loss.item(), len(self.values))

    def add(self, loss: Tensor) -> None:
        """Take the loss of a batch."""
        self.waiting.append(loss)
        if len(self.waiting) >= self.steps:
            self._read()

    def mean(self) -> float:
        """Return the mean of all losses."""
        self._read()
        return sum(self.values) / len(self.values)

    def _read(self) -> None:
        for value in torch.stack(self.waiting).tolist() if self.waiting else ():
            self._raise_unless_finite(value, len(self.values))
            self.values.append(value)
        self.waiting = []

    def _raise_unless_finite(self, value: float, index: int) -> None:
        """Raise DivergedError for a loss that is not finite."""
        if not math.isfinite(value):
            raise DivergedError(
                "distill",
                f"the loss became {value} in epoch {self.epoch + 1}, step {index + 1}; lower the learning rate.",
            )
