"""Where the time of a build went: stages, and the rest."""

import time

import pytest

from edgeopt.pipeline.context import INTERRUPTED, Clock


def test_time_of_no_stage_is_counted_as_other_and_the_sum_is_the_whole():
    clock = Clock()
    with clock.stage("measure"):
        time.sleep(0.02)
    time.sleep(0.03)
    clock.seconds[INTERRUPTED] = 100.0
    clock.count_rest()
    assert clock.seconds["other"] >= 0.03
    assert sum(clock.seconds.values()) - 100.0 == pytest.approx(clock.elapsed(), abs=0.02)
    clock.count_rest()
    assert sum(clock.seconds.values()) - 100.0 == pytest.approx(clock.elapsed(), abs=0.02)


def test_a_stage_inside_another_is_counted_once():
    clock = Clock()
    with clock.stage("plan"):
        time.sleep(0.02)
        with clock.stage("table"):
            time.sleep(0.04)
            with clock.stage("plan"):
                time.sleep(0.02)
        with clock.stage("train"):
            time.sleep(0.02)
    clock.count_rest()
    assert sum(clock.seconds.values()) == pytest.approx(clock.elapsed(), abs=0.005)
    assert clock.seconds["plan"] >= 0.04
    assert clock.seconds["table"] >= 0.04
    assert clock.seconds["train"] >= 0.02
