"""How many channels each group keeps so that a network has a given number of parameters.

In: a ``GroupTable`` (importance of every channel, shape of every parameter) and a ``Predictor`` of latencies. Out: an
``Allocation``. Two rules, in this order:

1. The parameters asked for and, where latency has a limit, that limit hold.
2. The least importance is lost. Importance is an estimate: of all choices that lose at most ``ESTIMATE_ERROR`` more
   than the least, the quickest is taken.

Where no latency could be measured, work stands for it, and channels go greedily: always from the group that loses least
importance for its share of parameters and work, at the widths reached so far.
"""

from __future__ import annotations

import math

import numpy as np

from edgeopt.records.groups import ChannelGroup, GroupTable, WeightShape
from edgeopt.records.latency import Allocation
from edgeopt.search.predict import Predictor
from edgeopt.search.solve import Costs, Program, Solution, latency_costs, options_of, parameter_costs

DEPTH_LIMIT = 0.5
"""No group goes below this share of the width that uniform pruning would give it: an importance that is estimated
before the training cannot tell that a layer is not needed at all."""
ESTIMATE_ERROR = 0.1
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


def floors_of(table: GroupTable, target: float, step: int) -> dict[str, int]:
    """Return the least width of every group that can lose channels, in a network of ``target`` parameters."""
    return uniform_widths(table, DEPTH_LIMIT * uniform_ratio(table, target), step)


def allocate(
    table: GroupTable, target: float, step: int, predictor: Predictor | None, max_latency_ratio: float | None = None
) -> Allocation:
    """Return the widths of a network with at most ``target`` parameters, or as near as the floors allow.

    Args:
        table: Of the network that is pruned.
        target: Parameters to reach.
        step: Widths are multiples of it, or the full width.
        predictor: Of this network's latency (or that of the network it was pruned from); None counts work.
        max_latency_ratio: Of the original's latency, in the predictor's precision; None is no limit.
    """
    if predictor is None:
        return _plain(by_work(table, target, step), ())
    if any(group.name not in predictor.table.wholes[0].widths for group in table.groups):
        return _plain(
            by_work(table, target, step), ("the latency table has other groups of channels than this network",)
        )
    floors = floors_of(table, target, step)
    options = {group.name: [group.channels] for group in table.groups}
    options |= {group.name: options_of(group.channels, floors[group.name], step) for group in table.free}
    limit = None if max_latency_ratio is None else max_latency_ratio * predictor.original_ns
    found = _solve(table, predictor, options, target, limit)
    if found is None:
        note = "no widths above their floors have so few parameters: work was counted instead of latency"
        return _plain(by_work(table, target, step), (note,))
    full = table.widths()
    return Allocation(
        widths={name: width for name, width in found.widths.items() if width < full[name]},
        gap_ratio=found.gap_ratio,
        latency_ratio=predictor.ratio(found.widths),
        notes=(),
    )


def _plain(widths: dict[str, int], notes: tuple[str, ...]) -> Allocation:
    return Allocation(widths=widths, gap_ratio=None, latency_ratio=None, notes=notes)


def _solve(
    table: GroupTable, predictor: Predictor, options: dict[str, list[int]], target: float, limit_ns: float | None
) -> Solution | None:
    """Return the quickest of the choices that lose about the least importance; of all, where none keeps the limit."""
    parameters, latency, lost = parameter_costs(table, options), latency_costs(predictor, options), Costs(options)
    if parameters is None:
        return None
    for group in table.free:
        sums = np.concatenate([[0.0], np.cumsum(np.sort(group.importance))])
        lost.add(group.name, np.array([sums[group.channels - width] for width in options[group.name]]))
    program = Program(options, sorted({*parameters.pairs, *latency.pairs}))
    limits = [(parameters, target), *([] if limit_ns is None else [(latency, limit_ns)])]
    best = program.solve(lost, limits)
    if best is None:
        return program.solve(latency, [(parameters, target)])
    least = sum(lost.unary[group.name][options[group.name].index(best.widths[group.name])] for group in table.free)
    quick = program.solve(latency, [*limits, (lost, (1 + ESTIMATE_ERROR) * float(least))])
    return best if quick is None else Solution(quick.widths, best.gap_ratio)


def by_work(table: GroupTable, target: float, step: int, time_weight: float = TIME_WEIGHT) -> dict[str, int]:
    """Return widths chosen greedily, with work in the place of latency.

    Args:
        table: Of the network that is pruned.
        target: Parameters to reach.
        step: Widths are multiples of it, or the full width.
        time_weight: What a share of the work is worth beside the same share of the parameters.

    Returns:
        Group name to width, for the groups that lose channels.
    """
    floors = floors_of(table, target, step)
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
