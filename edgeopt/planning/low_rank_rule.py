"""Low-rank factorization: which layers become two, and whether that saves enough to try it in a search.

In: the pair that each layer would become (``LowRankTable``), and the times of layers and pairs. Out: the factorizations
to use and the parameters that they save.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from edgeopt.records.low_rank import Factorization, LowRankTable

ALLOWED_LOSS_RATIOS = (0.02, 0.1)
"""Squared error over variance of a layer's output that a candidate allows each layer; training recovers it."""
MIN_SAVED_RATIO = 0.25
"""A candidate is trained only if its pairs save at least this ratio of the network's parameters. Pruning ends within an
eighth of the smallest size (``edgeopt.planning.bisection.CLOSED_RANGE_RATIO``), so low rank must save clearly more."""
MAX_PAIR_TIME_RATIO = 1.03
"""A pair is always smaller; it is used if it takes at most this ratio of its layer's time, as repeated timings of one
layer differ by up to 3 %."""

LayerTimes = Mapping[str, tuple[float, float]]
"""Name of a layer's weight to the times of the layer and of its pair, in the same unit."""


class LowRankDecision(NamedTuple):
    """The layers that become two at one allowed loss, and the parameters that this saves."""

    layers: dict[str, Factorization]
    saved_ratio: float
    """Of all of the network's parameters."""
    slower_count: int
    """Layers that stay as they are because their pair is slower, or was not timed."""

    @property
    def is_worth_training(self) -> bool:
        """Whether enough is saved to train a candidate."""
        return self.saved_ratio >= MIN_SAVED_RATIO


def choose_layers(table: LowRankTable, loss_index: int, times: LayerTimes | None) -> LowRankDecision:
    """Choose the layers whose pair is smaller and, if times are given, not slower.

    Args:
        table: The pair that each layer would become.
        loss_index: Index of the allowed loss in ``table.losses``.
        times: Times of the layers and pairs of this loss; None before anything was timed.
    """
    layers: dict[str, Factorization] = {}
    saved = slower_count = 0
    for layer in table.layers:
        choice = layer.choices[loss_index]
        if choice is None:
            continue
        if times is not None:
            layer_time, pair_time = times.get(layer.weight, (0.0, 0.0))
            if not 0 < pair_time <= MAX_PAIR_TIME_RATIO * layer_time:
                slower_count += 1
                continue
        layers[layer.weight] = choice.factor
        saved += layer.parameters - choice.parameters
    return LowRankDecision(layers, saved / table.parameters, slower_count)
