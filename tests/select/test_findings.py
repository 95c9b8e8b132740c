"""One trial judged by the budget: intervals decide, missing metrics are misses, waived limits are not judged."""

import math

import pytest
from builders import a_baseline, a_budget, a_choice, a_trial
from msgspec.structs import replace

from edgeopt.records.trial import AnswerChanges, ClassDrop
from edgeopt.report.document import build_document
from edgeopt.report.proof import build_proof
from edgeopt.select.limits import judge_limits, judge_score_limits
from edgeopt.statistics import latency_interval_ms


def misses(trial, **limits):
    return a_choice((a_baseline(), trial), a_budget(**limits)).verdicts[1].misses


def names(trial, **limits):
    return [miss.limit for miss in misses(trial, **limits)]


def a_choice_document(trial, budget):
    """Return a trial as the report shows it."""
    return build_document(a_choice((a_baseline(), trial), budget)).trials[1]


def test_latency_is_judged_by_the_upper_end_of_its_interval():
    trial = a_trial(1, latency_ms=0.2, spread=0.1)
    interval = latency_interval_ms(trial.outcome.measurement, 90)
    assert interval.value < interval.high
    between = (interval.value + interval.high) / 2
    [miss] = misses(trial, max_latency_ms=between)
    assert (miss.limit, miss.allowed, miss.found) == ("latency", between, interval.high)
    assert miss.within_noise
    assert misses(trial, max_latency_ms=interval.high) == ()


def test_a_latency_whose_point_estimate_is_over_the_limit_is_not_within_the_noise():
    [miss] = misses(a_trial(1, latency_ms=2.0))
    assert not miss.within_noise


def test_the_percentile_is_that_of_the_budget():
    trial = a_trial(1, latency_ms=0.2, spread=0.2)
    assert names(trial, max_latency_ms=0.22, latency_percentile=50) == []
    assert names(trial, max_latency_ms=0.22, latency_percentile=95) == ["latency"]


def test_throughput_is_batch_size_over_the_median_and_judged_by_its_worse_end():
    trial = a_trial(1, latency_ms=2.0, batch_size=8, spread=0.0)
    median = latency_interval_ms(trial.outcome.measurement, 50)
    [finding] = [
        finding
        for finding in judge_limits(trial.outcome, a_budget(batch_size=8, min_throughput_per_s=1.0))
        if finding.limit == "throughput"
    ]
    assert finding.point == pytest.approx(8000 / median.value)
    assert finding.judged == pytest.approx(8000 / median.high)
    limits = {"batch_size": 8, "max_latency_ms": None}
    assert names(trial, min_throughput_per_s=3900, **limits) == []
    assert names(trial, min_throughput_per_s=4100, **limits) == ["throughput"]


def test_timings_at_another_batch_size_count_as_missing():
    [miss] = misses(a_trial(1, batch_size=4))
    assert (miss.limit, miss.found) == ("latency", None)


@pytest.mark.parametrize(
    ("trial", "limit"),
    [
        (a_trial(1, memory_bytes=None), "memory"),
        (a_trial(1, score=math.nan), "score"),
    ],
)
def test_a_metric_that_is_missing_is_a_missed_limit(trial, limit):
    [miss] = misses(trial)
    assert (miss.limit, miss.found, miss.within_noise) == (limit, None, False)


def test_a_missing_metric_whose_limit_is_waived_is_not_judged():
    assert misses(a_trial(1, memory_bytes=None), max_peak_memory_bytes=None) == ()


def test_a_drop_is_judged_by_the_upper_end_of_its_paired_interval():
    trial = a_trial(1, drop=0.008, drop_ci95=(0.004, 0.012))
    [miss] = misses(trial)
    assert (miss.limit, miss.found, miss.within_noise) == ("score", 0.012, True)
    assert misses(a_trial(1, drop=0.008)) == ()


@pytest.mark.parametrize(("confidence", "judged"), [(0.5, 0.00775), (0.9, 0.0117), (0.95, 0.013), (0.99, 0.0155)])
def test_the_confidence_of_the_budget_moves_the_end_that_is_judged(confidence, judged):
    trial = a_trial(drop=0.005, drop_ci95=(-0.002, 0.013), latency_ms=0.2)
    budget = a_budget(max_score_drop=0.013, confidence=confidence)
    found = {finding.limit: finding for finding in judge_limits(trial.outcome, budget)}
    assert found["score"].judged == pytest.approx(judged, abs=2e-3 * judged + 1e-4)
    assert found["score"].kept is (confidence <= 0.95)
    point, _, high = latency_interval_ms(trial.outcome.measurement, budget.latency_percentile)
    share = (judged - 0.005) / 0.008
    assert found["latency"].judged == pytest.approx(point + share * (high - point), rel=1e-2)
    (row,) = (row for row in build_proof(a_choice_document(trial, budget), budget) if row.limit == "score")
    assert row.judged == found["score"].judged


def test_the_report_judges_throughput_by_the_same_end():
    trial = a_trial(latency_ms=10.0, spread=0.4)
    for confidence in (0.5, 0.99):
        budget = a_budget(min_throughput_per_s=50.0, confidence=confidence)
        found = next(one for one in judge_limits(trial.outcome, budget) if one.limit == "throughput")
        row = next(one for one in build_proof(a_choice_document(trial, budget), budget) if one.limit == "throughput")
        assert row.judged == pytest.approx(found.judged)


def test_a_minimum_score_and_a_maximum_drop_both_hold():
    trial = a_trial(1, score=0.88, baseline_score=0.915)
    assert [(miss.limit, miss.allowed) for miss in misses(trial, min_score=0.9)] == [("score", 0.9), ("score", 0.01)]


def test_a_limit_is_kept_if_it_is_met_exactly():
    assert (
        misses(a_trial(1, size_bytes=900, memory_bytes=4_000_000), max_size_bytes=900, max_peak_memory_bytes=4_000_000)
        == ()
    )


def test_the_size_limit_is_about_the_download_if_the_budget_says_so():
    trial = a_trial(1, size_bytes=900, download_bytes=500)
    assert names(trial, max_size_bytes=600) == ["size"]
    assert names(trial, max_size_bytes=600, size_metric="download") == []


def as_error(trial):
    """Return the trial with a score of which lower is better."""
    outcome = replace(trial.outcome, score=replace(trial.outcome.score, direction="lower"))
    return replace(trial, outcome=outcome)


def test_a_larger_error_is_a_drop_and_the_worst_error_is_a_maximum():
    trial = as_error(a_trial(1, score=0.35, drop=0.05, drop_ci95=(0.04, 0.06)))
    [miss] = misses(trial, max_score_drop=0.055)
    assert (miss.found, miss.within_noise) == (0.06, True)
    assert misses(trial, max_score_drop=0.07) == ()
    [miss] = misses(trial, max_score_drop=None, min_score=0.3)
    assert (miss.found, miss.allowed) == (0.35, 0.3)
    assert misses(trial, max_score_drop=None, min_score=0.4) == ()


def test_of_two_files_of_one_size_the_one_with_the_smaller_error_wins():
    trials = [
        as_error(a_baseline()),
        as_error(a_trial(1, score=0.30, drop=0.0)),
        as_error(a_trial(2, score=0.29, drop=0.0)),
    ]
    assert a_choice(tuple(trials)).winner == 2


def with_answers(flip_high=0.0, class_high=0.0, judged=True):
    worst = ClassDrop(number=3, drop=class_high / 2, drop_ci95=(0.0, class_high), samples=50) if judged else None
    changes = AnswerChanges(flip_ratio=flip_high / 2, flip_ratio_ci95=(0.0, flip_high), worst_class=worst)
    outcome = a_trial(1).outcome
    return replace(outcome.score, answers=changes)


@pytest.mark.parametrize(
    ("score", "missed"),
    [
        (with_answers(flip_high=0.01, class_high=0.04), set()),
        (with_answers(flip_high=0.03, class_high=0.04), {"flips"}),
        (with_answers(flip_high=0.01, class_high=0.06), {"class"}),
        (with_answers(judged=False), {"class"}),
        (a_trial(1).outcome.score, {"class", "flips"}),
    ],
    ids=["both kept", "flips", "class", "no class has enough samples", "unknown"],
)
def test_the_worst_class_and_changed_answers_are_judged_by_the_upper_ends(score, missed):
    budget = a_budget(max_score_drop=None, max_class_drop=0.05, max_flip_ratio=0.02)
    assert {finding.limit for finding in judge_score_limits(score, budget) if not finding.kept} == missed
