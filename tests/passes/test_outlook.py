"""A training that cannot reach the score that it must have is recognized by its learning curve, and no other one is."""

import math

import pytest

from edgeopt.passes.distill.outlook import LEAST_EPOCHS, is_hopeless
from edgeopt.records.scoring import ScoreFloor

EPOCHS = 20


def a_floor(value, direction="higher"):
    return ScoreFloor(value=value, max_drop=0.01, direction=direction)


def rate_ratio(done):
    return 0.5 * (1 + math.cos(math.pi * done / EPOCHS))


def a_curve(end, first_error, exponent):
    """Scores whose errors fall by a power of the epochs, as those of most trainings do, to ``end`` in the last one."""
    errors = [first_error * (epoch + 1) ** -exponent for epoch in range(EPOCHS)]
    return [end + errors[-1] - error for error in errors]


def stopped_after(scores, floor):
    done = (count for count in range(1, EPOCHS) if is_hopeless(scores[:count], EPOCHS, floor, rate_ratio(count)))
    return next(done, None)


@pytest.mark.parametrize("first_error", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("exponent", [0.3, 0.6, 1.0])
def test_a_training_that_reaches_its_floor_is_never_stopped(first_error, exponent):
    assert stopped_after(a_curve(0.95, first_error, exponent), a_floor(0.95)) is None


def test_a_training_that_gains_only_as_the_rate_falls_is_not_stopped():
    late = [0.9] * 10 + [0.9 + 0.001 * step for step in range(1, 11)]
    assert stopped_after(late, a_floor(0.91)) is None


def test_a_training_far_below_its_floor_is_stopped_early():
    assert stopped_after(a_curve(0.80, 0.3, 0.6), a_floor(0.97)) == LEAST_EPOCHS
    near = stopped_after(a_curve(0.95, 0.3, 0.6), a_floor(0.97))
    assert LEAST_EPOCHS < near < EPOCHS - 2


def test_the_recorded_curve_of_a_speech_network_is_stopped_after_its_first_half():
    scores = [0.86, 0.9156, 0.9331, 0.9439, 0.9512, 0.9552, 0.9585, 0.961, 0.9635, 0.9656, 0.9665, 0.9681, 0.9691, 0.97,
              0.9705, 0.9709, 0.9711, 0.9713, 0.9714, 0.9714]  # fmt: skip
    assert 10 <= stopped_after(scores, a_floor(0.99)) <= 14
    assert stopped_after(scores, a_floor(0.9714)) is None


def test_an_error_that_falls_is_judged_from_the_other_side():
    errors = [1 - score for score in a_curve(0.80, 0.3, 0.6)]
    assert stopped_after(errors, a_floor(0.03, "lower")) == LEAST_EPOCHS
    assert stopped_after(errors, a_floor(0.2, "lower")) is None
