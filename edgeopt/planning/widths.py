"""How many channels each group keeps so that a network stays within limits on parameters, latency or both.

In: a ``GroupTable`` (importance of every channel, shape of every parameter) and a ``Predictor`` of latencies. Out: an
``Allocation``. Two rules, in this order:

1. The limits on parameters and latency hold.
2. The least importance is lost, each group's loss taken relative to what remains (``importance_losses`` in
   ``edgeopt.planning.width_program``). This is an estimate: if parameters are limited, the quickest of all choices that
   lose at most ``ESTIMATE_ERROR_RATIO`` more is used.

If no latency could be measured, work is counted instead, and channels are removed greedily: always from the group that
loses the least importance for the parameters and work saved, at the current widths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from edgeopt.latency.predictor import Predictor
from edgeopt.planning.width_program import (
    Costs,
    Solution,
    WidthProgram,
    branch_losses,
    importance_costs,
    importance_losses,
    latency_costs,
    list_widths,
    weight_costs,
)
from edgeopt.records.groups import Branch, ChannelGroup, GroupTable, WeightShape
from edgeopt.records.latency import Allocation

MIN_WIDTH_RATIO = 0.5
"""No group goes below this ratio of the width that uniform pruning would give it: importance is estimated before
training and can't show that a layer isn't needed at all."""
ESTIMATE_ERROR_RATIO = 0.1
UNREACHED_NOTE = "no widths allowed at this size are predicted to reach"
"""In the note of an allocation that misses the latency limit."""
NOT_SMALL_ENOUGH = "no widths allowed have as few parameters as asked: each group is as narrow as it may be"
BISECTION_STEPS = 40
TIME_WEIGHT = 0.3
NOTHING: Mapping[str, int] = {}
ACTIVATION_MACS = 30
"""Work of writing one activation, in multiply-accumulates: a 1-channel stem at full resolution takes as long as a
convolution with eight times its multiplications (measured, float32, one x86 core)."""


def group_step(group: ChannelGroup, step: int) -> int:
    """Return what a group's widths are multiples of, so that sizes of weights are multiples of a profile's step.

    A head or a group of a convolution has several channels itself: if these are a multiple of the step, any number of
    heads is. A few heads, experts or rows may become any number, because ``step`` would leave no choice. Kernels of
    convolutions work on blocks of channels, so their channels always keep the step.
    """
    is_few = group.channels <= step and (group.unit > 1 or not group.in_convolution)
    return 1 if is_few or group.unit >= step else step // math.gcd(step, group.unit)


def uniform_widths(table: GroupTable, ratio: float, step: int, least: Mapping[str, int] = NOTHING) -> dict[str, int]:
    """Return ``ratio`` of every group's channels, rounded up to multiples of its step.

    Args:
        table: The network.
        ratio: Of each group's channels, 0..1.
        step: Of the profile; see ``group_step``.
        least: The least width of some groups.
    """
    wanted = {group.name: max(group.channels * ratio, least.get(group.name, 1)) for group in table.free}
    return {group.name: _round_width(group, wanted[group.name], group_step(group, step)) for group in table.free}


def _round_width(group: ChannelGroup, width: float, step: int) -> int:
    return min(group.channels, max(1, math.ceil(width / step)) * step)


def uniform_ratio(
    table: GroupTable, fits: Callable[[dict[str, int]], bool], least: Mapping[str, int] = NOTHING
) -> float:
    """Return the largest ratio of channels at which uniform pruning fits; 0 if none does."""
    low, high = 0.0, 1.0
    if fits(uniform_widths(table, high, 1, least)):
        return high
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(uniform_widths(table, middle, 1, least)) else (low, middle)
    return low


def uniform_widths_of_size(
    table: GroupTable, max_parameters: float, step: int, least: Mapping[str, int] = NOTHING
) -> dict[str, int]:
    """Return all widths of the largest uniform cut within a number of parameters, or of the smallest one there is.

    Args:
        table: The network to prune.
        max_parameters: Of the cut network.
        step: Of the profile; see ``group_step``.
        least: The least width of some groups.
    """

    def cut(ratio: float) -> dict[str, int]:
        return table.widths(uniform_widths(table, ratio, step, least))

    low, high = 0.0, 1.0
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if table.parameters(cut(middle)) <= max_parameters else (low, middle)
    return cut(low)


def _work_per_weight(tensor: WeightShape) -> float:
    """Return the work for each weight of a tensor, in multiply-accumulates for one sample."""
    return tensor.macs_per_weight + ACTIVATION_MACS * tensor.values_per_weight


def smallest_widths(
    table: GroupTable, fits: Callable[[dict[str, int]], bool], step: int, least: Mapping[str, int] = NOTHING
) -> dict[str, int]:
    """Return the smallest allowed width of every group that can lose channels, in a network that fits."""
    return uniform_widths(table, MIN_WIDTH_RATIO * uniform_ratio(table, fits, least), step, least)


def width_options(table: GroupTable, floors: Mapping[str, int], step: int) -> dict[str, list[int]]:
    """Return the widths that every group can choose from; a frozen group has no choice."""
    options = {group.name: [group.channels] for group in table.groups}
    return options | {
        group.name: list_widths(group.channels, floors[group.name], group_step(group, step)) for group in table.free
    }


def removable_branches(
    table: GroupTable, options: Mapping[str, Sequence[int]], protected: Collection[str] = ()
) -> list[Branch]:
    """Return the branches that may be left out: what that costs is known, and is not more than all else together.

    Args:
        table: The network.
        options: The widths that every group can choose from.
        protected: Names of branches that have to stay.
    """
    known, lost = branch_losses(table), importance_costs(table, options)
    most = sum(float(values.max()) for values in lost.unary.values())
    return [
        branch for branch in table.branches if branch.name not in protected and known.get(branch.name, math.inf) <= most
    ]


def groups_left_out(original: GroupTable, table: GroupTable) -> set[str] | None:
    """Return the groups that a network lost with branches; None if its groups are others than the original's.

    Args:
        original: The network before anything was cut.
        table: The same network after it.
    """
    full, widths = original.widths(), table.widths()
    missing = full.keys() - widths.keys()
    inside = [{*branch.groups, *branch.frozen_groups} for branch in original.branches]
    explained = {name for names in inside if names <= missing for name in names}
    same = all(width <= full.get(name, -1) for name, width in widths.items())
    return missing if same and missing == explained else None


def allocate(
    table: GroupTable,
    step: int,
    predictor: Predictor | None,
    *,
    max_parameters: float | None,
    max_latency_ratio: float | None,
    least: Mapping[str, int] = NOTHING,
    left_out: Collection[str] | None = (),
    protected: Collection[str] = (),
) -> Allocation:
    """Return the widths of a network that keeps the limits, or comes as close as the smallest widths allow.

    Args:
        table: The network to prune.
        step: Of the profile: widths are multiples of it as ``group_step`` says, or the full width.
        predictor: Predicts the latency of this network, or of the one that it was pruned from; None counts work.
        max_parameters: None for no limit.
        max_latency_ratio: Latency over the original's, in the predictor's precision; None for no limit.
        least: The least width of some groups, as ``edgeopt.planning.width_rules`` says.
        left_out: Groups of the predictor's network that this one lost with branches; None if its groups are others.
        protected: Names of branches that have to stay.
    """
    parameter_limit = math.inf if max_parameters is None else max_parameters
    if predictor is None:
        return _without_proof(allocate_by_work(table, parameter_limit, step, least), ())
    timed = predictor.table.wholes[0].widths.keys()
    if left_out is None or timed != table.widths().keys() | set(left_out):
        note = "the latency table is for other groups of channels than this network's: work was counted instead"
        return _without_proof(allocate_by_work(table, parameter_limit, step, least), (note,))
    limit_ns = math.inf if max_latency_ratio is None else max_latency_ratio * predictor.original_ns
    solution = _solve(table, predictor, step, parameter_limit, limit_ns, least, protected)
    if isinstance(solution, str):
        note = f"{solution}: work was counted instead of latency"
        return _without_proof(allocate_by_work(table, parameter_limit, step, least), (note,))
    full, ratio = table.widths(), predictor.ratio(solution.widths)
    widths = {name: width for name, width in solution.widths.items() if width < full.get(name, 0)}
    has_rules = any(least.get(group.name, 1) > group.least for group in table.free)
    notes = [NOT_SMALL_ENOUGH] if table.parameters(solution.widths) > parameter_limit else []
    if max_latency_ratio is not None and solution.misses_latency:
        notes.append(unreached_note(predictor.table.precision, max_latency_ratio, ratio, has_rules=has_rules))
    if gone := table.left_out(widths):
        notes.append(f"left out whole, because that costs less by measured loss: {', '.join(one.name for one in gone)}")
    return Allocation(
        widths=widths,
        gap_ratio=solution.gap_ratio,
        latency_ratio=ratio,
        notes=tuple(notes),
    )


def unreached_note(precision: str, asked_ratio: float, found_ratio: float, *, has_rules: bool) -> str:
    """Return what the report says about a latency limit that no allowed widths reach.

    Args:
        precision: Of the files that were timed.
        asked_ratio: The limit over the original's latency.
        found_ratio: The predicted latency of the quickest widths, over the original's.
        has_rules: Whether the user asked for least widths.
    """
    rules = ", nor of what keep and min_widths ask for" if has_rules else ""
    return (
        f"{UNREACHED_NOTE} the latency limit: it is {asked_ratio:.3f} of the original's latency in {precision}, and "
        f"the quickest take {found_ratio:.3f}, because no group keeps less than half of its width in uniform "
        f"pruning{rules}. Smaller sizes allow narrower groups; if none of them is quick enough, raise the limit"
    )


def _without_proof(widths: dict[str, int], notes: tuple[str, ...]) -> Allocation:
    return Allocation(widths=widths, gap_ratio=None, latency_ratio=None, notes=notes)


def _solve(
    table: GroupTable,
    predictor: Predictor,
    step: int,
    parameter_limit: float,
    limit_ns: float,
    least: Mapping[str, int],
    protected: Collection[str],
) -> Solution | str:
    """Return the choice that loses the least importance, or a quicker one that loses about as little.

    If none keeps the latency limit, return the quickest one within the limit on parameters; if none keeps that either,
    the narrowest one. If the costs cannot be written as a program or the solver gives up, return the reason.
    """
    floors = smallest_widths(table, lambda widths: table.parameters(widths) <= parameter_limit, step, least)
    if math.isinf(parameter_limit):
        before = dict.fromkeys(predictor.table.wholes[0].widths, 0)
        floors = smallest_widths(
            table, lambda widths: predictor.ns(before | table.widths(widths)) <= limit_ns, step, least
        )
    options = width_options(table, floors, step)
    narrowest = {name: min(widths) for name, widths in options.items()}
    branches = removable_branches(table, options, protected)
    options |= {name: [0, *options[name]] for branch in branches for name in branch.groups}
    gone = predictor.table.wholes[0].widths.keys() - options.keys()
    options |= {name: [0] for name in gone}  # of branches that were left out before
    parameters, latency = weight_costs(table, options), latency_costs(predictor, options)
    lost = importance_costs(table, options)
    if parameters is None:
        return "a tensor has more than two dimensions whose channels can go"
    program = WidthProgram(options, sorted({*parameters.pairs, *latency.pairs}), [branch.groups for branch in branches])
    limits = [limit for limit in ((parameters, parameter_limit), (latency, limit_ns)) if not math.isinf(limit[1])]
    best = program.solve(lost, limits)
    if best is None:
        # the quickest of all is without any branch, which the score hardly survives
        no_branch = [(_count_zeros(options, branches), 0.5)] if branches else []
        quickest = program.solve(latency, [*(limit for limit in limits if limit[0] is not latency), *no_branch])
        if quickest is not None:
            return quickest._replace(misses_latency=True)
        narrowest |= dict.fromkeys(gone, 0)
        if table.parameters(narrowest) <= parameter_limit:
            return "the solver found no widths within its limit on work"
        return Solution(narrowest, 0.0, predictor.ns(narrowest) > limit_ns)
    if math.isinf(parameter_limit):
        return best
    lowest = sum(lost.unary[group.name][options[group.name].index(best.widths[group.name])] for group in table.free)
    quickest = program.solve(latency, [*limits, (lost, (1 + ESTIMATE_ERROR_RATIO) * float(lowest))])
    return best if quickest is None else Solution(quickest.widths, best.gap_ratio)


def _count_zeros(options: Mapping[str, Sequence[int]], branches: Sequence[Branch]) -> Costs:
    """Return the number of branches that are left out, as a cost."""
    costs = Costs(options)
    for branch in branches:
        costs.add(branch.groups[0], np.array([width == 0 for width in options[branch.groups[0]]], dtype=np.float64))
    return costs


def allocate_by_work(
    table: GroupTable,
    max_parameters: float,
    step: int,
    least: Mapping[str, int] = NOTHING,
    time_weight: float = TIME_WEIGHT,
) -> dict[str, int]:
    """Return widths chosen greedily, with work instead of latency.

    Args:
        table: The network to prune.
        max_parameters: Parameters to reach.
        step: Of the profile: widths are multiples of it as ``group_step`` says, or the full width.
        least: The least width of some groups.
        time_weight: Value of saving a ratio of the work, over that of saving the same ratio of the parameters.

    Returns:
        Group name to width, for the groups that lose channels.
    """
    floors = smallest_widths(table, lambda widths: table.parameters(widths) <= max_parameters, step, least)
    steps = {group.name: group_step(group, step) for group in table.free}
    losses = {group.name: importance_losses(group) for group in table.free}
    tensors = {
        name: [tensor for tensor in table.tensors if any(name in dim.per_channel for dim in tensor.dims)]
        for name in floors
    }
    full = table.widths()
    widths = dict(full)
    current = parameters = table.parameters(widths)
    work = max(1, sum(tensor.numbers(widths) * _work_per_weight(tensor) for tensor in table.tensors))
    while current > max_parameters:
        best = (math.inf, "", 0, 0)
        for name, floor in floors.items():
            smaller = (math.ceil(widths[name] / steps[name]) - 1) * steps[name]
            if smaller < floor:
                continue
            narrow = widths | {name: smaller}
            saved, saved_work = 0, 0.0
            for tensor in tensors[name]:
                fewer = tensor.numbers(widths) - tensor.numbers(narrow)
                saved += fewer
                saved_work += fewer * _work_per_weight(tensor)
            gain = saved / parameters + time_weight * saved_work / work
            loss = float(losses[name][full[name] - smaller] - losses[name][full[name] - widths[name]])
            best = min(best, (loss / gain if gain else math.inf, name, smaller, saved))
        _, name, smaller, saved = best
        if not name:
            break
        widths[name] = smaller
        current -= saved
    return {name: width for name, width in widths.items() if width < full[name]}
