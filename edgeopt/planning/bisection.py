"""How many parameters the next candidates have: bisection towards the smallest network that keeps the score.

The other limits need no separate search. A smaller network is not slower or larger, so if latency, memory or size is
missed, the search also goes down, and only the score stops it. In: the sizes tried so far. Out: parameter ratios, the
same for the same history.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

FIRST_STEP_RATIO = 1 / 8
"""The first round reaches down to this ratio of the parameters of the smallest network known to be good."""
CLOSED_RANGE_RATIO = 1.12
"""If the smallest good ratio is within this factor of the largest bad one, another training gains little."""
SMALLEST_RATIO = 0.005
LEAST_COUNT = 2
"""Sizes that a round tries on a small machine."""


class Point(NamedTuple):
    """One network that was tried."""

    ratio: float
    """Its parameters over the original's."""
    good: bool
    """Its file, in the precision of the search, keeps the score limit."""


def smallest_good(points: Sequence[Point]) -> float | None:
    """Return the smallest ratio that is good, or None."""
    return min((point.ratio for point in points if point.good), default=None)


def largest_bad(points: Sequence[Point]) -> float | None:
    """Return the largest ratio below the smallest good one that is not good, or None."""
    good = smallest_good(points)
    return max(
        (point.ratio for point in points if not point.good and (good is None or point.ratio < good)), default=None
    )


def next_ratios(points: Sequence[Point], count: int) -> tuple[float, ...]:
    """Return up to ``count`` ratios to try next, largest first; none if the range is closed.

    They divide the range between the largest bad and the smallest good ratio evenly on a logarithmic scale; more than
    ``LEAST_COUNT`` are not closer to each other than ``CLOSED_RANGE_RATIO``. If nothing is bad yet, the range's lower
    end is ``FIRST_STEP_RATIO`` of the good ratio, and is tried too. If nothing is good, not even the original, nothing
    smaller can be.
    """
    good, bad = smallest_good(points), largest_bad(points)
    if good is None:
        return ()
    if bad is None:
        ratios = [good * FIRST_STEP_RATIO ** (step / count) for step in range(1, count + 1)]
    elif good / bad < CLOSED_RANGE_RATIO:
        return ()
    else:
        count = min(count, max(LEAST_COUNT, int(math.log(good / bad) / math.log(CLOSED_RANGE_RATIO)) - 1))
        ratios = [good * (bad / good) ** (step / (count + 1)) for step in range(1, count + 1)]
    return tuple(ratio for ratio in ratios if ratio >= SMALLEST_RATIO)


def parent_ratio(points: Sequence[Point], ratio: float) -> float:
    """Return the ratio of the network that a candidate starts from: the nearest larger good one, or the original."""
    return min((point.ratio for point in points if point.good and point.ratio > ratio), default=1.0)
