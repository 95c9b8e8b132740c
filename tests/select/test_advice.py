"""If nothing keeps the budget: the nearest trial, and limits that would really be enough."""

import re

from builders import a_baseline, a_budget, a_choice, a_failed_trial, a_trial
from msgspec.structs import replace


def infeasible(*trials, **limits):
    choice = a_choice(trials, a_budget(**limits))
    assert choice.winner is None
    assert choice.binding == choice.infeasible.binding
    return choice.infeasible


def test_the_nearest_trial_has_the_smallest_worst_excess():
    half_over, a_tenth_over = a_trial(1, size_bytes=1500), a_trial(2, size_bytes=1100)
    found = infeasible(a_baseline(), half_over, a_tenth_over, max_size_bytes=1000)
    assert (found.nearest, found.binding) == (2, ("size",))


def test_a_collapsed_score_is_farther_away_than_a_file_that_is_twice_too_large():
    assert infeasible(a_trial(1, size_bytes=2000), a_trial(2, score=0.1), max_size_bytes=1000).nearest == 1


def test_a_minimum_score_and_the_equivalent_drop_name_the_same_trial():
    trials = (a_trial(1, size_bytes=1300), a_trial(2, score=0.90))
    as_minimum = infeasible(*trials, max_size_bytes=1000, max_score_drop=None, min_score=0.905)
    assert as_minimum.nearest == infeasible(*trials, max_size_bytes=1000).nearest


def test_a_trial_with_a_missing_metric_is_farther_away_than_any_other():
    assert infeasible(a_trial(1, memory_bytes=None), a_trial(2, size_bytes=9000), max_size_bytes=1000).nearest == 2


def test_each_limit_that_is_the_only_obstacle_of_a_trial_is_named_with_a_value_that_would_be_enough():
    advice = infeasible(a_trial(1, size_bytes=6_100_000), a_trial(2, drop=0.014)).advice
    score = "A score drop limit of 0.014 (instead of 0.01) would be enough for trial 2"
    assert advice == f"{score}, or a size limit of 6.1 MB (instead of 2 MB) for trial 1."


def test_following_the_advice_makes_the_build_feasible():
    trials = (a_trial(1, latency_ms=1.2345), a_trial(2, latency_ms=1.1111))
    advice = infeasible(*trials).advice
    needed = float(re.search(r"latency limit of ([0-9.]+) ms", advice)[1])
    assert a_choice(trials, a_budget(max_latency_ms=needed)).winner == 2


def test_limits_missed_together_are_named_together():
    found = infeasible(a_trial(1, size_bytes=4_000_000, latency_ms=1.5))
    assert found.binding == ("latency", "size")
    assert found.advice.startswith("Relaxing a single limit is not enough: trial 1 needs a latency limit of 1.5")
    assert "and a size limit of 4 MB (instead of 2 MB)." in found.advice


def test_a_metric_that_no_trial_has_has_to_be_waived_by_name():
    found = infeasible(a_trial(1, memory_bytes=None), a_trial(2, memory_bytes=None))
    assert found.advice.startswith("No trial has a value for memory")
    assert "set the limit on memory to 'none'" in found.advice


def test_a_minimum_is_rounded_down():
    found = infeasible(a_trial(1, latency_ms=3.0), max_latency_ms=None, min_throughput_per_s=400)
    needed = float(re.search(r"throughput of ([0-9.]+) per second \(instead of 400\)", found.advice)[1])
    budget = replace(a_budget(max_latency_ms=None), min_throughput_per_s=needed)
    assert a_choice((a_trial(1, latency_ms=3.0),), budget).winner == 1


def test_a_limit_of_zero_can_be_missed():
    assert infeasible(a_trial(1, drop=0.004), max_score_drop=0.0).advice == (
        "A score drop limit of 0.004 (instead of 0) would be enough for trial 1."
    )


def test_without_a_measured_trial_there_is_no_nearest_one():
    found = infeasible(a_failed_trial(0))
    assert (found.nearest, found.binding) == (None, ())
    assert "No candidate could be measured" in found.advice


def test_an_error_that_is_too_large_names_the_maximum_that_would_be_enough():
    trial = a_trial(1, score=0.351, drop=0.05)
    trial = replace(trial, outcome=replace(trial.outcome, score=replace(trial.outcome.score, direction="lower")))
    assert infeasible(trial, max_score_drop=None, min_score=0.3).advice == (
        "A maximum score of 0.351 (instead of 0.3) would be enough for trial 1."
    )


def test_smaller_files_that_miss_one_limit_are_named_with_what_lets_them_in():
    choice = a_choice(
        (
            a_baseline(),
            a_trial(1, size_bytes=900),
            a_trial(2, size_bytes=400, drop=0.008, drop_ci95=(0.004, 0.0123)),
            a_trial(3, size_bytes=300, drop=0.02, drop_ci95=(0.01, 0.03)),
            a_trial(4, size_bytes=500, drop=0.02, drop_ci95=(0.01, 0.03)),  # trial 2 is smaller and nearer
            a_trial(5, size_bytes=200, drop=0.02, drop_ci95=(0.01, 0.03), latency_ms=50.0),  # misses two
            a_trial(6, size_bytes=950, drop=0.009, drop_ci95=(0.004, 0.011)),  # larger than the winner
            a_trial(7, size_bytes=600, drop=0.008, drop_ci95=(0.004, 0.01229999)),  # let in by what lets trial 2 in
        )
    )
    assert choice.winner == 1
    assert [(one.trial, one.size_bytes) for one in choice.near_misses] == [(2, 400), (3, 300)]
    assert choice.near_misses[0].relief == "a score drop limit of 0.0123 (instead of 0.01)"
    relaxed = a_choice(choice.trials, a_budget(max_score_drop=0.0123))
    assert relaxed.winner == 2
