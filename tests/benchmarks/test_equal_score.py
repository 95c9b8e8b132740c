"""Tests of how ``benchmarks/depth.py`` compares costs at equal score."""

from __future__ import annotations

import math

import pytest

from benchmarks.equal_score import CostPoint, front_of, over_seeds, ratio_at_equal_score


def _points(*pairs: tuple[float, float]) -> list[CostPoint]:
    return [CostPoint(cost, score) for cost, score in pairs]


def test_a_dearer_network_that_scores_no_better_is_not_on_the_front() -> None:
    points = _points((4, 0.9), (1, 0.7), (2, 0.6), (3, 0.9))
    assert front_of(points) == _points((1, 0.7), (3, 0.9))


def test_half_the_cost_at_every_score_is_a_ratio_of_one_half() -> None:
    others = _points((1, 0.5), (2, 0.7), (6, 0.8))
    ours = [CostPoint(point.cost / 2, point.score) for point in others]
    assert ratio_at_equal_score(ours, others) == pytest.approx(0.5)
    assert ratio_at_equal_score(others, ours) == pytest.approx(2)


def test_only_scores_that_both_reach_are_compared() -> None:
    ours = _points((1, 0.5), (2, 0.6), (4, 0.7))
    others = _points((3, 0.6), (6, 0.7), (1000, 0.9))
    assert ratio_at_equal_score(ours, others) == pytest.approx(2 / 3)


def test_between_two_networks_the_logarithm_of_the_cost_is_linear_in_the_score() -> None:
    ours, others = _points((1, 0.5), (4, 0.7)), _points((4, 0.6))
    assert ratio_at_equal_score(ours, others) == pytest.approx(0.5)


def test_where_the_advantage_changes_the_mean_over_the_scores_counts() -> None:
    ours, others = _points((1, 0.0), (1.0001, 1.0)), _points((1, 0.0), (math.e, 1.0))
    assert ratio_at_equal_score(ours, others) == pytest.approx(math.exp(-0.5), rel=1e-3)


def test_ways_that_never_score_alike_have_no_ratio() -> None:
    assert ratio_at_equal_score(_points((1, 0.9)), _points((1, 0.5), (2, 0.6))) is None
    assert ratio_at_equal_score([], _points((1, 0.5))) is None


def test_the_interval_over_seeds_contains_their_mean_and_stays_within_their_range() -> None:
    ratios = [0.7, 0.8, 0.75, 0.72, 0.78]
    found = over_seeds(ratios)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.value == pytest.approx(math.prod(ratios) ** (1 / 5))
    assert min(ratios) <= found.low < found.value < found.high <= max(ratios)


def test_one_seed_has_no_interval_and_a_seed_without_a_ratio_leaves_none() -> None:
    assert over_seeds([0.8]) == (pytest.approx(0.8), None, None)
    assert over_seeds([0.8, None]) is None
    assert over_seeds([]) is None
