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
