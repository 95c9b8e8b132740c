"""One trial held against the budget: a ``LimitFinding`` for each limit that is asked for, and the ``Verdict`` that follows.

Latency and throughput are judged by the worse end of their 95 % interval, a drop of the score by the upper end of its
paired interval; everything else is a plain number. A metric that is missing is a limit that is missed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from edgeopt.records.budget import Budget, Limit
from edgeopt.records.choice import Miss, Verdict
from edgeopt.records.measurement import Measurement, Memory
from edgeopt.records.recipe import Float16, LowRank, QuantizeStep
from edgeopt.records.trial import Artifact, Measured, Score, Trial
from edgeopt.statistics import Interval, comparison_ratio, latency_interval_ms, percentile_interval, verdict

SMALLEST_SCORE_SCALE = 0.01
"""Of the baseline's score: the unit for "how far off" where the budget allows (almost) no drop at all."""


@dataclass(frozen=True)
class LimitFinding:
    """One limit, and what was found for it."""

    limit: Limit
    point: float
    """The estimate, in the unit of ``Budget``; not a number where the metric is missing."""
    judged: float
    """The end of its interval that decides; equal to ``point`` where there is no interval."""
    allowed: float
    floor: bool
    """True where ``allowed`` is the least that is accepted."""
    scale: float
    """What counts as once the allowed amount, for comparing how far off different limits are."""

    @property
    def missing(self) -> bool:
        """Whether the metric could not be had."""
        return math.isnan(self.judged)

    @property
    def kept(self) -> bool:
        """Whether the limit is kept by the deciding end."""
        return not self.missing and self._over(self.judged) <= 0

    @property
    def excess(self) -> float:
        """How far over the limit, relative to its scale: 0.1 is a tenth too much, negative is inside."""
        return math.inf if self.missing else self._over(self.judged) / self.scale

    def miss(self) -> Miss:
        """Return the record of a limit that is not kept."""
        return Miss(
            limit=self.limit,
            found=None if self.missing else self.judged,
            allowed=self.allowed,
            within_noise=not self.missing and self._over(self.point) <= 0,
        )

    def _over(self, value: float) -> float:
        return self.allowed - value if self.floor else value - self.allowed


def measured_size(artifact: Artifact, budget: Budget) -> int:
    """Return the bytes that decide: those of the file, or of the download where the budget says so."""
    return artifact.download_bytes if budget.size_metric == "download" else artifact.size_bytes


def latency(measurement: Measurement, percentile: int) -> Interval:
    """Return the wall time of one run in ms at a percentile, with its 95 % interval.

    Both are foretold for a target that was not there. A search judges its trials again and again; each bootstrap is
    computed once.
    """
    if measurement.estimate is not None:
        return latency_interval_ms(measurement, percentile)
    return _latency(tuple(timing.wall_ns for timing in measurement.timings), percentile)


@functools.lru_cache(maxsize=1024)
def _latency(wall_ns: tuple[tuple[int, ...], ...], percentile: int) -> Interval:
    return Interval(*(end / 1e6 for end in percentile_interval(wall_ns, percentile)))


def findings(outcome: Measured, budget: Budget) -> list[LimitFinding]:
    """Hold one measured trial against every limit that is not waived."""
    size_bytes = measured_size(outcome.artifact, budget)
    return [*device_findings(outcome.measurement, size_bytes, budget), *score_findings(outcome.score, budget)]


def device_findings(measurement: Measurement | None, size_bytes: int, budget: Budget) -> list[LimitFinding]:
    """Hold a file's size and its measurement against every limit that is not about the score; without one, the size."""
    if measurement is None:
        return [found for found in _byte_findings(None, size_bytes, budget) if found.limit == "size"]
    return [*_timing_findings(measurement, budget), *_byte_findings(measurement.memory, size_bytes, budget)]


def _timing_findings(measurement: Measurement, budget: Budget) -> Iterator[LimitFinding]:
    at_this_batch = measurement.batch_size == budget.batch_size
    if budget.max_latency_ms is not None:
        found = latency(measurement, budget.latency_percentile)
        point, high = (found.value, found.high) if at_this_batch else (math.nan, math.nan)
        allowed = budget.max_latency_ms
        yield LimitFinding("latency", point, high, allowed, floor=False, scale=allowed or 1.0)
    if budget.min_throughput_per_s is not None:
        median = latency(measurement, 50)
        a_second = 1000.0 * (measurement.batch_size if at_this_batch else math.nan)
        allowed = budget.min_throughput_per_s
        yield LimitFinding(
            "throughput", a_second / median.value, a_second / median.high, allowed, floor=True, scale=allowed or 1.0
        )


def _byte_findings(memory: Memory | None, size_bytes: int, budget: Budget) -> Iterator[LimitFinding]:
    found: tuple[tuple[Limit, float, int | None], ...] = (
        ("memory", math.nan if memory is None else memory.peak_bytes, budget.max_peak_memory_bytes),
        ("size", size_bytes, budget.max_size_bytes),
    )
    for limit, value, allowed in found:
        if allowed is not None:
            yield LimitFinding(limit, value, value, allowed, floor=False, scale=allowed or 1.0)


def score_findings(score: Score, budget: Budget) -> Iterator[LimitFinding]:
    """Hold a score against the budget's floors."""
    baseline = score.value + score.drop
    smallest = SMALLEST_SCORE_SCALE * abs(baseline) or 1.0
    if budget.min_score is not None:
        scale = max(baseline - budget.min_score, smallest)
        yield LimitFinding("score", score.value, score.value, budget.min_score, floor=True, scale=scale)
    if budget.max_score_drop is not None:
        high = score.drop if score.drop_ci95 is None else score.drop_ci95[1]
        scale = max(budget.max_score_drop, smallest)
        yield LimitFinding("score", score.drop, high, budget.max_score_drop, floor=False, scale=scale)


def float_counterpart(trial: Trial, trials: Iterable[Trial]) -> Trial | None:
    """Return the measured float32 trial of an int8 trial's network, or None."""
    if not any(isinstance(step, QuantizeStep) for step in trial.recipe.graph_steps):
        return None
    origin = (trial.recipe.torch_steps, trial.recipe.parent, trial.recipe.seed)
    for other in trials:
        recipe = other.recipe
        lossy = any(isinstance(step, QuantizeStep | Float16) for step in recipe.graph_steps)
        same = (recipe.torch_steps, recipe.parent, recipe.seed) == origin
        if same and recipe.graph_steps and not lossy and isinstance(other.outcome, Measured):
            return other
    return None


def pays(trial: Trial, outcome: Measured, *, proven_on_target: bool) -> bool:
    """Say whether the trial may win by its A/Bs: slower neither than the baseline nor than its float twin.

    One of low rank may not be slower than what it was made of either; zeros promise no speed.

    On a stand-in, int8 and float16 stay whatever the A/B says: their speed hangs on the instruction set, and the
    stand-in's is not the target's.
    """
    low_rank = any(isinstance(step, LowRank) for step in trial.recipe.torch_steps)
    if low_rank and outcome.against_parent and verdict(outcome.against_parent.comparison) == "slower":
        return False
    if not proven_on_target and any(isinstance(step, QuantizeStep | Float16) for step in trial.recipe.graph_steps):
        return True
    compared = (outcome.against_baseline, outcome.against_float)
    return all(comparison is None or verdict(comparison) != "slower" for comparison in compared)


def replaces(outcome: Measured, plain: Measured, budget: Budget) -> bool:
    """Say whether int8 with its first layers in float stands for ``plain``, which is int8 from there on.

    It does where it is faster by more than it is larger: some hundred bytes can be a sixth of the time.
    """
    if outcome.against_full_int8 is None or verdict(outcome.against_full_int8.comparison) != "faster":
        return False
    sizes = [measured_size(one.artifact, budget) for one in (outcome, plain)]
    return comparison_ratio(outcome.against_full_int8.comparison).value * sizes[0] < sizes[1]


def judge(trial: Trial, outcome: Measured, found: Sequence[LimitFinding], *, proven_on_target: bool) -> Verdict:
    """Sum up what was found for one measured trial.

    Args:
        trial: The trial.
        outcome: Its ``Measured`` outcome.
        found: Its ``findings``.
        proven_on_target: False on a stand-in, where the A/B of int8 and float16 bars nothing.
    """
    return Verdict(
        trial=trial.number,
        misses=tuple(finding.miss() for finding in found if not finding.kept),
        pays=pays(trial, outcome, proven_on_target=proven_on_target),
    )
