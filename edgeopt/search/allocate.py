"""How many channels each group keeps so that a network has a given number of parameters.

In: a ``GroupTable`` (importance of every channel, shape of every parameter). Out: widths. Channels go greedily, always
from the group that loses least importance for each parameter saved, at the widths reached so far.
"""

from __future__ import annotations

import math

import numpy as np

from edgeopt.records.groups import ChannelGroup, GroupTable, WeightShape

DEPTH_LIMIT = 0.5
"""No group goes below this share of the width that uniform pruning would give it: an importance that is estimated
before the training cannot tell that a layer is not needed at all."""
BISECTIONS = 40
TIME_WEIGHT = 0.3
VALUE_COST = 30
"""Work of writing one activation, in multiply-accumulates: a 1-channel stem at full resolution takes as long as a
convolution with eight times its multiplications (measured, float32, one x86 core)."""


def uniform_widths(table: GroupTable, ratio: float, step: int) -> dict[str, int]:
    """Return widths with the share ``ratio`` of every group's channels, rounded up to multiples of ``step``."""
    return {group.name: _rounded(group, group.channels * ratio, step) for group in table.free}


def _rounded(group: ChannelGroup, width: float, step: int) -> int:
    return min(group.channels, max(1, math.ceil(width / step)) * step)


def uniform_ratio(table: GroupTable, target: float) -> float:
    """Return the share of channels at which uniform pruning leaves ``target`` parameters."""
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        enough = table.parameters(uniform_widths(table, middle, 1)) >= target
        low, high = (low, middle) if enough else (middle, high)
    return high


def _work(tensor: WeightShape) -> int:
    """Return the work that each number of a tensor stands for, in multiply-accumulates for one sample."""
    return tensor.macs_per_weight + VALUE_COST * tensor.values_per_weight


def allocate(table: GroupTable, target: float, step: int, time_weight: float = TIME_WEIGHT) -> dict[str, int]:
    """Return the widths of a network with at most ``target`` parameters, or as near as the floors allow.

    Args:
        table: Of the network that is pruned.
        target: Parameters to reach.
        step: Widths are multiples of it, or the full width.
        time_weight: What a share of the work is worth beside the same share of the parameters.

    Returns:
        Group name to width, for the groups that lose channels.
    """
    floors = uniform_widths(table, DEPTH_LIMIT * uniform_ratio(table, target), step)
    lost = {group.name: np.concatenate([[0.0], np.cumsum(np.sort(group.importance))]) for group in table.free}
    touched = {
        name: [tensor for tensor in table.tensors if any(name in dim.per_channel for dim in tensor.dims)]
        for name in floors
    }
    full = table.widths()
    widths = dict(full)
    current = parameters = table.parameters(widths)
    work = max(1, sum(tensor.numbers(widths) * _work(tensor) for tensor in table.tensors))
    while current > target:
        best = (math.inf, "", 0, 0)
        for name, floor in floors.items():
            smaller = (math.ceil(widths[name] / step) - 1) * step
            if smaller < floor:
                continue
            narrow = widths | {name: smaller}
            saved = worked = 0
            for tensor in touched[name]:
                fewer = tensor.numbers(widths) - tensor.numbers(narrow)
                saved += fewer
                worked += fewer * _work(tensor)
            gain = saved / parameters + time_weight * worked / work
            loss = float(lost[name][full[name] - smaller] - lost[name][full[name] - widths[name]])
            best = min(best, (loss / gain if gain else math.inf, name, smaller, saved))
        _, name, smaller, saved = best
        if not name:
            break
        widths[name] = smaller
        current -= saved
    return {name: width for name, width in widths.items() if width < full[name]}
