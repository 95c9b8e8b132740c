"""Choose among trials: the winner, the limits that bind, the Pareto front, and advice if nothing keeps the budget.

Every trial and the budget go in, a ``Choice`` comes out.
"""

from __future__ import annotations

import math

from edgeopt.records.budget import Budget, Limit
from edgeopt.records.choice import Choice
from edgeopt.records.measurement import DeviceInfo
from edgeopt.records.recipe import Float16, QuantizeStep
from edgeopt.records.sparsity import SparsityCurve
from edgeopt.records.trial import Measured, Score, Trial
from edgeopt.select.advice import explain, list_near_misses
from edgeopt.select.judged import JudgedTrial
from edgeopt.select.limits import (
    find_float_counterpart,
    judge_limits,
    judge_trial,
    latency_interval,
    measured_size,
    replaces,
)
from edgeopt.select.preference import preferred, rivals
from edgeopt.statistics import Interval, comparison_ratio


def choose(
    trials: tuple[Trial, ...],
    budget: Budget,
    *,
    baseline_number: int = 0,
    task: str,
    target: str,
    device: DeviceInfo,
    proven_on_target: bool,
    seconds: dict[str, float],
    notes: tuple[str, ...] = (),
    sparsity: SparsityCurve | None = None,
) -> Choice:
    """Choose the smallest trial that keeps every limit, unless one of about its size is quicker.

    ``edgeopt.select.preference`` says what that means, and which trial wins if ``budget.prefer`` asks for another
    order. A trial that the A/B finds slower than the baseline cannot win while the baseline itself keeps the limits. On
    a stand-in this does not bar int8 and float16 (see ``limits.pays``). The baseline may win. An int8 trial is replaced
    by its variant with a float prefix if that is faster by more than it is larger.

    Args:
        trials: Every trial of the build, failed ones too.
        budget: The limits; None in it is waived.
        baseline_number: The trial that the others are compared with.
        task: The task's name.
        target: The profile's name.
        device: The device that the trials were measured on.
        proven_on_target: False if the device only stands in for the target.
        seconds: Stage to time, for the report.
        notes: Things that the search did not try, and why.
        sparsity: Loss against the share of zeros, of the network that zeros were tried on.

    Returns:
        The choice. If nothing keeps the limits, ``winner`` is None and ``infeasible`` says why.
    """
    judged = _judge_all(trials, budget, baseline_number, proven_on_target)
    winner = _winner(judged, baseline_number, budget)
    infeasible = None
    if winner is None:
        infeasible = explain([(trial.number, trial.findings) for trial in judged])
    return Choice(
        task=task,
        target=target,
        device=device,
        proven_on_target=proven_on_target,
        budget=budget,
        trials=trials,
        verdicts=tuple(trial.verdict for trial in judged),
        winner=winner.number if winner else None,
        binding=infeasible.binding if infeasible else _binding(judged, winner, baseline_number),
        pareto_front=tuple(trial.number for trial in judged if not _is_beaten(trial, judged)),
        near_misses=list_near_misses(judged, winner) if winner else (),
        infeasible=infeasible,
        test=None,
        seconds=seconds,
        notes=notes,
        sparsity=sparsity,
    )


def contenders(
    trials: tuple[Trial, ...], budget: Budget, *, baseline_number: int = 0, proven_on_target: bool
) -> list[int]:
    """Return the trials whose A/Bs matter: the winner, smaller ones that keep every limit but may not win, and rivals.

    Args:
        trials: Every trial so far, failed ones too.
        budget: The limits.
        baseline_number: The trial that the others are compared with.
        proven_on_target: False if the device only stands in for the target.

    Returns:
        Numbers of trials, the winner's first; empty if nothing keeps the limits.
    """
    judged = _judge_all(trials, budget, baseline_number, proven_on_target)
    winner = _winner(judged, baseline_number, budget)
    if winner is None:
        return []
    barred = [
        trial.number
        for trial in judged
        if trial.keeps_limits and not trial.verdict.pays and trial.size_bytes < winner.size_bytes
    ]
    near = rivals([trial for trial in _may_win(judged, baseline_number) if trial.keeps_limits], budget.prefer)
    return [winner.number, *barred, *(trial.number for trial in near if trial is not winner)]


def _judge_all(
    trials: tuple[Trial, ...], budget: Budget, baseline_number: int, proven_on_target: bool
) -> list[JudgedTrial]:
    return [
        _judge(trial, trial.outcome, budget, baseline_number, proven_on_target, trials)
        for trial in trials
        if isinstance(trial.outcome, Measured)
    ]


def _judge(
    trial: Trial,
    outcome: Measured,
    budget: Budget,
    baseline_number: int,
    proven_on_target: bool,
    trials: tuple[Trial, ...],
) -> JudgedTrial:
    memory, parent = outcome.measurement.memory, outcome.against_parent
    counterpart, replaced = find_float_counterpart(trial, trials), _replaced(outcome, budget, trials)
    findings = tuple(judge_limits(outcome, budget))
    origins = [counterpart.number] if counterpart else []
    origins += [parent.trial] if parent else []
    return JudgedTrial(
        number=trial.number,
        size_bytes=measured_size(outcome.artifact, budget),
        latency_ms=latency_interval(outcome.measurement, budget.latency_percentile).value,
        memory_bytes=math.inf if memory is None else memory.peak_bytes,
        quality=_quality(outcome.score),
        time_ratio=_time_ratio(outcome, is_baseline=trial.number == baseline_number),
        form=None if proven_on_target else _form_of(trial),
        findings=findings,
        verdict=judge_trial(trial, outcome, findings, proven_on_target=proven_on_target),
        origins=frozenset(origins),
        replaced=replaced,
    )


def _form_of(trial: Trial) -> tuple[str, ...]:
    """Return the steps that decide with which kernels a file computes."""
    return tuple(type(one).__name__ for one in trial.recipe.graph_steps if isinstance(one, QuantizeStep | Float16))


def _time_ratio(outcome: Measured, *, is_baseline: bool) -> Interval | None:
    if outcome.against_baseline is not None:
        return comparison_ratio(outcome.against_baseline)
    return Interval(1.0, 1.0, 1.0) if is_baseline else None


def _quality(score: Score) -> float:
    if math.isnan(score.value):
        return -math.inf
    return score.value if score.direction == "higher" else -score.value


def _replaced(outcome: Measured, budget: Budget, trials: tuple[Trial, ...]) -> int | None:
    """Return the number of the full int8 trial that a trial with a float prefix replaces, or None."""
    against = outcome.against_full_int8
    full_int8 = next((trial for trial in trials if against is not None and trial.number == against.trial), None)
    if full_int8 is None or not isinstance(full_int8.outcome, Measured):
        return None
    return full_int8.number if replaces(outcome, full_int8.outcome, budget) else None


def _may_win(trials: list[JudgedTrial], baseline_number: int) -> list[JudgedTrial]:
    """Leave out trials that are replaced, or slower than the baseline or an origin that could be shipped instead."""
    keeping = {trial.number for trial in trials if trial.keeps_limits}
    replaced = {trial.replaced for trial in trials if trial.keeps_limits and trial.verdict.pays}
    return [
        trial
        for trial in trials
        if trial.number not in replaced and (trial.verdict.pays or not keeping & {baseline_number, *trial.origins})
    ]


def _winner(trials: list[JudgedTrial], baseline_number: int, budget: Budget) -> JudgedTrial | None:
    return preferred([trial for trial in _may_win(trials, baseline_number) if trial.keeps_limits], budget.prefer)


def _binding(trials: list[JudgedTrial], winner: JudgedTrial | None, baseline_number: int) -> tuple[Limit, ...]:
    """Name the limits that keep the file from being smaller.

    First choice: each limit that, if it were the only one waived, would let a smaller trial win. Otherwise the limits
    that the next smaller trial misses together. If no smaller trial misses anything, the limit that the winner is
    closest to.
    """
    if winner is None:
        return ()
    smaller = [
        trial
        for trial in _may_win(trials, baseline_number)
        if trial.size_bytes < winner.size_bytes and not trial.keeps_limits
    ]
    only_one_missed = {next(iter(trial.missed)) for trial in smaller if len(trial.missed) == 1}
    if only_one_missed:
        return _in_order(only_one_missed)
    if smaller:
        return _in_order(max(smaller, key=lambda trial: trial.size_bytes).missed)
    tightest = max(winner.findings, key=lambda finding: finding.excess, default=None)
    return (tightest.limit,) if tightest else ()


def _in_order(limits: set[Limit] | frozenset[Limit]) -> tuple[Limit, ...]:
    order: tuple[Limit, ...] = ("latency", "throughput", "memory", "size", "score", "class", "flips")
    return tuple(limit for limit in order if limit in limits)


def _is_beaten(trial: JudgedTrial, trials: list[JudgedTrial]) -> bool:
    """Tell whether another trial is at least as good in every metric and better in one."""
    return any(
        all(other_cost <= cost for other_cost, cost in zip(other.costs, trial.costs, strict=True))
        and other.costs != trial.costs
        for other in trials
    )
