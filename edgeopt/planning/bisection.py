"""How many parameters the next candidates have: bisection towards the smallest network that keeps the score.

The other limits need no search of their own. A smaller network is not slower or heavier, so where latency, memory or
size is missed the way is down too, and only the score stops it. In: what was tried. Out: parameter ratios, the same for
the same history.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

FIRST_STEP_RATIO = 1 / 8
"""The first round reaches down to this share of the parameters of the smallest network known to be good enough."""
CLOSED_RANGE_RATIO = 1.12
"""Where the smallest good ratio is within this factor of the largest bad one, another training buys little."""
SMALLEST_RATIO = 0.005


class Point(NamedTuple):
    """One network that was tried."""

    ratio: float
    """Its parameters over the original's."""
    good: bool
    """Its file in the precision that is searched keeps the score's floor."""


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
    """Return up to ``count`` ratios to try next, largest first; none where the bracket is closed.

    They part the bracket between the largest bad and the smallest good ratio evenly on a logarithmic scale. Where
    nothing is bad yet, the bracket's lower end is ``FIRST_STEP_RATIO`` of the good one, and is itself tried. Where nothing is
    good, not even the original, nothing smaller is.
    """
    good, bad = smallest_good(points), largest_bad(points)
    if good is None:
        return ()
    if bad is None:
        ratios = [good * FIRST_STEP_RATIO ** (step / count) for step in range(1, count + 1)]
    elif good / bad < CLOSED_RANGE_RATIO:
        return ()
    else:
        ratios = [good * (bad / good) ** (step / (count + 1)) for step in range(1, count + 1)]
    return tuple(ratio for ratio in ratios if ratio >= SMALLEST_RATIO)


def parent_ratio(points: Sequence[Point], ratio: float) -> float:
    """Return the ratio of the network that a candidate starts from: the nearest larger good one, else the original."""
    return min((point.ratio for point in points if point.good and point.ratio > ratio), default=1.0)
