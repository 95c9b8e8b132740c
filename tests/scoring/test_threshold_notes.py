"""Answers of yes or no that would be right more often above another threshold: a note says which."""

import numpy as np

from edgeopt.records.scoring import ScoreWish
from edgeopt.scoring.choose import choose_score
from edgeopt.scoring.compute import score_of

COUNT = 60
RANDOM = np.random.default_rng(0)
YES = RANDOM.integers(0, 2, COUNT)


def chosen(output, labels):
    """Return the kind for one output, and its score."""
    kind = choose_score([(output,)], ["output"], [labels], ScoreWish(), source="data.npz: 'labels'")
    return kind, score_of(kind, [(output, labels)])


def test_cosines_that_answer_above_another_number_than_zero_are_noted():
    cosines = np.where(YES == 1, 0.9, 0.4) + RANDOM.uniform(-0.1, 0.1, COUNT) - 0.6 * (np.arange(COUNT) == YES.argmin())
    kind, score = chosen(cosines.astype(np.float32)[:, None], YES)
    assert score < 0.7
    assert any("1.0000 above 0.6" in note and "subtract 0.6" in note for note in kind.notes)
    margin = 2 * YES - 1 + RANDOM.uniform(-0.5, 0.5, COUNT)
    for output in (margin, margin + 0.3, RANDOM.standard_normal(COUNT)):  # right at 0, nearly so, and of no use at all
        kind, _ = chosen(output.astype(np.float32), YES)
        assert not any("subtract" in note for note in kind.notes)


def test_a_better_threshold_of_more_pixels_than_are_sorted_is_noted_too():
    random = np.random.default_rng(1)
    inside = random.random((30, 300, 300)) > 0.3
    maps = np.where(inside, 0.9, 0.65) + random.uniform(-0.05, 0.05, inside.shape)
    kind, _ = chosen(maps.astype(np.float32)[:, None], inside.astype(np.uint8))
    assert any("1.0000 above 0.7" in note for note in kind.notes)
