"""Which of the trials that keep every limit wins: the smallest, the quickest, or that of least memory.

Near the best value of what is preferred, another value decides: a few percent of bytes gain nothing if the file
takes longer. Times are compared by A/Bs with the baseline, since times of separate measurements differ by chance. On a
stand-in they are compared only between files that compute in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeopt.records.budget import Preference
from edgeopt.select.judged import JudgedTrial

NEAR_SIZE_RATIO = 1.05
"""Of two files within 5 % of each other, the quicker one wins, if it is quicker by more than it is larger."""
NEAR_TIME_RATIO = 1.1
"""Times of single measurements that far apart are compared by A/Bs."""
NEAR_MEMORY_RATIO = 1.01
"""Peaks of memory differ by that much from run to run."""


def preferred(trials: Sequence[JudgedTrial], preference: Preference) -> JudgedTrial | None:
    """Return the trial that wins; None if there is none.

    Args:
        trials: Those that keep every limit and may win.
        preference: ``size``: the smallest, or the quickest of those within ``NEAR_SIZE_RATIO`` of its bytes, if that is
            quicker by more than it is larger. ``latency``: the smallest that no other is measurably quicker than.
            ``memory``: the smallest within ``NEAR_MEMORY_RATIO`` of the least peak.
    """
    if not trials:
        return None
    if preference == "size":
        smallest = _smallest(trials)
        quicker = [trial for trial in _near_in_size(trials) if trial is not smallest and _pays_for(trial, smallest)]
        return min(quicker, key=lambda trial: (_ratio(trial), *_order(trial)), default=smallest)
    if preference == "latency":
        near = _near_in_time(trials)
        return _smallest([one for one in near if not any(_is_quicker(other, one) for other in near)])
    least = min(trial.memory_bytes for trial in trials)
    return _smallest([trial for trial in trials if trial.memory_bytes <= least * NEAR_MEMORY_RATIO])


def rivals(trials: Sequence[JudgedTrial], preference: Preference) -> list[JudgedTrial]:
    """Return the trials that only A/Bs can choose between; fewer than two if nothing is to be compared."""
    if not trials or preference == "memory":
        return []
    if preference == "latency":
        return _near_in_time(trials)
    smallest = _smallest(trials)
    cost = smallest.latency_ms * smallest.size_bytes
    near = [
        trial
        for trial in _near_in_size(trials)
        if trial.latency_ms * trial.size_bytes < cost and trial.form == smallest.form
    ]
    return [smallest, *near] if near else []


def _order(trial: JudgedTrial) -> tuple[float, float, float, int]:
    return (trial.size_bytes, trial.latency_ms, -trial.quality, trial.number)


def _smallest(trials: Sequence[JudgedTrial]) -> JudgedTrial:
    """Return the smallest trial; ties go to the quicker, then to the better-scoring one."""
    return min(trials, key=_order)


def _near_in_size(trials: Sequence[JudgedTrial]) -> list[JudgedTrial]:
    least = min(trial.size_bytes for trial in trials)
    return [trial for trial in trials if trial.size_bytes <= least * NEAR_SIZE_RATIO]


def _near_in_time(trials: Sequence[JudgedTrial]) -> list[JudgedTrial]:
    least = min(trial.latency_ms for trial in trials)
    return [trial for trial in trials if trial.latency_ms <= least * NEAR_TIME_RATIO]


def _ratio(trial: JudgedTrial) -> float:
    assert trial.time_ratio is not None
    return trial.time_ratio.value


def _is_quicker(trial: JudgedTrial, other: JudgedTrial) -> bool:
    """Tell whether a trial is quicker than another one beyond noise: their intervals do not overlap."""
    if trial.time_ratio is None or other.time_ratio is None or trial.form != other.form:
        return False
    return trial.time_ratio.high < other.time_ratio.low


def _pays_for(trial: JudgedTrial, smallest: JudgedTrial) -> bool:
    """Tell whether a trial is quicker than the smallest one by more than it is larger."""
    if not _is_quicker(trial, smallest):
        return False
    return _ratio(trial) * trial.size_bytes < _ratio(smallest) * smallest.size_bytes
