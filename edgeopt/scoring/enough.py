"""Whether a set has enough samples to show that a candidate keeps the allowed drop, estimated before any training."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_PAIRED_VARIANCE_RATIO = 0.5
"""Variance of the paired difference of a candidate and the baseline, over the variance of the baseline's own scores: a
correlation of 0.75. For right or wrong answers it means that the share of samples on which only one of the two is right
is half of the baseline's errors; files of the default task have 0.3 to 0.5 of them."""


def expected_margin(
    samples: NDArray[np.float64], allowed: float, confidence: float = 0.95, *, single_answers: bool = True
) -> float:
    """Return the expected distance from the drop to the upper end of its paired interval.

    That of a mean over N samples reaches z sd / sqrt(N) above the drop, with sd the standard deviation of the paired
    differences, and z 1.96 for 95 %. That is not known before a candidate exists, so its square is taken as half of the
    variance of the baseline's scores. A candidate that loses the whole allowed drop D answers at least a share D
    of the samples differently, so for scores of 0 and 1 the square is at least D.

    Args:
        samples: The baseline's score of each sample.
        allowed: The allowed drop, above 0.
        confidence: Of the interval.
        single_answers: Whether a score of 0 or 1 is that of one answer; False for means over positions or labels.
    """
    variance = _PAIRED_VARIANCE_RATIO * float(np.var(samples))
    if single_answers and np.isin(samples, (0.0, 1.0)).all():
        variance = max(variance, allowed)
    return NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(variance / len(samples))


def samples_needed(
    samples: NDArray[np.float64], allowed: float, confidence: float = 0.95, *, single_answers: bool = True
) -> int:
    """Return how many samples make ``expected_margin`` equal to the allowed drop, to two significant digits.

    With fewer, a candidate that loses nothing would be expected to miss the limit by the noise of the samples.
    """
    margin = expected_margin(samples, allowed, confidence, single_answers=single_answers)
    needed = float(len(samples)) * (margin / allowed) ** 2
    digits = max(0, math.floor(math.log10(max(needed, 1))) - 1)
    step: int = 10**digits
    return math.ceil(needed / step) * step
