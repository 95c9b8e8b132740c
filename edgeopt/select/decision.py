"""The decision itself: the winner, what binds, the front, and what would be enough where nothing keeps the budget."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeopt.records.budget import Budget, Limit
from edgeopt.records.choice import Choice, Verdict
from edgeopt.records.measurement import DeviceInfo
from edgeopt.records.sparsity import SparsityCurve
from edgeopt.records.trial import Measured, Trial
from edgeopt.select.advice import explain
from edgeopt.select.limits import LimitFinding, findings, float_counterpart, judge, latency, measured_size, replaces


@dataclass(frozen=True)
class JudgedTrial:
    """A measured trial with everything the decision looks at, computed once."""

    number: int
    size: int
    latency_ms: float
    """At the budget's percentile."""
    memory: float
    """Infinite where it is missing."""
    score: float
    """Minus infinity where it is not a number."""
    findings: tuple[LimitFinding, ...]
    verdict: Verdict
    origins: frozenset[int]
    """Numbers of the float32 trial of an int8 trial's network, and of the trial that a variant was made of."""
    stands_for: int | None
    """Number of the trial that makes way for it, because this one is faster by more than it is larger."""

    @property
    def keeps(self) -> bool:
        """Whether it keeps every limit."""
        return not self.verdict.misses

    @property
    def missed(self) -> frozenset[Limit]:
        """The names of the limits that it misses."""
        return frozenset(miss.limit for miss in self.verdict.misses)

    @property
    def costs(self) -> tuple[float, float, float, float]:
        """Size, latency, memory and negated score: less is better in each."""
        return (self.size, self.latency_ms, self.memory, -self.score)


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
    """Choose the smallest trial that keeps every limit; ties go to the faster, then to the better one.

    A trial that the A/B finds slower than the baseline cannot win as long as the baseline itself keeps the limits,
    except on a stand-in where the reason is the instruction set (see ``limits.pays``). The baseline may win. An int8
    file makes way for its form with first layers in float, where that is faster by more than it is larger.

    Args:
        trials: Every trial of the build, failed ones too.
        budget: The limits; None in it is waived.
        baseline_number: Which trial the others are compared with.
        task: The task's name.
        target: The profile's name.
        device: Where the trials were measured.
        proven_on_target: False where the device only stands in for the target.
        seconds: Stage to time, for the report.
        notes: What the search did not try, and why.
        sparsity: Loss against zeros of the network that zeros were tried on.

    Returns:
        The choice; ``winner`` is None and ``infeasible`` says why where nothing keeps the limits.
    """
    candidates = [
        _candidate(trial, trial.outcome, budget, proven_on_target, trials)
        for trial in trials
        if isinstance(trial.outcome, Measured)
    ]
    winner = _winner(candidates, baseline_number)
    infeasible = None
    if winner is None:
        infeasible = explain([(candidate.number, candidate.findings) for candidate in candidates])
    return Choice(
        task=task,
        target=target,
        device=device,
        proven_on_target=proven_on_target,
        budget=budget,
        trials=trials,
        verdicts=tuple(candidate.verdict for candidate in candidates),
        winner=winner.number if winner else None,
        binding=infeasible.binding if infeasible else _binding(candidates, winner, baseline_number),
        front=tuple(candidate.number for candidate in candidates if not _is_beaten(candidate, candidates)),
        infeasible=infeasible,
        test=None,
        seconds=seconds,
        notes=notes,
        sparsity=sparsity,
    )


def to_compare(choice: Choice) -> list[int]:
    """Return the trials whose A/Bs matter: the winner, and what is smaller and keeps every limit, but does not pay."""
    if choice.winner is None:
        return []
    sizes = {
        trial.number: measured_size(trial.outcome.artifact, choice.budget)
        for trial in choice.trials
        if isinstance(trial.outcome, Measured)
    }
    barred = [
        verdict.trial
        for verdict in choice.verdicts
        if not verdict.misses and not verdict.pays and sizes[verdict.trial] < sizes[choice.winner]
    ]
    return [choice.winner, *barred]


def _candidate(
    trial: Trial, outcome: Measured, budget: Budget, proven_on_target: bool, trials: tuple[Trial, ...]
) -> JudgedTrial:
    memory, parent, twin = outcome.measurement.memory, outcome.against_parent, float_counterpart(trial, trials)
    plain = next(
        (one for one in trials if outcome.against_full_int8 and one.number == outcome.against_full_int8.trial), None
    )
    better = plain is not None and isinstance(plain.outcome, Measured) and replaces(outcome, plain.outcome, budget)
    found = tuple(findings(outcome, budget))
    return JudgedTrial(
        number=trial.number,
        size=measured_size(outcome.artifact, budget),
        latency_ms=latency(outcome.measurement, budget.latency_percentile).value,
        memory=math.inf if memory is None else memory.peak_bytes,
        score=-math.inf if math.isnan(outcome.score.value) else outcome.score.value,
        findings=found,
        verdict=judge(trial, outcome, found, proven_on_target=proven_on_target),
        origins=frozenset(({twin.number} if twin else set()) | ({parent.trial} if parent else set())),
        stands_for=plain.number if plain is not None and better else None,
    )


def _may_win(candidates: list[JudgedTrial], baseline_number: int) -> list[JudgedTrial]:
    """Leave out what is slower than the baseline or its origins, or replaced, as long as those could be shipped."""
    keeping = {candidate.number for candidate in candidates if candidate.keeps}
    replaced = {candidate.stands_for for candidate in candidates if candidate.keeps and candidate.verdict.pays}
    return [
        candidate
        for candidate in candidates
        if candidate.number not in replaced
        and (candidate.verdict.pays or not keeping & {baseline_number, *candidate.origins})
    ]


def _winner(candidates: list[JudgedTrial], baseline_number: int) -> JudgedTrial | None:
    keeping = [candidate for candidate in _may_win(candidates, baseline_number) if candidate.keeps]
    return min(
        keeping,
        key=lambda candidate: (candidate.size, candidate.latency_ms, -candidate.score, candidate.number),
        default=None,
    )


def _binding(candidates: list[JudgedTrial], winner: JudgedTrial | None, baseline_number: int) -> tuple[Limit, ...]:
    """Name the limits that keep the file from being smaller.

    First choice: each limit that, waived alone, would let a smaller trial win. Else the limits that the next smaller
    trial misses together. Where no smaller trial misses anything, the limit in which the winner has least room.
    """
    if winner is None:
        return ()
    smaller = [c for c in _may_win(candidates, baseline_number) if c.size < winner.size and not c.keeps]
    alone = {next(iter(c.missed)) for c in smaller if len(c.missed) == 1}
    if alone:
        return _in_order(alone)
    if smaller:
        return _in_order(max(smaller, key=lambda c: c.size).missed)
    tightest = max(winner.findings, key=lambda finding: finding.excess, default=None)
    return (tightest.limit,) if tightest else ()


def _in_order(limits: set[Limit] | frozenset[Limit]) -> tuple[Limit, ...]:
    order: tuple[Limit, ...] = ("latency", "throughput", "memory", "size", "score")
    return tuple(limit for limit in order if limit in limits)


def _is_beaten(candidate: JudgedTrial, candidates: list[JudgedTrial]) -> bool:
    """Say whether some other trial is at least as good in everything and better in something."""
    return any(
        all(theirs <= ours for theirs, ours in zip(other.costs, candidate.costs, strict=True))
        and other.costs != candidate.costs
        for other in candidates
    )
