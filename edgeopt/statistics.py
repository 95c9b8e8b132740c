"""Everything statistical: raw samples in, point estimates with intervals out. Every draw is seeded.

Latencies differ more between processes than within one (memory layout, placement on cores). So a process, or a pair
of processes that took turns, is the unit that is resampled. There are few of them; each function here says how it
deals with that.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, stdtrit

from edgeopt.records.measurement import Comparison, Measurement

_Floats = NDArray[np.float64]

BOOTSTRAP_REPEATS = 4000
"""Enough that the ends of a 95 % interval move by less than a tenth of its width from seed to seed."""

MIN_PAIRS = 6
"""Pairs of processes in any comparison."""

LOOK_PAIRS = (8, 12, 16, 20)
"""Numbers of pairs of processes after which a verdict is attempted; the last one ends the comparison."""

MIN_PROCESSES = 3
"""In a measurement that ends early: of two processes, nobody could say which one is unusual."""

HOT_C = 60.0
"""Above this, a process waits before it times anything, as long as that helps (``COOL_C`` of ``bench.worker``)."""

NoiseKind = Literal["load", "drift", "two speeds", "unlike processes", "few runs", "heat"]

_REPORTED_CONFIDENCE = 0.95
_MIN_EFFECT_RATIO = 0.01
"""A smaller difference in time counts as none: nobody would ship another file for it, and a different memory layout
causes as much."""

_LOOK_CONFIDENCE = 0.99
"""Of the interval at each look; all looks together then err in less than 2 % (group-sequential sign test)."""

_CLEAR_EFFECT_RATIO = 0.15
"""If every pair differs by more than this, the verdict doesn't wait for the first look."""

_NARROW_RATIO = 0.02
"""Half an interval's width over its value at which a measurement ends early: the spread from process to process."""

_FAR_NARROW_RATIO = 0.1
"""The same if the whole interval keeps, or misses, the limit by at least a half."""

_DRIFT_RATIO = 0.05
"""The last third of a process's runs against the first third: a clock that changes, or a machine that warms up."""

_UNLIKE_RATIO = 0.1
"""The slowest process's median over the fastest one's, less 1; 3 to 5 % are usual."""

_SPEEDS_RATIO, _SPEEDS_SEPARATION, _SPEEDS_MIN_RUNS_RATIO = 0.05, 4.5, 0.1
"""Two speeds: how far apart their medians are at least, relatively and in standard deviations, and the share of the
runs that each has at least. The halves of a normal distribution are 2.6 apart, those of a uniform one 3.5."""


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def percentile_interval(
    processes: Sequence[Sequence[int]], percentile: float, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Estimate a percentile of the pooled samples of several processes.

    The interval is a two-stage bootstrap: first processes are drawn, then samples from those processes. The second
    stage is not simulated but drawn from the law of an order statistic of n samples, Beta(np, n(1 - p)), which costs
    nothing for long runs. With few processes a bootstrap interval is too narrow, so it is widened to the expanded
    percentile interval of Hesterberg, "What Teachers Should Know about the Bootstrap" (2015), section 5.2.

    Args:
        processes: Samples of each process, in any unit.
        percentile: 0 < percentile < 100.
        confidence: Of the interval, in 0..1.
        seed: Of the draws.

    Returns:
        The percentile (linear between neighbours) and its interval, in the samples' unit. A single process says
        nothing about the spread between processes, so its interval covers only the noise of the samples.
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
    quantile = float(stdtrit(count - 1, 1 - (1 - confidence) / 2))
    return statistics.NormalDist().cdf(-math.sqrt(count / (count - 1)) * quantile)


def latency_interval_ms(measurement: Measurement, percentile: float, confidence: float = 0.95) -> Interval:
    """Estimate a percentile of the wall time of one run, in milliseconds: on the target, if that was predicted.

    Raises:
        ValueError: the target's latency was predicted for other percentiles.
    """
    if measurement.estimate is not None:
        found = measurement.estimate.at(percentile)
        return Interval(found.value_ns / 1e6, found.low_ns / 1e6, found.high_ns / 1e6)
    interval = percentile_interval([timing.wall_ns for timing in measurement.timings], percentile, confidence)
    return Interval(*(value / 1e6 for value in interval))


def required_runs(percentile: float, confidence: float = 0.99) -> int:
    """Return how many runs it takes until the slowest of them bounds a percentile from above.

    All of n runs are below the p-quantile with probability p^n (the rule by which MLPerf's LoadGen ends early, Reddi
    et al., 2020, with no run left out). Example: 7 for the median, 44 for the 90th percentile, 459 for the 99th.
    """
    return math.ceil(math.log(1 - confidence) / math.log(percentile / 100))


def is_precise_enough(processes: Sequence[Sequence[int]], percentile: float, max_latency_ns: float | None) -> bool:
    """Tell whether a percentile is known so well that another process would change nothing that matters.

    That takes ``required_runs`` and ``MIN_PROCESSES``, and an interval narrower than ``_NARROW_RATIO`` to each side,
    or than ``_FAR_NARROW_RATIO`` if the limit is far away.
    """
    if len(processes) < MIN_PROCESSES or sum(map(len, processes)) < required_runs(percentile):
        return False
    value, low, high = percentile_interval(processes, percentile)
    far = max_latency_ns is not None and (1.5 * high < max_latency_ns or low > 1.5 * max_latency_ns)
    return max(high - value, value - low) <= (_FAR_NARROW_RATIO if far else _NARROW_RATIO) * value


def is_complete(measurement: Measurement, percentile: float, max_latency_ms: float | None) -> bool:
    """Tell whether a measurement has all the processes of its rule, or ended early for a reason that still holds."""
    samples = [timing.wall_ns for timing in measurement.timings]
    limit_ns = None if max_latency_ms is None else max_latency_ms * 1e6
    return len(samples) >= measurement.rule.processes or is_precise_enough(samples, percentile, limit_ns)


def find_noise(measurement: Measurement, percentile: float = 50) -> dict[NoiseKind, float]:
    """Return the kinds of noise that disturbed a measurement, each with its size; empty if nothing did.

    Each process has one vote, and a kind counts if more than half of the processes show it; for other load, one is
    enough. ``load`` is wall over CPU time less 1 (of one thread), ``drift`` the largest change from the first third
    of a process's runs to the last, ``two speeds`` the slower of two modes over the faster less 1, ``unlike
    processes`` the largest median of a process over the smallest less 1. ``few runs`` is the share of
    ``required_runs`` that a slow network reached before the time limit: its slowest run may then be below the
    percentile. ``heat`` is not a ratio but the highest temperature, in degrees Celsius, at which a process began to
    time after it had waited for the processor to cool down.
    """
    timings = measurement.timings
    found: dict[NoiseKind, float] = {}
    if any(timing.contended for timing in timings):
        found["load"] = sum(sum(t.wall_ns) for t in timings) / max(1, sum(sum(t.cpu_ns) for t in timings)) - 1
    medians = [float(np.median(timing.wall_ns)) for timing in timings]
    if max(medians) > (1 + _UNLIKE_RATIO) * min(medians):
        found["unlike processes"] = max(medians) / min(medians) - 1
    drifts = [_drift(np.asarray(timing.wall_ns, dtype=np.float64)) for timing in timings]
    if 2 * sum(abs(drift) > _DRIFT_RATIO for drift in drifts) > len(drifts):
        found["drift"] = max(drifts, key=abs)
    speeds = [_two_speeds(np.asarray(timing.wall_ns, dtype=np.float64)) for timing in timings]
    if 2 * sum(speed > _SPEEDS_RATIO for speed in speeds) > len(speeds):
        found["two speeds"] = max(speeds)
    runs, required = sum(len(timing.wall_ns) for timing in timings), required_runs(percentile)
    if runs < required:
        found["few runs"] = runs / required
    starts_c = [timing.temperatures_c[0] for timing in timings if timing.temperatures_c and timing.cooled_seconds]
    if max(starts_c, default=0.0) > HOT_C:
        found["heat"] = max(starts_c)
    return found


def _drift(samples: _Floats) -> float:
    """Return how much slower the last third of a process's runs is than the first third."""
    third = len(samples) // 3
    return float(np.median(samples[-third:]) / np.median(samples[:third])) - 1 if third else 0.0


def _two_speeds(samples: _Floats) -> float:
    """Return how much slower the slower of two modes is than the faster, or 0 if there is only one mode.

    The runs are split where the variance within both parts is least (Otsu, 1979). The parts are two modes if they
    are ``_SPEEDS_SEPARATION`` of their standard deviations apart (Ashman's D, 1994).
    """
    values = np.sort(samples)
    count, min_runs = len(values), math.ceil(_SPEEDS_MIN_RUNS_RATIO * len(samples))
    if count < 20:
        return 0.0
    sizes = np.arange(1, count)
    sums, squares = np.cumsum(values)[:-1], np.cumsum(values**2)[:-1]
    left = squares - sums**2 / sizes
    right = (values**2).sum() - squares - (values.sum() - sums) ** 2 / (count - sizes)
    inside = slice(min_runs - 1, count - min_runs)
    split = min_runs + int(np.argmin((left + right)[inside]))
    low, high = values[:split], values[split:]
    apart = float(high.mean() - low.mean())
    spread = math.sqrt((low.var() + high.var()) / 2)
    return float(np.median(high) / np.median(low)) - 1 if apart > _SPEEDS_SEPARATION * spread else 0.0


def throughput_per_s(measurement: Measurement) -> float:
    """Return samples a second of wall time, over all timed runs; from the median if the latency was predicted."""
    if measurement.estimate is not None:
        return 1e3 * measurement.batch_size / latency_interval_ms(measurement, 50).value
    runs = sum(len(timing.wall_ns) for timing in measurement.timings)
    return measurement.batch_size * runs / (sum(sum(timing.wall_ns) for timing in measurement.timings) / 1e9)


def load_ms(measurement: Measurement) -> float:
    """Return the time to load the file: the median over the processes."""
    return statistics.median(timing.load_ns for timing in measurement.timings) / 1e6


def comparison_ratio(comparison: Comparison) -> Interval:
    """Estimate how many times as long the file takes as the other one: below 1 is faster.

    The estimate is the median over the pairs of processes. The interval goes from one pair to another by the sign
    test: it holds for any distribution, and a pair with an unlucky memory layout cannot decide. It leaves out one pair
    at each end of 12, two of 16, three of 20, and none of fewer than 12: at least 99 % from 8 pairs on, 97 % with 6,
    75 % with 3.
    """
    ratios = np.sort(_pair_ratios(comparison))
    skip = _sign_test_skip(len(ratios))
    return Interval(float(np.median(ratios)), float(ratios[skip]), float(ratios[-1 - skip]))


def _pair_ratios(comparison: Comparison) -> _Floats:
    """Return how many times as long the file takes as the other one, for each pair of processes.

    Other load, and other processes' use of a shared cache, only ever add time, for tenths of a second to seconds. So
    the fastest run of each turn counts, and the lower quartile of a process's turns: between equal files of 2 MB
    the ratio of these varied by 0.8 to 1.9 % from pair to pair, that of the median turns by 2 to 6 %. The fastest run
    of all would depend on one lucky reading of the clock.
    """
    step = comparison.blocks_per_pair
    mine, other = (
        np.array([min(block) for block in blocks], dtype=np.float64).reshape(-1, step)
        for blocks in (comparison.blocks_ns, comparison.against_blocks_ns)
    )
    ratios: _Floats = np.quantile(mine, 0.25, axis=1) / np.quantile(other, 0.25, axis=1)
    return ratios


def _sign_test_skip(count: int) -> int:
    """Return how many of ``count`` sorted values to leave out at each end for a 99 % interval of their median."""
    below = 0.0
    for skip in range((count + 1) // 2):
        below += math.comb(count, skip) / 2**count
        if 2 * below > 1 - _LOOK_CONFIDENCE:
            return max(skip - 1, 0)
    return max((count - 1) // 2, 0)


def is_decided(comparison: Comparison) -> bool:
    """Tell whether further pairs of processes would be wasted.

    Never before ``MIN_PAIRS``. From then on, if enough pairs contradict "faster" and enough contradict "slower" that
    neither can be the verdict after all looks; at one of ``LOOK_PAIRS``, if there is a verdict; and immediately if
    every pair differs by more than ``_CLEAR_EFFECT_RATIO``.
    """
    ratios = _pair_ratios(comparison)
    count, last = len(ratios), LOOK_PAIRS[-1]
    if count < MIN_PAIRS:
        return False
    against = (int(np.sum(ratios <= 1 + _MIN_EFFECT_RATIO)), int(np.sum(ratios >= 1 - _MIN_EFFECT_RATIO)))
    clear = bool(np.all(ratios > 1 + _CLEAR_EFFECT_RATIO) or np.all(ratios < 1 - _CLEAR_EFFECT_RATIO))
    hopeless = min(against) > _sign_test_skip(last)
    return clear or hopeless or count >= last or (count in LOOK_PAIRS and verdict(comparison) != "no difference")


def verdict(comparison: Comparison) -> Literal["faster", "slower", "no difference"]:
    """Say whether a file is faster or slower than the other one by more than the noise.

    The whole interval of the ratio has to be more than ``_MIN_EFFECT_RATIO`` away from 1. Between equal files, that
    happens in at most 1.5 % of the comparisons that end by ``is_decided``, however large the noise: 1.44 % is the
    chance that a fair coin shows one side 8 times of 8, else 11 of 12, 14 of 16 or 17 of 20. (The short cut of
    ``_CLEAR_EFFECT_RATIO`` adds to it only if all pairs of equal files differ by that much, which was never seen.)
    """
    interval = comparison_ratio(comparison)
    if interval.high < 1 - _MIN_EFFECT_RATIO:
        return "faster"
    if interval.low > 1 + _MIN_EFFECT_RATIO:
        return "slower"
    return "no difference"


def end_at(point: float, end: float, confidence: float) -> float:
    """Return an end of an interval for another confidence, as of a normal distribution.

    Args:
        point: The estimate.
        end: Of its 95 % interval, lower or upper.
        confidence: In 0..1; the estimate itself at 0.
    """
    if confidence == _REPORTED_CONFIDENCE:
        return end
    normal = statistics.NormalDist()
    ratio = normal.inv_cdf((1 + confidence) / 2) / normal.inv_cdf((1 + _REPORTED_CONFIDENCE) / 2)
    return point + ratio * (end - point)


def paired_drop_interval(
    baseline_scores: ArrayLike, scores: ArrayLike, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Estimate how much the mean score drops, over the same samples for both.

    The interval is a percentile bootstrap of the mean of the paired differences: a sample that both get wrong, or both
    right, adds nothing to the noise. If no sample differs at all, the interval has no width.

    Args:
        baseline_scores: The baseline's score of each sample.
        scores: The candidate's score of each sample, in the same order.
        confidence: Of the interval, in 0..1.
        seed: Of the draws.

    Returns:
        Baseline less candidate, with its interval; negative if the candidate is better.
    """
    first, second = np.asarray(baseline_scores, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise ValueError(f"expected one score for each of the same samples, got {first.shape} and {second.shape}")
    return mean_interval(first - second, confidence, seed)


def exact_share_interval(count: int, total: int, confidence: float = 0.95) -> Interval:
    """Return a share with its exact interval (Clopper and Pearson, 1934), which has a width for 0 and for all too.

    Args:
        count: Of those that have the property.
        total: Of all.
        confidence: Of the interval, in 0..1.
    """
    tail = (1 - confidence) / 2
    low = betaincinv(count, total - count + 1, tail) if count else 0.0
    high = betaincinv(count + 1, total - count, 1 - tail) if count < total else 1.0
    return Interval(count / total, float(low), float(high))


def mean_interval(samples: ArrayLike, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Estimate the mean of one or more independent samples; the interval is a percentile bootstrap."""
    values = np.asarray(samples, dtype=np.float64)
    rng, count = np.random.default_rng(seed), len(values)
    means = np.empty(BOOTSTRAP_REPEATS)
    for begin in range(0, BOOTSTRAP_REPEATS, 100):  # a hundred at a time bounds the memory
        drawn = rng.integers(0, count, size=(min(100, BOOTSTRAP_REPEATS - begin), count), dtype=np.int32)
        means[begin : begin + len(drawn)] = values[drawn].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(values.mean()), float(low), float(high))
