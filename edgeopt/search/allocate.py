"""How many channels each group keeps so that a network has a given number of parameters.

In: a ``GroupTable`` (importance of every channel, shape of every parameter). Out: widths. Channels go greedily, always
from the group that loses least importance for each parameter saved, at the widths reached so far.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgeopt.records.groups import GroupTable

DEPTH_LIMIT = 0.5
"""No group goes below this share of the width that uniform pruning would give it: an importance that is estimated
before the training cannot tell that a layer is not needed at all."""


def count_parameters(table: GroupTable, widths: Mapping[str, int]) -> int:
    """Return the parameters at ``widths`` (group name to channels; groups not named keep all)."""
    full = {group.name: group.channels for group in table.groups}
    return sum(_elements(tensor.dims, {**full, **widths}) for tensor in table.tensors)


def _elements(dims: tuple, widths: Mapping[str, int]) -> int:  # type: ignore[type-arg]
    return math.prod(dim.fixed + sum(widths[name] * times for name, times in dim.groups.items()) for dim in dims)


def uniform_widths(table: GroupTable, ratio: float, step: int) -> dict[str, int]:
    """Return widths with the share ``ratio`` of every group's channels, rounded to multiples of ``step``."""
    return {
        group.name: min(group.channels, max(step, round(group.channels * ratio / step) * step))
        for group in table.groups
        if group.frozen_by is None
    }


def uniform_ratio(table: GroupTable, target: float) -> float:
    """Return the share of channels at which uniform pruning has ``target`` parameters, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        widths = {group.name: max(1, math.ceil(group.channels * middle)) for group in _prunable(table)}
        low, high = (middle, high) if count_parameters(table, widths) < target else (low, middle)
    return high


def _prunable(table: GroupTable) -> list:  # type: ignore[type-arg]
    return [group for group in table.groups if group.frozen_by is None]


def allocate(table: GroupTable, target: float, step: int) -> dict[str, int]:
    """Return the widths of the pruned network with at most ``target`` parameters, or as near as the floors allow.

    Args:
        table: Of the network that is pruned.
        target: Parameters to reach.
        step: Widths are multiples of it (or the full width).
    """
    floor_ratio = DEPTH_LIMIT * uniform_ratio(table, target)
    floors = {
        group.name: min(group.channels, max(step, math.ceil(group.channels * floor_ratio / step) * step))
        for group in _prunable(table)
    }
    lost = {group.name: _cumulated(group.importance) for group in _prunable(table)}
    widths = {group.name: group.channels for group in table.groups}
    current = count_parameters(table, widths)
    touching = {
        name: [tensor for tensor in table.tensors if any(name in dim.groups for dim in tensor.dims)] for name in floors
    }
    while current > target:
        best: tuple[float, str, int, int] | None = None
        for name, floor in floors.items():
            width = widths[name]
            smaller = (math.ceil(width / step) - 1) * step
            if smaller < floor:
                continue
            trial = {**widths, name: smaller}
            saved = sum(_elements(t.dims, widths) - _elements(t.dims, trial) for t in touching[name])
            full = len(lost[name]) - 1
            price = float(lost[name][full - smaller] - lost[name][full - width]) / max(saved, 1)
            if best is None or price < best[0]:
                best = (price, name, smaller, saved)
        if best is None:
            break
        widths[best[1]] = best[2]
        current -= best[3]
    return {group.name: widths[group.name] for group in _prunable(table) if widths[group.name] < group.channels}


def _cumulated(importance: tuple[float, ...]) -> NDArray[np.float64]:
    """Return what is lost with the n least important channels, n = 0 to all."""
    return np.concatenate([[0.0], np.cumsum(np.sort(np.asarray(importance, dtype=np.float64)))])
