"""``LowRankTable``: what each large layer of a network would become as two, at several losses of its output."""

from __future__ import annotations

import math
from typing import Literal

from edgeopt.records.base import Record

FactorizationForm = Literal["pointwise", "separable"]


class Factorization(Record, frozen=True, kw_only=True):
    """How one layer becomes two; ``edgeopt.passes.low_rank.layers`` draws the forms."""

    rank: int
    """Channels between the two."""
    form: FactorizationForm


class LowRankChoice(Record, frozen=True, kw_only=True):
    """The smallest pair of layers that loses no more of an output than was allowed."""

    factor: Factorization
    output_loss_ratio: float
    """Squared error of the layer's output over its variance, measured on training batches."""
    parameters: int
    """Of the two weights."""


class LowRankLayer(Record, frozen=True, kw_only=True):
    """A layer that can become two, with all that it takes to time it."""

    weight: str
    """Name of its weight."""
    shape: tuple[int, ...]
    """Of the weight: outputs, inputs, kernel."""
    input_shape: tuple[int, ...]
    """Of one sample."""
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    choices: tuple[LowRankChoice | None, ...]
    """One for each allowed loss; None where two layers would not be smaller."""

    @property
    def parameters(self) -> int:
        """How many numbers its weight holds."""
        return math.prod(self.shape)


class LowRankTable(Record, frozen=True, kw_only=True):
    """All layers of a network that can become two."""

    parameters: int
    """Of the whole network."""
    losses: tuple[float, ...]
    """What of a layer's output may be lost, 0..1."""
    layers: tuple[LowRankLayer, ...]
