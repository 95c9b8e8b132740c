"""What the chosen file is expected to lose on other data: more than on the samples that chose it.

The smallest of several files that keep a limit on some samples owes a part of that to these samples: another file, or a
larger one, would have been chosen with others. The bootstrap repeats the choice on draws of the samples and looks at
what the file chosen by a draw loses on all of them (Efron, 1983: the optimism of a rule judged by its own data).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

REPEATS = 200
"""Draws: the mean over them is what counts, not their tails."""


class ScoredFile(NamedTuple):
    """A file that keeps every other limit."""

    size_bytes: int
    drop_of: Callable[[NDArray[np.int64]], float]
    """From how often each sample is drawn to the drop of the score over that draw."""
    drop: float
    """Over all samples."""
    margin: float
    """From the drop to the end of its interval, which has to keep the limit."""


def estimate_optimism(files: Sequence[ScoredFile], max_drop: float, samples: int, seed: int = 0) -> float:
    """Return how much more the chosen file loses on other samples than on those that chose it.

    Args:
        files: Among which the smallest is chosen whose drop and margin keep the limit.
        max_drop: The limit.
        samples: Number of samples, which are drawn with replacement.
        seed: Of the draws.

    Returns:
        Never below 0; 0 if no draw chooses anything.
    """
    random = np.random.default_rng(seed)
    ordered = sorted(files, key=lambda file: file.size_bytes)
    found = list[float]()
    for _ in range(REPEATS):
        counts = random.multinomial(samples, np.full(samples, 1 / samples))
        for file in ordered:
            drop = file.drop_of(counts)
            if drop + file.margin <= max_drop:
                found.append(file.drop - drop)
                break
    return max(0.0, float(np.mean(found))) if found else 0.0
