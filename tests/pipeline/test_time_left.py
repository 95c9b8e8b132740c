"""How long a search may still take: at least the rest of its round, at most every round that may follow."""

from types import SimpleNamespace

import pytest
from stub_builds import a_stub_build

from edgeopt.pipeline.search.time_left import TimeLeft


class Clock:
    """A clock that tests set."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def watched():
    """A search whose original took 20 s of files, and that may have three more rounds; with its clock and ranges."""
    clock, shown = Clock(), []

    def show(stage, detail):
        assert stage == "time left"
        shown.append(tuple(map(int, detail.split())))

    build_clock = SimpleNamespace(seconds={"baseline": 5.0}, elapsed=lambda: clock.seconds)
    build = a_stub_build(progress=show, clock=build_clock, time_limit_seconds=None)
    left = TimeLeft(build, clock)
    left.begin_round()
    clock.seconds = 20.0
    left.end_round(is_first=True)
    left.to_follow = 3
    return left, clock, shown


def test_the_slowest_training_of_a_round_decides_and_rounds_that_may_follow_take_as_long(watched):
    left, clock, shown = watched
    left.begin_round()
    clock.seconds += 10.0
    left.note_epoch("small", 0, 10)
    assert shown[-1] == (90 + 20 + 5, 90 + 20 + 5 + 3 * 120)
    clock.seconds += 10.0
    left.note_epoch("large", 0, 10)
    assert shown[-1] == (180 + 20 + 5, 180 + 20 + 5 + 3 * 220)
    clock.seconds += 80.0
    left.note_epoch("small", 9, 10)
    assert shown[-1][0] == 100 + 20 + 5, "of the large one"


def test_a_time_limit_is_the_most(watched):
    left, clock, shown = watched
    left.build.time_limit_seconds = 150.0
    left.begin_round()
    clock.seconds += 10.0
    left.note_epoch("one", 0, 10)
    assert shown[-1] == (115, 120)
    left.build.time_limit_seconds = 100.0
    left.note_epoch("one", 1, 100)
    assert shown[-1] == (70, 70), "a training that takes longer is cut off"


def test_nothing_is_said_outside_a_round(watched):
    left, _, shown = watched
    left.note_epoch("one", 0, 10)
    assert shown == []
