"""``LowRankTable``: the factorizations of each large layer of a network, at several losses of its output."""

from __future__ import annotations

import math
from typing import Literal

from edgeopt.records.base import Record

FactorizationForm = Literal["pointwise", "separable"]


class Factorization(Record, frozen=True, kw_only=True):
    """How one layer becomes two; ``edgeopt.passes.low_rank.layers`` draws the forms."""

    rank: int
    """Number of channels between the two."""
    form: FactorizationForm


class LowRankChoice(Record, frozen=True, kw_only=True):
    """The smallest pair of layers that loses no more of the output than allowed."""

    factor: Factorization
    output_loss_ratio: float
    """Squared error of the layer's output over its variance, measured on training batches."""
    parameters: int
    """Of both weights together."""


class LowRankLayer(Record, frozen=True, kw_only=True):
    """A layer that can be factorized, with everything needed to time it."""

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
    """One for each allowed loss; None if two layers would not be smaller."""

    @property
    def parameters(self) -> int:
        """The number of values in its weight."""
        return math.prod(self.shape)


class LowRankTable(Record, frozen=True, kw_only=True):
    """All layers of a network that can be factorized."""

    parameters: int
    """Of the whole network."""
    losses: tuple[float, ...]
    """The allowed losses of a layer's output, 0..1."""
    layers: tuple[LowRankLayer, ...]
