"""How much one way to choose networks costs over another one at equal score. This is a part of ``depth.py``.

Each way gives networks of several sizes: points of a cost (a latency, or bytes) and a score. Between neighbouring
points of a way's front the logarithm of the cost is linear in the score. The two fronts are compared at every score
that both reach, and the mean is taken, as video codecs are compared (Bjøntegaard, "Calculation of average PSNR
differences between RD-curves", 2001).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgeopt.statistics import expanded_tail, mean_interval

MIN_SEEDS = 3
"""Fewer say nothing about the spread."""
CONFIDENCE = 0.95


class CostPoint(NamedTuple):
    """One network."""

    cost: float
    """In any unit, above 0."""
    score: float
    """Higher is better."""


class SeedRatio(NamedTuple):
    """A ratio over seeds, with the ends of its 95 % interval; None if there are too few seeds."""

    value: float
    low: float | None
    high: float | None


def front_of(points: Sequence[CostPoint]) -> list[CostPoint]:
    """Return the points that no cheaper point, or equally cheap one, reaches in score; the cheapest first."""
    front: list[CostPoint] = []
    for point in sorted(points, key=lambda one: (one.cost, -one.score)):
        if not front or point.score > front[-1].score:
            front.append(point)
    return front


def ratio_at_equal_score(ours: Sequence[CostPoint], others: Sequence[CostPoint]) -> float | None:
    """Return our cost over the others' at equal score: the geometric mean over the scores that both reach.

    Returns:
        None if there is no such score.
    """
    fronts = front_of(ours), front_of(others)
    if not all(fronts):
        return None
    low = max(front[0].score for front in fronts)
    high = min(front[-1].score for front in fronts)
    if low > high:
        return None
    inside = {point.score for front in fronts for point in front if low < point.score < high}
    scores = np.array(sorted({low, high} | inside))
    mine, other = (_log_cost_at(front, scores) for front in fronts)
    if len(scores) == 1:
        return math.exp(float(mine[0] - other[0]))
    return math.exp(float(np.trapezoid(mine - other, scores)) / (high - low))


def _log_cost_at(front: Sequence[CostPoint], scores: np.ndarray) -> np.ndarray:
    """Return the logarithm of the cost at scores inside a front's range."""
    return np.interp(scores, [point.score for point in front], [math.log(point.cost) for point in front])


def over_seeds(ratios: Sequence[float | None]) -> SeedRatio | None:
    """Return the geometric mean of the seeds' ratios and its interval.

    The interval is the bootstrap of ``edgeopt.statistics``, as wide as few seeds need.

    Returns:
        None if a seed has no ratio.
    """
    known = [math.log(ratio) for ratio in ratios if ratio is not None]
    if not known or len(known) < len(ratios):
        return None
    if len(known) < MIN_SEEDS:
        return SeedRatio(math.exp(sum(known) / len(known)), None, None)
    found = mean_interval(known, confidence=1 - 2 * expanded_tail(len(known), CONFIDENCE))
    return SeedRatio(*(math.exp(end) for end in found))
