"""The benchmark of a second worker: what its figures count."""

import pytest

from benchmarks.parallel import figures_of


def a_build(seconds, busy, winner):
    """A build whose trainings took that long, with so much processor time a second; then it measured for a while."""
    rows = [(0, 0, [1]), (seconds / 2, busy * seconds / 2, [1]), (seconds, busy * seconds, [1]), (99, 99, [])]
    samples = [{"seconds": at, "cpu_seconds": cpu, "threads": threads} for at, cpu, threads in rows]
    return {"samples": samples, "winner": {"recipe": winner[0], "sha256": winner}}


def test_the_training_phase_with_two_workers_is_compared_with_that_with_one():
    pairs = [(a_build(40, 1.0, "a"), a_build(seconds, 1.8, "a")) for seconds in (20, 24, 30)]
    figures = figures_of(pairs)
    assert figures["two_workers_time_ratio"] == pytest.approx(0.6)
    assert figures["core_busy_ratio"] == pytest.approx(0.9)
    assert figures["one_worker_training_seconds"] == 40
    assert figures["same_winner"] is True
    other_file = figures_of([(a_build(40, 1.0, "a1"), a_build(20, 1.8, "a2"))])
    assert (other_file["same_winner"], other_file["same_file"]) == (True, False)
    assert figures_of([(a_build(40, 1.0, "a"), a_build(20, 1.8, "b"))])["same_winner"] is False
