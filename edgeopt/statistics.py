"""Everything statistical: raw samples in, point estimates with intervals out. Pure numpy; every draw is seeded.

Between processes, latencies differ by more than within one (memory layout, placement on cores), so a process, or a
pair of processes that took turns, is the unit that is resampled. There are few of them, and each method here says
what it does about that.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.records.measurement import Comparison, Measurement

_Floats = NDArray[np.float64]

BOOTSTRAP_REPEATS = 4000
"""Enough that the ends of a 95 % interval move by less than a tenth of its width from seed to seed."""

MINIMUM_EFFECT_RATIO = 0.01
"""A difference in time below this is called none: nobody would ship another file for it, and one layout of memory
against another makes as much."""

LEAST_PAIRS = 6
"""Pairs of processes of any comparison."""

LOOKS = (8, 12, 16, 20)
"""After how many pairs of processes a verdict is looked for; the last is the end."""

LOOK_CONFIDENCE = 0.99
"""Of the interval at each look; all looks together then err in less than 2 % (group-sequential sign test)."""

CLEAR_EFFECT_RATIO = 0.15
"""Where every pair differs by more, nobody waits for the first look."""

LEAST_PROCESSES = 3
"""Of a measurement that ends early: of two, nobody could say which one is unusual."""

NARROW_RATIO = 0.02
"""Half an interval's width over its value at which a measurement ends early: the spread of one process to the next."""

FAR_NARROW_RATIO = 0.1
"""The same where the whole interval keeps, or misses, the limit by as much as a half."""

NoiseKind = Literal["load", "drift", "two speeds", "unlike processes", "few runs", "heat"]

DRIFT_RATIO = 0.05
"""The last third of a process's runs against the first third: a clock that changes, or a machine that warms up."""

UNLIKE_RATIO = 0.1
"""The slowest process's median over the fastest one's, less 1; 3 to 5 % are usual."""

HOT_C = 60.0
"""Above it a process waits before it times anything, while that helps (``COOL_C`` of ``bench.worker``)."""

SPEEDS_RATIO, SPEEDS_SEPARATION, SPEEDS_SHARE = 0.05, 4.5, 0.1
"""Two speeds: medians that far apart, by so many standard deviations, each with that share of the runs. Halves of a
normal distribution are 2.6 apart, those of a uniform one 3.5."""


class Interval(NamedTuple):
    """An estimate between the ends of its confidence interval."""

    value: float
    low: float
    high: float


def percentile_interval(
    processes: Sequence[Sequence[int]], percentile: float, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Estimate a percentile of the pooled samples of several processes.

    The interval is a two-stage bootstrap: processes are drawn first, then samples within what was drawn. The second
    stage is not simulated but drawn from the law of an order statistic of n samples, Beta(np, n(1 - p)), which costs
    nothing for long runs. So few processes make a bootstrap interval too narrow; it is widened as the expanded
    percentile interval of Hesterberg, "What Teachers Should Know about the Bootstrap" (2015), section 5.2.

    Args:
        processes: Samples of each process, in any unit.
        percentile: 0 < percentile < 100.
        confidence: Of the interval, in 0..1.
        seed: Of the draws.

    Returns:
        The percentile (linear between neighbours) and its interval, in the samples' unit. One process alone tells
        nothing about the spread between processes, and its interval covers the samples' noise only.
    """
    samples = [np.asarray(process, dtype=np.float64) for process in processes if len(process)]
    if not samples:
        raise ValueError("no samples")
    rng, count = np.random.default_rng(seed), len(samples)
    pooled = np.concatenate(samples)
    order = np.argsort(pooled, kind="stable")
    owner = np.repeat(np.arange(count), [len(process) for process in samples])[order]
    values = pooled[order]
    draws = rng.multinomial(count, [1 / count] * count, size=BOOTSTRAP_REPEATS)
    share = percentile / 100
    levels = rng.beta(len(values) * share, len(values) * (1 - share), size=BOOTSTRAP_REPEATS)
    results = np.empty(BOOTSTRAP_REPEATS)
    patterns, which = np.unique(draws, axis=0, return_inverse=True)
    for index, weights in enumerate(patterns):
        mass = np.cumsum(weights[owner])
        chosen = which.reshape(-1) == index
        results[chosen] = values[np.searchsorted(mass, levels[chosen] * mass[-1])]
    tail = expanded_tail(count, confidence) if count > 1 else (1 - confidence) / 2
    value = float(np.percentile(values, percentile))
    low, high = np.quantile(results, [tail, 1 - tail])
    return Interval(value, min(float(low), value), max(float(high), value))


def expanded_tail(count: int, confidence: float) -> float:
    """Return the tail of a bootstrap over ``count`` units that covers like Student's t (Hesterberg, 2015).

    Example: five processes and 95 % give 0.00095 in place of 0.025.
    """
    quantile = student_quantile(1 - (1 - confidence) / 2, count - 1)
    return statistics.NormalDist().cdf(-math.sqrt(count / (count - 1)) * quantile)


def student_quantile(probability: float, freedom: int) -> float:
    """Return a quantile of Student's t distribution, for probabilities from 0.5 to 1.

    Exact for 1 and 2 degrees of freedom; above, the expansion of Abramowitz and Stegun 26.7.5 (within 0.1 % for 3 and
    more at 97.5 %).
    """
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        excess = 2 * probability - 1
        return excess * math.sqrt(2 / (1 - excess**2))
    z = statistics.NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / freedom ** (index + 1) for index, term in enumerate(terms)))


def latency_interval_ms(measurement: Measurement, percentile: float, confidence: float = 0.95) -> Interval:
    """Estimate a percentile of the wall time of one run, in milliseconds: on the target, where that was foretold.

    Raises:
        ValueError: the target's latency was foretold for other percentiles.
    """
    if measurement.estimate is not None:
        found = measurement.estimate.at(percentile)
        return Interval(found.value_ns / 1e6, found.low_ns / 1e6, found.high_ns / 1e6)
    interval = percentile_interval([timing.wall_ns for timing in measurement.timings], percentile, confidence)
    return Interval(*(value / 1e6 for value in interval))


def least_runs(percentile: float, confidence: float = 0.99) -> int:
    """Return how many runs it takes before the slowest of them bounds a percentile from above.

    All of n runs lie below the p-quantile with probability p^n (the rule by which MLPerf's LoadGen ends early, Reddi
    et al., 2020, with no run left out). Example: 7 for the median, 44 for the 90th percentile, 459 for the 99th.
    """
    return math.ceil(math.log(1 - confidence) / math.log(percentile / 100))


def is_measured(processes: Sequence[Sequence[int]], percentile: float, max_latency_ns: float | None) -> bool:
    """Say whether a further process would tell nothing that matters about a percentile.

    That is so when ``least_runs`` are there, ``LEAST_PROCESSES`` too, and the interval is narrower than
    ``NARROW_RATIO`` to each side, or than ``FAR_NARROW_RATIO`` where the limit is far away.
    """
    if len(processes) < LEAST_PROCESSES or sum(map(len, processes)) < least_runs(percentile):
        return False
    value, low, high = percentile_interval(processes, percentile)
    far = max_latency_ns is not None and (1.5 * high < max_latency_ns or low > 1.5 * max_latency_ns)
    return max(high - value, value - low) <= (FAR_NARROW_RATIO if far else NARROW_RATIO) * value


def is_complete(measurement: Measurement, percentile: float, max_latency_ms: float | None) -> bool:
    """Say whether a measurement has all the processes of its rule, or ended early for a reason that holds here too."""
    samples = [timing.wall_ns for timing in measurement.timings]
    limit_ns = None if max_latency_ms is None else max_latency_ms * 1e6
    return len(samples) >= measurement.rule.processes or is_measured(samples, percentile, limit_ns)


def noise(measurement: Measurement, percentile: float = 50) -> dict[NoiseKind, float]:
    """Return what disturbed a measurement, and how much: empty where nothing did.

    A process counts as one vote, and a kind is there when more than half of the processes show it; other load when
    one does. ``load`` is wall over CPU time less 1 (of one thread), ``drift`` the largest change from the first third
    of a process's runs to the last, ``two speeds`` the slower of two modes over the faster less 1, ``unlike
    processes`` the largest median of a process over the smallest less 1. ``few runs`` is the share of ``least_runs``
    that the cap in time left of a slow network: its slowest run then need not lie above the percentile. ``heat`` is no
    ratio: the highest temperature in degrees Celsius at which a process began that had waited for a cooler one.
    """
    timings = measurement.timings
    found: dict[NoiseKind, float] = {}
    if any(timing.contended for timing in timings):
        found["load"] = sum(sum(t.wall_ns) for t in timings) / max(1, sum(sum(t.cpu_ns) for t in timings)) - 1
    medians = [float(np.median(timing.wall_ns)) for timing in timings]
    if max(medians) > (1 + UNLIKE_RATIO) * min(medians):
        found["unlike processes"] = max(medians) / min(medians) - 1
    drifts = [_drift(np.asarray(timing.wall_ns, dtype=np.float64)) for timing in timings]
    if 2 * sum(abs(drift) > DRIFT_RATIO for drift in drifts) > len(drifts):
        found["drift"] = max(drifts, key=abs)
    speeds = [_two_speeds(np.asarray(timing.wall_ns, dtype=np.float64)) for timing in timings]
    if 2 * sum(speed > SPEEDS_RATIO for speed in speeds) > len(speeds):
        found["two speeds"] = max(speeds)
    runs, least = sum(len(timing.wall_ns) for timing in timings), least_runs(percentile)
    if runs < least:
        found["few runs"] = runs / least
    began = [timing.temperatures_c[0] for timing in timings if timing.temperatures_c and timing.cooled_seconds]
    if max(began, default=0.0) > HOT_C:
        found["heat"] = max(began)
    return found


def _drift(samples: _Floats) -> float:
    """Return by how much the last third of a process's runs is slower than the first third."""
    third = len(samples) // 3
    return float(np.median(samples[-third:]) / np.median(samples[:third])) - 1 if third else 0.0


def _two_speeds(samples: _Floats) -> float:
    """Return by how much the slower of two modes is slower than the faster, or 0 where there is one mode.

    The runs are split where the variance within both parts is least (Otsu, 1979); the parts are two modes when they
    lie ``SPEEDS_SEPARATION`` of their standard deviations apart (Ashman's D, 1994).
    """
    values = np.sort(samples)
    count, share = len(values), math.ceil(SPEEDS_SHARE * len(samples))
    if count < 20:
        return 0.0
    sizes = np.arange(1, count)
    sums, squares = np.cumsum(values)[:-1], np.cumsum(values**2)[:-1]
    left = squares - sums**2 / sizes
    right = (values**2).sum() - squares - (values.sum() - sums) ** 2 / (count - sizes)
    inside = slice(share - 1, count - share)
    at = share + int(np.argmin((left + right)[inside]))
    low, high = values[:at], values[at:]
    apart = float(high.mean() - low.mean())
    spread = math.sqrt((low.var() + high.var()) / 2)
    return float(np.median(high) / np.median(low)) - 1 if apart > SPEEDS_SEPARATION * spread else 0.0


def throughput_per_s(measurement: Measurement) -> float:
    """Return samples a second of wall time, over all timed runs; by the median of a target that was foretold."""
    if measurement.estimate is not None:
        return 1e3 * measurement.batch_size / latency_interval_ms(measurement, 50).value
    runs = sum(len(timing.wall_ns) for timing in measurement.timings)
    return measurement.batch_size * runs / (sum(sum(timing.wall_ns) for timing in measurement.timings) / 1e9)


def load_ms(measurement: Measurement) -> float:
    """Return the median over the processes of the time to load the file."""
    return statistics.median(timing.load_ns for timing in measurement.timings) / 1e6


def comparison_ratio(comparison: Comparison) -> Interval:
    """Estimate how many times as long the file takes as the other: below 1 is faster.

    The estimate is the median over the pairs of processes, and the interval runs between two of them by the sign test:
    it holds whatever their distribution, and a pair that came to lie badly in memory cannot decide. It leaves out one
    pair at each end of 12, two of 16, three of 20, none of fewer than 12: at least 99 % from 8 pairs on, 97 % with 6,
    75 % with 3.
    """
    ratios = np.sort(pair_ratios(comparison))
    skip = _sign_test_skip(len(ratios))
    return Interval(float(np.median(ratios)), float(ratios[skip]), float(ratios[-1 - skip]))


def pair_ratios(comparison: Comparison) -> _Floats:
    """Return for each pair of processes how many times as long the file takes as the other.

    Other load, and other processes' use of a shared cache, only ever add time, for tenths of a second to seconds. So
    the fastest run of each turn counts, and of a process's turns the lower quartile: between equal files of 2 MB the
    ratio of these varied by 0.8 to 1.9 % from pair to pair where the median turn varied by 2 to 6 %. The fastest run
    of all would hang on one lucky reading of the clock.
    """
    step = comparison.blocks_per_pair
    mine, other = (
        np.array([min(block) for block in blocks], dtype=np.float64).reshape(-1, step)
        for blocks in (comparison.blocks_ns, comparison.against_blocks_ns)
    )
    ratios: _Floats = np.quantile(mine, 0.25, axis=1) / np.quantile(other, 0.25, axis=1)
    return ratios


def _sign_test_skip(count: int) -> int:
    """Return how many of ``count`` sorted values to leave out at each end of a 99 % interval for their median."""
    below = 0.0
    for skip in range((count + 1) // 2):
        below += math.comb(count, skip) / 2**count
        if 2 * below > 1 - LOOK_CONFIDENCE:
            return max(skip - 1, 0)
    return max((count - 1) // 2, 0)


def is_decided(comparison: Comparison) -> bool:
    """Say whether further pairs of processes would be wasted.

    Never before ``LEAST_PAIRS``. From then on, when too many pairs speak against "faster" and too many against
    "slower" for either to be said after all ``LOOKS``; at a look, when a verdict is found; and at once when every pair
    differs by more than ``CLEAR_EFFECT_RATIO``.
    """
    ratios = pair_ratios(comparison)
    count = len(ratios)
    if count < LEAST_PAIRS:
        return False
    against = (int(np.sum(ratios <= 1 + MINIMUM_EFFECT_RATIO)), int(np.sum(ratios >= 1 - MINIMUM_EFFECT_RATIO)))
    clear = bool(np.all(ratios > 1 + CLEAR_EFFECT_RATIO) or np.all(ratios < 1 - CLEAR_EFFECT_RATIO))
    hopeless = min(against) > _sign_test_skip(LOOKS[-1])
    return clear or hopeless or count >= LOOKS[-1] or (count in LOOKS and verdict(comparison) != "no difference")


def verdict(comparison: Comparison) -> Literal["faster", "slower", "no difference"]:
    """Say whether a file is faster or slower than the other, outside the noise alone.

    The whole interval of the ratio has to lie more than ``MINIMUM_EFFECT_RATIO`` from 1. Between equal files, that
    happens in at most 1.5 % of comparisons that end when ``is_decided`` says so, however large the noise: 1.44 % is
    the chance that a fair coin shows one side 8 times of 8, else 11 of 12, 14 of 16 or 17 of 20. (The short cut of
    ``CLEAR_EFFECT_RATIO`` adds to it only where pairs of equal files differ by that much, which none was seen to do.)
    """
    interval = comparison_ratio(comparison)
    if interval.high < 1 - MINIMUM_EFFECT_RATIO:
        return "faster"
    if interval.low > 1 + MINIMUM_EFFECT_RATIO:
        return "slower"
    return "no difference"


def paired_drop_interval(
    baseline_scores: ArrayLike, scores: ArrayLike, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Estimate by how much the mean score drops, over the same samples for both.

    The interval is a percentile bootstrap of the mean of the paired differences: a sample that both get wrong, or both
    right, adds nothing to the noise. Where no sample differs at all it has no width.

    Args:
        baseline_scores: One score a sample of the baseline.
        scores: One score a sample of the candidate, in the same order.
        confidence: Of the interval, in 0..1.
        seed: Of the draws.

    Returns:
        Baseline less candidate, with its interval; negative where the candidate is better.
    """
    first, second = np.asarray(baseline_scores, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise ValueError(f"one score a sample and the same samples: got shapes {first.shape} and {second.shape}")
    return mean_interval(first - second, confidence, seed)


def mean_interval(samples: ArrayLike, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Estimate the mean of independent samples, at least one; the interval is a percentile bootstrap."""
    values = np.asarray(samples, dtype=np.float64)
    rng, count = np.random.default_rng(seed), len(values)
    means = np.empty(BOOTSTRAP_REPEATS)
    for begin in range(0, BOOTSTRAP_REPEATS, 100):  # a hundred at a time bounds the memory
        drawn = rng.integers(0, count, size=(min(100, BOOTSTRAP_REPEATS - begin), count), dtype=np.int32)
        means[begin : begin + len(drawn)] = values[drawn].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(values.mean()), float(low), float(high))
