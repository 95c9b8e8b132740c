"""What would be enough where nothing keeps the budget: the nearest trial, and the limits that would let one through.

The numbers in the text are limits to set, so they are rounded outward: a budget that takes them is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from edgeopt.records.budget import Limit
from edgeopt.records.choice import Infeasible
from edgeopt.select.limits import LimitFinding

DIGITS = 3
"""Significant digits of a limit that is proposed."""

Judged = tuple[int, Sequence[LimitFinding]]
"""A trial's number and its findings."""


def explain(judged: Sequence[Judged]) -> Infeasible:
    """Name the nearest trial, the limits it misses, and what would be enough.

    Args:
        judged: Every measured trial, each missing at least one limit.
    """
    if not judged:
        advice = "No candidate could be measured; the reasons stand beside the failed trials."
        return Infeasible(binding=(), nearest=None, advice=advice)
    number, found = min(judged, key=lambda trial: _distance(trial[1]))
    missed = _missed(found)
    return Infeasible(
        binding=tuple(dict.fromkeys(finding.limit for finding in missed)),
        nearest=number,
        advice=_advice(judged, number),
    )


def _missed(found: Iterable[LimitFinding]) -> list[LimitFinding]:
    return [finding for finding in found if not finding.kept]


def _distance(found: Sequence[LimitFinding]) -> tuple[int, float]:
    """How far a trial is from the budget: metrics that are missing first, then the worst relative excess."""
    missing = sum(finding.missing for finding in found)
    return missing, max((finding.excess for finding in found if not finding.missing), default=0.0)


def _advice(judged: Sequence[Judged], nearest: int) -> str:
    """Say which single limit, relaxed, would be enough; else what the nearest trial needs together."""
    unknown = sorted({finding.limit for _, found in judged for finding in found if finding.missing})
    if unknown and all(any(finding.missing for finding in found) for _, found in judged):
        names = " and ".join(unknown)
        return f"No trial has a value for {names}, which counts as missed: waive {names} by name, or measure elsewhere."
    single = _cheapest_single(judged)
    if single:
        ways = ", or ".join(f"{_relief(finding)} (trial {number})" for number, finding in single)
        return f"Enough would be {ways}."
    _, found = next(trial for trial in judged if trial[0] == nearest)
    together = " and ".join(_relief(finding) for finding in _missed(found))
    return f"No single limit is to blame: trial {nearest} needs {together}."


def _cheapest_single(judged: Sequence[Judged]) -> list[tuple[int, LimitFinding]]:
    """For each limit that is all that some trial misses: the trial that asks least of it."""
    cheapest: dict[tuple[Limit, bool], tuple[int, LimitFinding]] = {}
    for number, found in judged:
        match _missed(found):
            case [finding] if not finding.missing:
                key = (finding.limit, finding.floor)
                if key not in cheapest or finding.excess < cheapest[key][1].excess:
                    cheapest[key] = (number, finding)
    return sorted(cheapest.values(), key=lambda way: way[1].excess)


def _relief(finding: LimitFinding) -> str:
    """Put into words what the limit would have to be: ``a size of 6.1 MB instead of 5``."""
    if finding.missing:
        return f"a value for {finding.limit}"
    needed = _outward(finding.judged, finding.floor)
    match finding.limit, finding.floor:
        case "latency", _:
            return f"a latency of {needed:g} ms instead of {finding.allowed:g}"
        case "throughput", _:
            return f"a throughput of {needed:g} a second instead of {finding.allowed:g}"
        case ("memory" | "size") as name, _:
            megabytes = _outward(finding.judged / 1e6, finding.floor)
            return f"a {name} of {megabytes:g} MB instead of {finding.allowed / 1e6:g}"
        case _, True:
            return f"a score of {needed:g} instead of {finding.allowed:g}"
        case _:
            return f"a score drop of {needed:g} instead of {finding.allowed:g}"


def _outward(value: float, floor: bool) -> float:
    """Round away from the limit to a few significant digits: up for a ceiling, down for a floor."""
    if value == 0:
        return 0.0
    places = DIGITS - 1 - math.floor(math.log10(abs(value)))
    shifted = value * 10.0**places
    return (math.floor(shifted) if floor else math.ceil(shifted)) / 10.0**places
