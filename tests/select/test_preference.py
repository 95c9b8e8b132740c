"""Which of the trials that keep every limit wins: the smallest, unless another of its size is quicker; or as asked."""

import pytest
from builders import a_baseline, a_budget, a_choice, a_recipe, a_trial

from edgeopt.report.document import build_document
from edgeopt.report.sentences import passed_over
from edgeopt.select.decision import contenders


def winner(*trials, prefer="size"):
    return a_choice((a_baseline(), *trials), a_budget(prefer=prefer)).winner


@pytest.mark.parametrize(
    ("size_bytes", "time_ratio", "expected"),
    [(1030, 0.20, 2), (1060, 0.10, 1), (1030, 0.245, 1), (1030, 0.25, 1)],
    ids=["quicker by more than it is larger", "more than 5 % larger", "quicker by less than it is larger", "as quick"],
)
def test_a_file_of_about_the_size_of_the_smallest_wins_if_it_is_quicker(size_bytes, time_ratio, expected):
    assert winner(a_trial(1, size_bytes=1000), a_trial(2, size_bytes=size_bytes, time_ratio=time_ratio)) == expected


def test_without_a_comparison_a_latency_of_its_own_measurement_lets_no_larger_file_win():
    quicker = a_trial(2, size_bytes=1030, latency_ms=0.1, time_ratio=None)
    assert winner(a_trial(1, size_bytes=1000), quicker) == 1
    assert winner(a_trial(1, size_bytes=1000, time_ratio=None), a_trial(2, size_bytes=1030, time_ratio=0.2)) == 1


def test_the_quickest_of_several_files_of_about_the_same_size_wins():
    trials = [
        a_trial(i, size_bytes=1000 + 10 * i, time_ratio=ratio) for i, ratio in enumerate((0.3, 0.2, 0.15, 0.18), 1)
    ]
    assert winner(*trials) == 3


def test_a_quicker_file_that_misses_a_limit_wins_nothing():
    assert winner(a_trial(1, size_bytes=1000), a_trial(2, size_bytes=1030, time_ratio=0.1, score=0.5)) == 1


def test_the_quickest_or_the_file_of_least_memory_wins_if_that_is_asked_for():
    small = a_trial(1, size_bytes=500, latency_ms=0.4, memory_bytes=5_000_000, time_ratio=0.5)
    quick = a_trial(2, size_bytes=900, latency_ms=0.2, memory_bytes=4_500_000, time_ratio=0.2)
    as_quick = a_trial(3, size_bytes=800, latency_ms=0.21, memory_bytes=4_500_000, time_ratio=0.2)
    lean = a_trial(4, size_bytes=950, latency_ms=0.5, memory_bytes=2_000_000, time_ratio=0.6)
    as_lean = a_trial(5, size_bytes=940, latency_ms=0.5, memory_bytes=2_010_000, time_ratio=0.6)
    trials = (small, quick, as_quick, lean, as_lean)
    assert [winner(*trials, prefer=prefer) for prefer in ("size", "latency", "memory")] == [1, 3, 5]


def test_files_that_may_be_quicker_are_compared_before_anything_is_decided():
    smallest, maybe, slower, large = (
        a_trial(1, size_bytes=1000, latency_ms=0.2, time_ratio=None),
        a_trial(2, size_bytes=1030, latency_ms=0.15, time_ratio=None),
        a_trial(3, size_bytes=1040, latency_ms=0.25, time_ratio=None),
        a_trial(4, size_bytes=1500, latency_ms=0.05, time_ratio=None),
    )
    trials = (a_baseline(), smallest, maybe, slower, large)
    assert contenders(trials, a_budget(), proven_on_target=True) == [1, 2]
    assert contenders(trials, a_budget(prefer="latency"), proven_on_target=True) == [4]
    assert contenders(trials, a_budget(prefer="memory"), proven_on_target=True) == [1]


def test_the_report_says_why_a_smaller_file_was_passed_over():
    trials = (a_baseline(), a_trial(1, size_bytes=1000, latency_ms=0.2), a_trial(2, size_bytes=1030, time_ratio=0.2))
    text = passed_over(build_document(a_choice(trials)))
    assert text is not None
    assert text.startswith("Trial 1 is smaller (1.00 kB) and within the limits, but takes 1.25× as long")
    assert passed_over(build_document(a_choice((a_baseline(), a_trial(1))))) is None


def test_on_a_stand_in_only_files_that_compute_in_the_same_way_are_compared():
    small = a_trial(1, size_bytes=1000, recipe=a_recipe(int8=True), drop=0.0)
    for int8, expected in ((True, 2), (False, 1)):
        quick = a_trial(2, size_bytes=1030, time_ratio=0.2, recipe=a_recipe(pruned=True, int8=int8), drop=0.0)
        choice = a_choice((a_baseline(), small, quick), proven_on_target=False)
        assert choice.winner == expected
        assert a_choice((a_baseline(), small, quick)).winner == 2
