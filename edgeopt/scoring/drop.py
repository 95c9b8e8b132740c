"""How much worse a file scores than the baseline, with a paired interval over samples of the score itself.

If the score is the mean of scores of single samples, these are resampled. If it is not (mIoU, F1, average precision,
word error rate), the samples are resampled and the whole score is computed again for each draw; from sums over samples
or from rows of numbers, one for each sample, if the task gives these, otherwise by ``score`` of the drawn samples, as
often as a time limit allows. If samples cannot be drawn, there is no interval: that of another number would be a wrong
one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import TaskError
from edgeopt.records.scoring import ScoreDirection
from edgeopt.scoring.samples import Pair, SampleSet
from edgeopt.statistics import Interval, paired_drop_interval

SUM_REPEATS = 2000
"""Draws if the score is computed from sums."""
MAX_REPEATS, MIN_REPEATS = 1000, 200
"""Draws if the whole score is computed for each: with 200 the ends of a 95 % interval lie between the 3rd and 8th value
from the end in most runs."""
MIN_BATCHES = 20
"""To resample whole batches."""
MAX_DRAW_SECONDS = 10.0
"""For these draws, of both files together."""
MEAN_TOLERANCE = 1e-4
"""How far the mean of scores of single samples may be from the score, relative to the larger of it and 1: single
precision, and scores that are rounded to four places."""

_Floats = NDArray[np.float64]
_ScoreFunction = Callable[[Sequence[Pair]], float]


class ScoreParts(Protocol):
    """A score on a set, and what its intervals are computed from."""

    @property
    def value(self) -> float:
        """The score."""

    @property
    def samples(self) -> _Floats | None:
        """Scores of single samples; None if there are none. The score is not always their mean."""

    @property
    def rows(self) -> _Floats | None:
        """A row of numbers for each sample, which the score is computed from; None if there are none."""


class ScoreRule(Protocol):
    """How a task computes its score."""

    @property
    def score_direction(self) -> ScoreDirection:
        """Whether a higher or a lower score is better."""

    @property
    def scores_rows(self) -> bool:
        """Whether the score is computed from rows of single samples, instead of their sums."""

    def score_rows(self, rows: _Floats, /) -> float:
        """Return the score from rows."""

    def score_statistics(self, sums: _Floats, /) -> float:
        """Return the score from the sums of rows."""

    def score(self, pairs: Sequence[Pair], /) -> float:
        """Return the score from outputs and targets, in batches."""


def worsening(baseline: float, value: float, direction: ScoreDirection) -> float:
    """Return how much worse a score is than the baseline's; negative if it is better."""
    return baseline - value if direction == "higher" else value - baseline


def is_mean(score: float, samples: _Floats | None) -> bool:
    """Tell whether a score is the mean of the scores of single samples, within rounding."""
    if samples is None or samples.ndim != 1 or not samples.size or not np.isfinite(samples).all():
        return False
    return bool(abs(float(samples.mean()) - score) <= MEAN_TOLERANCE * max(1.0, abs(score)))


def drop_interval(
    baseline: ScoreParts,
    found: ScoreParts,
    rule: ScoreRule,
    read_samples: Callable[[], tuple[Sequence[Pair], Sequence[Pair], Sequence[int]]],
    seed: int = 0,
) -> Interval | None:
    """Return the drop of a score with its 95 % interval over the same samples, from the least that it can be had from.

    That is the scores of single samples if the score is their mean, else the rows of numbers of both files, else draws
    of outputs and targets.

    Args:
        baseline: The score of the baseline.
        found: That of the file, over the same samples.
        rule: How both were computed.
        read_samples: Gives outputs with targets of the baseline and of the file, and the number of samples in each
            batch; called only for draws.
        seed: Of the draws.

    Returns:
        None if samples cannot be drawn, see ``resampled_drop_interval``.
    """
    direction = rule.score_direction
    if (means := _matching(mean_of(baseline), mean_of(found))) is not None:
        return mean_drop_interval(*means, direction)
    if (rows := _matching(baseline.rows, found.rows)) is not None:
        if rule.scores_rows:
            return rows_drop_interval(*rows, rule.score_rows, direction)
        return sums_drop_interval(*rows, rule.score_statistics, direction)
    before, after, counts = read_samples()
    return resampled_drop_interval(before, after, counts, rule.score, direction, seed=seed)


def mean_of(score: ScoreParts) -> _Floats | None:
    """Return the scores of single samples if the score is their mean."""
    return score.samples if is_mean(score.value, score.samples) else None


def _matching(first: _Floats | None, second: _Floats | None) -> tuple[_Floats, _Floats] | None:
    """Return both if they are of the same samples."""
    return None if first is None or second is None or first.shape != second.shape else (first, second)


def mean_drop_interval(baseline: _Floats, samples: _Floats, direction: ScoreDirection) -> Interval:
    """Return the drop of a score that is a mean, with its 95 % interval.

    Args:
        baseline: Scores of the baseline's samples.
        samples: Those of the file, in the same order.
        direction: Of the score.
    """
    return paired_drop_interval(baseline, samples) if direction == "higher" else paired_drop_interval(samples, baseline)


def sums_drop_interval(
    baseline: _Floats, samples: _Floats, score: Callable[[_Floats], float], direction: ScoreDirection, seed: int = 0
) -> Interval:
    """Return the drop of a score that is computed from sums over samples, with its 95 % interval.

    Args:
        baseline: Of the baseline: the numbers of each sample, shape (samples, numbers).
        samples: Of the file, in the same order.
        score: From the sums of the numbers to the score.
        direction: Of the score.
        seed: Of the draws.
    """
    rng, count = np.random.default_rng(seed), len(baseline)
    drops = np.empty(SUM_REPEATS)
    for index in range(SUM_REPEATS):
        weights = np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)
        drops[index] = worsening(score(weights @ baseline), score(weights @ samples), direction)
    return _interval(worsening(score(baseline.sum(0)), score(samples.sum(0)), direction), drops)


def sums_interval(samples: _Floats, score: Callable[[_Floats], float], seed: int = 0) -> Interval:
    """Return a score that is computed from sums over samples, with its 95 % interval; see ``sums_drop_interval``."""
    rng, count = np.random.default_rng(seed), len(samples)
    found = np.empty(SUM_REPEATS)
    for index in range(SUM_REPEATS):
        weights = np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)
        found[index] = score(weights @ samples)
    return _interval(score(samples.sum(0)), found)


def rows_drop_interval(
    baseline: _Floats, samples: _Floats, score: Callable[[_Floats], float], direction: ScoreDirection, seed: int = 0
) -> Interval | None:
    """Return the drop of a score that is computed from rows of single samples, with its 95 % interval.

    Args:
        baseline: Of the baseline: a row of numbers for each sample.
        samples: Of the file, in the same order.
        score: From the rows of any draw of samples to the score.
        direction: Of the score.
        seed: Of the draws.

    Returns:
        None if the time limit allows fewer than ``MIN_REPEATS`` draws.
    """
    rng, count = np.random.default_rng(seed), len(baseline)

    def drop(chosen: NDArray[np.int64]) -> float:
        return worsening(score(baseline[chosen]), score(samples[chosen]), direction)

    drops = _repeat(lambda: drop(np.sort(rng.integers(0, count, count))))
    return None if drops is None else _interval(drop(np.arange(count)), drops)


def rows_interval(samples: _Floats, score: Callable[[_Floats], float], seed: int = 0) -> Interval | None:
    """Return a score that is computed from rows, with its 95 % interval; see ``rows_drop_interval``."""
    rng, count = np.random.default_rng(seed), len(samples)
    found = _repeat(lambda: score(samples[np.sort(rng.integers(0, count, count))]))
    return None if found is None else _interval(score(samples), found)


def resampled_drop_interval(
    baseline: Sequence[Pair],
    pairs: Sequence[Pair],
    counts: Sequence[int],
    score: _ScoreFunction,
    direction: ScoreDirection,
    *,
    seed: int = 0,
    max_repeats: int = MAX_REPEATS,
    max_seconds: float = MAX_DRAW_SECONDS,
) -> Interval | None:
    """Return the drop of any score with its 95 % interval, from draws of samples; None if that is not possible.

    A score that depends on how samples are batched (a mean over batches) is resampled by whole batches.

    It is not possible if batches can't be taken apart into samples, if ``score`` fails on a draw, if a score that
    depends on batches has fewer than ``MIN_BATCHES``, or if the time limit allows fewer than ``MIN_REPEATS`` draws.

    Args:
        baseline: Outputs of the baseline with the targets, in batches.
        pairs: Outputs of the file with the targets, in the same batches.
        counts: Samples in each batch.
        score: The task's score.
        direction: Of the score.
        seed: Of the draws.
        max_repeats: Number of draws.
        max_seconds: For all draws.
    """
    total = sum(counts)
    sets = [SampleSet(group, counts) for group in (baseline, pairs)]
    if total < 2 or not all(one.can_be_drawn for one in sets):
        return None
    rng = np.random.default_rng(seed)
    try:
        whole = worsening(score(baseline), score(pairs), direction)
        by_sample = _ignores_batches(sets[1], score)
        if not by_sample and len(counts) < MIN_BATCHES:
            return None
        units = total if by_sample else len(counts)

        def draw() -> float:
            chosen = rng.integers(0, units, units).tolist()
            first, second = (one.draw(chosen) if by_sample else [one.pairs[index] for index in chosen] for one in sets)
            return worsening(score(first), score(second), direction)

        drops = _repeat(draw, max_repeats, max_seconds)
    except TaskError:
        return None  # this score needs the whole set
    return None if drops is None else _interval(whole, drops)


def _repeat(
    draw: Callable[[], float], max_repeats: int = MAX_REPEATS, max_seconds: float = MAX_DRAW_SECONDS
) -> _Floats | None:
    """Return the values of repeated draws; None if they are too slow for an interval that means something."""
    began, found = time.perf_counter(), list[float]()
    while len(found) < max_repeats:
        spent = time.perf_counter() - began
        if found and spent / len(found) * MIN_REPEATS > max_seconds:
            return None
        if spent > max_seconds and len(found) >= MIN_REPEATS:
            break
        found.append(draw())
    return np.asarray(found)


def _ignores_batches(samples: SampleSet, score: _ScoreFunction) -> bool:
    """Tell whether a score is the same if every batch is cut in two unequal parts; a mean over batches is not."""
    parts: list[Pair] = []
    begin = 0
    for count in samples.counts:
        cut = begin + max(1, count // 3)
        for rows in (range(begin, cut), range(cut, begin + count)):
            parts += samples.draw(rows)
        begin += count
    return bool(np.isclose(score(samples.pairs), score(parts), rtol=1e-6, atol=1e-9))


def _interval(value: float, drops: Any) -> Interval:
    low, high = np.quantile(drops, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))
