"""Sequences of answers as CTC writes them: how far two are apart, and whether an output holds some.

The answer at each step is a class or a blank; equal answers in a row are one, and blanks are none (Graves et al., 2006,
section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MIN_BLANK_RATIO = 0.3
"""Of all steps; texts of a reader and of a speech network have more than half."""
_MAX_RUN_STEPS = 2.5
"""Mean number of steps for which an answer other than a blank stays: classes of single steps stay for longer."""

_Ints = NDArray[np.int64]


def read_sequence(steps: _Ints, blank: int) -> list[int]:
    """Return the answers of one sequence of steps, without repetitions and blanks."""
    changed = steps[np.append(True, steps[1:] != steps[:-1])] if len(steps) else steps
    return [int(answer) for answer in changed if answer != blank]


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many insertions, deletions and substitutions lead from one sequence to the other (Levenshtein)."""
    above = list(range(len(other) + 1))
    for row, mine in enumerate(one, 1):
        below = [row]
        for column, theirs in enumerate(other, 1):
            below.append(min(above[column] + 1, below[-1] + 1, above[column - 1] + (mine != theirs)))
        above = below
    return above[-1]


def sequence_scores(answers: _Ints, truth: _Ints, blank: int) -> NDArray[np.float64]:
    """Return for each sample one less the edit distance, relative to the longer sequence.

    Args:
        answers: Of the file, shape (samples, steps).
        truth: Of the baseline.
        blank: The class that is no answer.
    """
    rows = zip(answers, truth, strict=True)
    found = [(read_sequence(mine, blank), read_sequence(theirs, blank)) for mine, theirs in rows]
    return np.array([1 - edit_distance(*pair) / max(1, *map(len, pair)) for pair in found], dtype=np.float64)


def find_blank(answers: Sequence[_Ints], classes: int) -> int | None:
    """Return the blank of outputs that look like CTC: the first or the last class, often and between short runs.

    Args:
        answers: For each batch the class at each step, shape (samples, steps).
        classes: How many there are.
    """
    steps = np.concatenate([batch.reshape(-1) for batch in answers])
    for blank in (0, classes - 1):
        lengths = [sum(len(read_sequence(row, blank)) for row in batch) for batch in answers]
        spoken = int((steps != blank).sum())
        if not spoken or (steps == blank).mean() < _MIN_BLANK_RATIO:
            continue
        if spoken / max(1, sum(lengths)) <= _MAX_RUN_STEPS:
            return blank
    return None
