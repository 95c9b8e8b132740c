"""Judge one trial by the budget: a ``LimitFinding`` for each limit that is not waived, and a ``Verdict``.

Latency and throughput are judged by the worse end of their interval, a score drop by the upper end of its paired
interval, at the budget's confidence. Classes and changed answers are judged by intervals of 95 %, which also decide
which of them is the worst; everything else is a plain number. A missing metric is a missed limit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from edgeopt.records.budget import Budget, Limit
from edgeopt.records.choice import Miss, Verdict
from edgeopt.records.measurement import Measurement, Memory
from edgeopt.records.recipe import LowerResolution, LowRank
from edgeopt.records.scoring import ScoreFloor
from edgeopt.records.trial import Artifact, Measured, Score, Trial
from edgeopt.statistics import Interval, comparison_ratio, end_at, latency_interval_ms, percentile_interval, verdict

_MIN_SCORE_SCALE_RATIO = 0.01
"""Of the baseline's score: the unit for "how far off" if the budget allows (almost) no drop."""


@dataclass(frozen=True)
class LimitFinding:
    """One limit, and the value that a trial has for it."""

    limit: Limit
    point: float
    """The estimate, in the unit of ``Budget``; NaN if the metric is missing."""
    judged: float
    """The end of its interval that decides; equal to ``point`` if there is no interval."""
    allowed: float
    floor: bool
    """True if ``allowed`` is a minimum."""
    scale: float
    """The amount over the limit that counts as 100 %, so that different limits can be compared."""
    is_drop: bool = False
    """True if the value is a difference from the baseline's score."""

    @property
    def missing(self) -> bool:
        """Whether the metric is missing."""
        return math.isnan(self.judged)

    @property
    def kept(self) -> bool:
        """Whether the deciding end keeps the limit."""
        return not self.missing and self._over(self.judged) <= 0

    @property
    def excess(self) -> float:
        """How far over the limit, relative to its scale: 0.1 is 10 % too much, negative is within the limit."""
        return math.inf if self.missing else self._over(self.judged) / self.scale

    def to_miss(self) -> Miss:
        """Return the record of a missed limit."""
        return Miss(
            limit=self.limit,
            found=None if self.missing else self.judged,
            allowed=self.allowed,
            within_noise=not self.missing and self._over(self.point) <= 0,
        )

    def _over(self, value: float) -> float:
        return self.allowed - value if self.floor else value - self.allowed


def measured_size(artifact: Artifact, budget: Budget) -> int:
    """Return the bytes by which files are compared: of the file, or of the download if the budget says so."""
    return budget.deciding_bytes(artifact.size_bytes, artifact.download_bytes)


def latency_interval(measurement: Measurement, percentile: int) -> Interval:
    """Return the wall time of one run in ms at a percentile, with its 95 % interval.

    Both are predicted if the target was not there to measure. Bootstraps are cached, because a search judges its
    trials many times.
    """
    if measurement.estimate is not None:
        return latency_interval_ms(measurement, percentile)
    return _measured_interval_ms(tuple(timing.wall_ns for timing in measurement.timings), percentile)


@functools.lru_cache(maxsize=1024)
def _measured_interval_ms(wall_ns: tuple[tuple[int, ...], ...], percentile: int) -> Interval:
    return Interval(*(end / 1e6 for end in percentile_interval(wall_ns, percentile)))


def judge_limits(outcome: Measured, budget: Budget) -> list[LimitFinding]:
    """Compare one measured trial with every limit that is not waived."""
    size_bytes = measured_size(outcome.artifact, budget)
    return [*judge_device_limits(outcome.measurement, size_bytes, budget), *judge_score_limits(outcome.score, budget)]


def judge_device_limits(measurement: Measurement | None, size_bytes: int, budget: Budget) -> list[LimitFinding]:
    """Compare a measurement and a size with every limit except the score's; without a measurement, only the size.

    Args:
        measurement: Of a file.
        size_bytes: Of the file alone, by ``measured_size``; the runtime's are added here.
        budget: The limits.
    """
    if measurement is None:
        return [finding for finding in _judge_bytes(None, size_bytes, budget) if finding.limit == "size"]
    return [*_judge_timing(measurement, budget), *_judge_bytes(measurement.memory, size_bytes, budget)]


def _judge_timing(measurement: Measurement, budget: Budget) -> Iterator[LimitFinding]:
    at_this_batch = measurement.batch_size == budget.batch_size
    if budget.max_latency_ms is not None:
        interval = latency_interval(measurement, budget.latency_percentile)
        high = end_at(interval.value, interval.high, budget.confidence)
        point, high = (interval.value, high) if at_this_batch else (math.nan, math.nan)
        allowed = budget.max_latency_ms
        yield LimitFinding("latency", point, high, allowed, floor=False, scale=allowed or 1.0)
    if budget.min_throughput_per_s is not None:
        median_ms = latency_interval(measurement, 50)
        samples = measurement.batch_size if at_this_batch else math.nan
        allowed = budget.min_throughput_per_s
        slow_ms = end_at(median_ms.value, median_ms.high, budget.confidence)
        point, low = (1000.0 * samples / ms for ms in (median_ms.value, slow_ms))
        yield LimitFinding("throughput", point, low, allowed, floor=True, scale=allowed or 1.0)


def _judge_bytes(memory: Memory | None, size_bytes: int, budget: Budget) -> Iterator[LimitFinding]:
    limits: tuple[tuple[Limit, float, int | None], ...] = (
        ("memory", math.nan if memory is None else memory.peak_bytes, budget.max_peak_memory_bytes),
        ("size", budget.judged_bytes(size_bytes), budget.max_size_bytes),
    )
    for limit, value, allowed in limits:
        if allowed is not None:
            yield LimitFinding(limit, value, value, allowed, floor=False, scale=allowed or 1.0)


def judge_score_limits(score: Score, budget: Budget) -> Iterator[LimitFinding]:
    """Compare a score with the worst score that the budget allows and with its limit on the drop."""
    higher = score.direction == "higher"
    baseline = score.value + (score.drop if higher else -score.drop)
    min_scale = _MIN_SCORE_SCALE_RATIO * abs(baseline) or 1.0
    if budget.min_score is not None:
        scale = max(baseline - budget.min_score if higher else budget.min_score - baseline, min_scale)
        yield LimitFinding("score", score.value, score.value, budget.min_score, floor=higher, scale=scale)
    if budget.max_score_drop is not None:
        high = judged_drop(score, budget)
        scale = max(budget.max_score_drop, min_scale)
        yield LimitFinding("score", score.drop, high, budget.max_score_drop, floor=False, scale=scale, is_drop=True)

    yield from _judge_answers(score, budget)


def judged_drop(score: Score, budget: Budget) -> float:
    """Return the end of the drop's interval that has to keep the limit; the drop itself if it has no interval."""
    return score.drop if score.drop_ci95 is None else end_at(score.drop, score.drop_ci95[1], budget.confidence)


def score_floor(baseline: Score, budget: Budget) -> ScoreFloor | None:
    """Return the worst score that the budget allows, whatever its noise; None if it limits no score."""
    sign = 1.0 if baseline.direction == "higher" else -1.0
    allowed = [] if budget.max_score_drop is None else [sign * baseline.value - budget.max_score_drop]
    allowed += [] if budget.min_score is None else [sign * budget.min_score]
    if not allowed:
        return None
    value = sign * max(allowed)
    return ScoreFloor(value=value, max_drop=abs(baseline.value - value), direction=baseline.direction)


def _judge_answers(score: Score, budget: Budget) -> Iterator[LimitFinding]:
    """Compare the worst class and the changed answers with their limits; a missing value is a missed limit."""
    answers = score.answers
    worst = answers.worst_class if answers is not None else None
    if budget.max_class_drop is not None:
        point, high = (math.nan, math.nan) if worst is None else (worst.drop, worst.drop_ci95[1])
        scale = max(budget.max_class_drop, _MIN_SCORE_SCALE_RATIO)
        yield LimitFinding("class", point, high, budget.max_class_drop, floor=False, scale=scale, is_drop=True)
    if budget.max_flip_ratio is not None:
        point, high = (math.nan, math.nan) if answers is None else (answers.flip_ratio, answers.flip_ratio_ci95[1])
        scale = max(budget.max_flip_ratio, _MIN_SCORE_SCALE_RATIO)
        yield LimitFinding("flips", point, high, budget.max_flip_ratio, floor=False, scale=scale)


def find_float_counterpart(trial: Trial, trials: Iterable[Trial]) -> Trial | None:
    """Return the measured float32 trial of an int8 trial's network, or None."""
    if trial.recipe.precision != "int8":
        return None
    network = (trial.recipe.torch_steps, trial.recipe.parent, trial.recipe.seed)
    for other in trials:
        recipe = other.recipe
        is_same_network = (recipe.torch_steps, recipe.parent, recipe.seed) == network
        is_float32 = recipe.precision == "fp32"
        if is_same_network and recipe.graph_steps and is_float32 and isinstance(other.outcome, Measured):
            return other
    return None


def pays(trial: Trial, outcome: Measured, *, proven_on_target: bool) -> bool:
    """Tell whether the A/Bs let the trial win: it is slower neither than the baseline nor than its float counterpart.

    One with factorized layers or a smaller image may not be slower than the trial it was made from either. Zeros
    promise no speed.

    On a stand-in, int8 and float16 may win whatever these A/Bs say: their speed depends on the instruction set, and the
    stand-in's differs from the target's.
    """
    buys_speed = any(isinstance(step, LowRank | LowerResolution) for step in trial.recipe.torch_steps)
    if buys_speed and outcome.against_parent and verdict(outcome.against_parent.comparison) == "slower":
        return False
    if not proven_on_target and trial.recipe.precision != "fp32":
        return True
    comparisons = (outcome.against_baseline, outcome.against_float)
    return all(comparison is None or verdict(comparison) != "slower" for comparison in comparisons)


def replaces(outcome: Measured, full_int8: Measured, budget: Budget) -> bool:
    """Tell whether an int8 trial with a float prefix replaces the one that is int8 from the first layer.

    It does if it is faster by more than it is larger: a few hundred bytes can save a sixth of the time.
    """
    if outcome.against_full_int8 is None or verdict(outcome.against_full_int8.comparison) != "faster":
        return False
    size_bytes, full_size_bytes = (measured_size(measured.artifact, budget) for measured in (outcome, full_int8))
    return comparison_ratio(outcome.against_full_int8.comparison).value * size_bytes < full_size_bytes


def judge_trial(
    trial: Trial, outcome: Measured, findings: Sequence[LimitFinding], *, proven_on_target: bool
) -> Verdict:
    """Sum up the findings of one measured trial.

    Args:
        trial: The trial.
        outcome: Its ``Measured`` outcome.
        findings: Its findings, by ``judge_limits``.
        proven_on_target: False on a stand-in; the A/Bs of int8 and float16 then bar nothing.
    """
    return Verdict(
        trial=trial.number,
        misses=tuple(finding.to_miss() for finding in findings if not finding.kept),
        pays=pays(trial, outcome, proven_on_target=proven_on_target),
    )
