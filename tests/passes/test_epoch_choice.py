"""The last epoch is kept unless an earlier one was better by more than noise."""

from types import SimpleNamespace

import numpy as np
import pytest

from edgeopt.passes.distill.epoch_choice import EpochChoice, EpochScore

RIGHT = np.random.default_rng(0).random(400) < 0.9


def answers(changed):
    """Return the score of right and wrong answers after that many right ones became wrong."""
    rows = RIGHT.astype(np.float64)
    rows[np.flatnonzero(RIGHT)[:changed]] = 0
    return EpochScore(float(rows.mean()), rows)


def a_task(direction="higher"):
    def is_as_good(score, other):
        return score >= other if direction == "higher" else score <= other

    return SimpleNamespace(
        is_as_good=is_as_good, score_direction=direction, score_statistics=lambda sums: sums[0] / sums[1]
    )


@pytest.mark.parametrize(
    ("lost", "kept"),
    [([0, 1, 2], 2), ([5, 0, 1], 2), ([0, 2, 40], 1), ([0, 40, 60], 0)],
    ids=["within noise", "a better one between", "clearly worse at the end", "the first is best"],
)
@pytest.mark.parametrize("has_sums", [False, True])
def test_the_last_epoch_within_noise_of_the_best_is_kept(lost, kept, has_sums):
    choice, found = EpochChoice(a_task()), None
    for epoch, changed in enumerate(lost):
        score = answers(changed)
        if has_sums:
            score = score._replace(rows=np.stack([score.rows, np.ones_like(score.rows)], axis=1))
        if choice.takes(score):
            found = epoch
    assert found == kept
    assert choice.best.value == answers(min(lost)).value


def test_small_losses_do_not_add_up_from_epoch_to_epoch():
    choice = EpochChoice(a_task())
    assert [changed for changed in range(30) if choice.takes(answers(changed))] == [0, 1, 2, 3]


def test_an_error_is_better_if_it_is_lower():
    choice = EpochChoice(a_task("lower"))
    errors = 1 - RIGHT.astype(np.float64)
    assert choice.takes(EpochScore(float(errors.mean()), errors))
    worse = np.where(np.arange(400) < 60, 1.0, errors)
    assert not choice.takes(EpochScore(float(worse.mean()), worse))
    assert choice.takes(EpochScore(float(errors.mean()), errors))


def test_without_scores_of_samples_only_an_epoch_that_is_as_good_is_kept():
    choice, none = EpochChoice(a_task()), np.empty(0)
    assert choice.takes(EpochScore(0.5, none))
    assert not choice.takes(EpochScore(0.4999, none))
    assert choice.takes(EpochScore(0.5, none))


def test_a_choice_goes_on_from_a_checkpoint():
    choice, again = EpochChoice(a_task()), EpochChoice(a_task())
    again.restore(choice.tensors())
    assert again.best is None
    choice.takes(answers(3))
    again.restore(choice.tensors())
    assert again.best.value == choice.best.value
    assert np.array_equal(again.best.rows, choice.best.rows)
    assert not again.takes(answers(60))
