"""Which layers become two: the rule by which low rank enters a search, and the layers for which it pays when timed.

In: what each layer would become (``LowRankTable``) and how long both forms take. Out: the factors taken, and what they
save.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from edgeopt.records.low_rank import Factorization, LowRankTable

ALLOWED_LOSS_RATIOS = (0.02, 0.1)
"""Squared error of a layer's output over its variance that a candidate allows each layer; training makes up for it."""
MIN_SAVED_RATIO = 0.25
"""A candidate is trained only where its pairs save this share of the network's parameters: pruning is closed to within
an eighth of the smallest size (``plan.CLOSE_ENOUGH``), and low rank has to be worth another training beside it."""
MAX_PAIR_TIME_RATIO = 1.03
"""A pair, which is always smaller, pays where it takes at most this share of its layer's time: within 3 % repeated
timings of one layer differ."""

LayerTimes = Mapping[str, tuple[float, float]]
"""Weight to the times of the layer and of its pair, in the same unit."""


class LowRankDecision(NamedTuple):
    """The layers that become two at one allowed loss, and the share of all parameters that this saves."""

    layers: dict[str, Factorization]
    saved_ratio: float
    kept: int
    """Layers whose pair is smaller but slower: they keep their form."""

    @property
    def worth_it(self) -> bool:
        """Whether so much is saved that a training is worth it."""
        return self.saved_ratio >= MIN_SAVED_RATIO


def choose_layers(table: LowRankTable, loss: int, times: LayerTimes | None) -> LowRankDecision:
    """Take the pairs that are smaller, and those alone that are not slower where times are known.

    Args:
        table: What each layer would become.
        loss: Which of the table's losses is allowed.
        times: Of the layers of this loss; None before anything was timed.
    """
    layers: dict[str, Factorization] = {}
    saved = kept = 0
    for layer in table.layers:
        choice = layer.choices[loss]
        if choice is None:
            continue
        if times is not None:
            whole, pair = times.get(layer.weight, (0.0, 0.0))
            if not 0 < pair <= MAX_PAIR_TIME_RATIO * whole:
                kept += 1
                continue
        layers[layer.weight] = choice.factor
        saved += layer.parameters - choice.parameters
    return LowRankDecision(layers, saved / table.parameters, kept)
