"""How many channels each group keeps so that a network has so few parameters, or takes so little time, or both.

In: a ``GroupTable`` (importance of every channel, shape of every parameter) and a ``Predictor`` of latencies. Out: an
``Allocation``. Two rules, in this order:

1. The limits asked for hold: on parameters, on latency.
2. The least importance is lost, of each group in relation to what stays (``solve.losses``). It is an estimate: where
   parameters are limited, of all choices that lose at most ``ESTIMATE_ERROR_RATIO`` more, the quickest is taken.

Where no latency could be measured, work stands for it, and channels go greedily: always from the group that loses least
importance for its share of parameters and work, at the widths reached so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from edgeopt.latency.predictor import Predictor
from edgeopt.planning.width_program import (
    Program,
    Solution,
    importance_costs,
    latency_costs,
    losses,
    options_of,
    weight_costs,
)
from edgeopt.records.groups import ChannelGroup, GroupTable, WeightShape
from edgeopt.records.latency import Allocation

MIN_WIDTH_RATIO = 0.5
"""No group goes below this share of the width that uniform pruning would give it: an importance that is estimated
before the training cannot tell that a layer is not needed at all."""
ESTIMATE_ERROR_RATIO = 0.1
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


def uniform_ratio(table: GroupTable, fits: Callable[[dict[str, int]], bool]) -> float:
    """Return the largest share of channels at which uniform pruning fits; 0 where none does."""
    low, high = 0.0, 1.0
    if fits(uniform_widths(table, high, 1)):
        return high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(uniform_widths(table, middle, 1)) else (low, middle)
    return low


def _work(tensor: WeightShape) -> int:
    """Return the work that each number of a tensor stands for, in multiply-accumulates for one sample."""
    return tensor.macs_per_weight + VALUE_COST * tensor.values_per_weight


def floors_of(table: GroupTable, fits: Callable[[dict[str, int]], bool], step: int) -> dict[str, int]:
    """Return the least width of every group that can lose channels, in a network that fits."""
    return uniform_widths(table, MIN_WIDTH_RATIO * uniform_ratio(table, fits), step)


def width_options(table: GroupTable, floors: Mapping[str, int], step: int) -> dict[str, list[int]]:
    """Return the widths that every group can choose from; a frozen one has no choice."""
    options = {group.name: [group.channels] for group in table.groups}
    return options | {group.name: options_of(group.channels, floors[group.name], step) for group in table.free}


def allocate(
    table: GroupTable,
    step: int,
    predictor: Predictor | None,
    *,
    max_parameters: float | None,
    max_latency_ratio: float | None,
) -> Allocation:
    """Return the widths of a network that keeps the limits, or as near as the floors allow.

    Args:
        table: Of the network that is pruned.
        step: Widths are multiples of it, or the full width.
        predictor: Of this network's latency (or that of the network it was pruned from); None counts work.
        max_parameters: None is no limit.
        max_latency_ratio: Of the original's latency, in the predictor's precision; None is no limit.
    """
    target = math.inf if max_parameters is None else max_parameters
    if predictor is None:
        return _plain(by_work(table, target, step), ())
    if any(group.name not in predictor.table.wholes[0].widths for group in table.groups):
        note = "the latency table has other groups of channels than this network"
        return _plain(by_work(table, target, step), (note,))
    limit = math.inf if max_latency_ratio is None else max_latency_ratio * predictor.original_ns
    found = _solve(table, predictor, step, target, limit)
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


def _solve(table: GroupTable, predictor: Predictor, step: int, target: float, limit_ns: float) -> Solution | None:
    """Return the choice that loses the least importance, or about that and is quicker; the quickest where none fits."""
    floors = floors_of(table, lambda widths: table.parameters(widths) <= target, step)
    if math.isinf(target):
        floors = floors_of(table, lambda widths: predictor.ns(table.widths(widths)) <= limit_ns, step)
    options = width_options(table, floors, step)
    parameters, latency = weight_costs(table, options), latency_costs(predictor, options)
    lost = importance_costs(table, options)
    if parameters is None:
        return None
    program = Program(options, sorted({*parameters.pairs, *latency.pairs}))
    limits = [one for one in ((parameters, target), (latency, limit_ns)) if not math.isinf(one[1])]
    best = program.solve(lost, limits)
    if best is None:
        return program.solve(latency, [one for one in limits if one[0] is not latency])
    if math.isinf(target):
        return best
    least = sum(lost.unary[group.name][options[group.name].index(best.widths[group.name])] for group in table.free)
    quick = program.solve(latency, [*limits, (lost, (1 + ESTIMATE_ERROR_RATIO) * float(least))])
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
    floors = floors_of(table, lambda widths: table.parameters(widths) <= target, step)
    lost = {group.name: losses(group) for group in table.free}
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
