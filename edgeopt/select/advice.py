"""The trials that miss least, and the limits that would let them pass: of all, or of those smaller than the winner.

The numbers in the text are limits to set, so they are rounded outward: a trial passes once they are set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from edgeopt.records.budget import Limit
from edgeopt.records.choice import Infeasible, NearMiss
from edgeopt.select.judged import JudgedTrial
from edgeopt.select.limits import LimitFinding

_SIGNIFICANT_DIGITS = 3
"""Of a proposed limit."""

_MOST_NEAR_MISSES = 3

NumberedFindings = tuple[int, Sequence[LimitFinding]]
"""A trial's number and its findings."""


def explain(trials: Sequence[NumberedFindings]) -> Infeasible:
    """Name the nearest trial, the limits that it misses, and the limits that would be enough.

    Args:
        trials: Every measured trial, each missing at least one limit.
    """
    if not trials:
        advice = "No candidate could be measured; the failed trials say why."
        return Infeasible(binding=(), nearest=None, advice=advice)
    nearest, findings = min(trials, key=lambda trial: _distance(trial[1]))
    return Infeasible(
        binding=tuple(dict.fromkeys(finding.limit for finding in _missed(findings))),
        nearest=nearest,
        advice=_advise(trials, nearest),
    )


def list_near_misses(trials: Iterable[JudgedTrial], winner: JudgedTrial) -> tuple[NearMiss, ...]:
    """Return smaller trials that miss a single limit, with the limit that would let each one win; the nearest first.

    A trial is left out if another one is smaller and misses its limit by less.

    Args:
        trials: Every measured trial.
        winner: The one that wins.
    """
    found: list[tuple[float, JudgedTrial, LimitFinding]] = []
    for trial in sorted(trials, key=lambda one: (one.size_bytes, one.number)):
        missed = _missed(trial.findings)
        if trial.size_bytes >= winner.size_bytes or not trial.verdict.pays or len(missed) != 1 or missed[0].missing:
            continue
        is_nearer = all(missed[0].excess < excess for excess, _, _ in found)
        if is_nearer and all(_relief(missed[0]) != _relief(other) for _, _, other in found):
            found.append((missed[0].excess, trial, missed[0]))
    nearest = sorted(found, key=lambda one: one[0])[:_MOST_NEAR_MISSES]
    return tuple(
        NearMiss(trial=trial.number, size_bytes=trial.size_bytes, relief=_relief(finding))
        for _, trial, finding in nearest
    )


def _missed(findings: Iterable[LimitFinding]) -> list[LimitFinding]:
    return [finding for finding in findings if not finding.kept]


def _distance(findings: Sequence[LimitFinding]) -> tuple[int, float]:
    """How far a trial is from the budget: metrics that are missing first, then the worst relative excess."""
    missing = sum(finding.missing for finding in findings)
    return missing, max((finding.excess for finding in findings if not finding.missing), default=0.0)


def _advise(trials: Sequence[NumberedFindings], nearest: int) -> str:
    """Say which single relaxed limit would be enough; if none, say which limits the nearest trial needs together."""
    unknown = sorted({finding.limit for _, findings in trials for finding in findings if finding.missing})
    if unknown and all(any(finding.missing for finding in findings) for _, findings in trials):
        names = " and ".join(unknown)
        return (
            f"No trial has a value for {names}, which counts as a miss: set the limit on {names} to 'none', or measure "
            "on another device."
        )
    options = _single_reliefs(trials)
    if options:
        (first, finding), *others = options
        relief = _relief(finding)
        ways = [f"{relief[0].upper()}{relief[1:]} would be enough for trial {first}"]
        ways += [f"or {_relief(finding)} for trial {number}" for number, finding in others]
        return f"{', '.join(ways)}."
    _, findings = next(trial for trial in trials if trial[0] == nearest)
    together = " and ".join(_relief(finding) for finding in _missed(findings))
    return f"Relaxing a single limit is not enough: trial {nearest} needs {together}."


def _single_reliefs(trials: Sequence[NumberedFindings]) -> list[tuple[int, LimitFinding]]:
    """For each limit that is the only one some trial misses: the trial that misses it by the least."""
    nearest: dict[tuple[Limit, bool, bool], tuple[int, LimitFinding]] = {}
    for number, findings in trials:
        match _missed(findings):
            case [finding] if not finding.missing:
                key = (finding.limit, finding.floor, finding.is_drop)
                if key not in nearest or finding.excess < nearest[key][1].excess:
                    nearest[key] = (number, finding)
    return sorted(nearest.values(), key=lambda option: option[1].excess)


def _relief(finding: LimitFinding) -> str:
    """Put the limit that would be enough into words: ``a size limit of 6.1 MB (instead of 5 MB)``."""
    if finding.missing:
        return f"a value for {finding.limit}"
    needed = _round_outward(finding.judged, finding.floor)
    match finding.limit, finding.floor:
        case "latency", _:
            return f"a latency limit of {needed:g} ms (instead of {finding.allowed:g} ms)"
        case "throughput", _:
            return f"a minimum throughput of {needed:g} per second (instead of {finding.allowed:g})"
        case ("memory" | "size") as name, _:
            megabytes = _round_outward(finding.judged / 1e6, finding.floor)
            return f"a {name} limit of {megabytes:g} MB (instead of {finding.allowed / 1e6:g} MB)"
        case "class", _:
            return f"a class drop limit of {needed:g} (instead of {finding.allowed:g})"
        case "flips", _:
            return f"a limit on changed answers of {needed:g} (instead of {finding.allowed:g})"
        case _, False if not finding.is_drop:
            return f"a maximum score of {needed:g} (instead of {finding.allowed:g})"
        case _, True:
            return f"a minimum score of {needed:g} (instead of {finding.allowed:g})"
        case _:
            return f"a score drop limit of {needed:g} (instead of {finding.allowed:g})"


def _round_outward(value: float, floor: bool) -> float:
    """Round to a few significant digits so that the value passes: up for a ceiling, down for a floor."""
    if value == 0:
        return 0.0
    places = _SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(abs(value)))
    shifted = value * 10.0**places
    return (math.floor(shifted) if floor else math.ceil(shifted)) / 10.0**places
