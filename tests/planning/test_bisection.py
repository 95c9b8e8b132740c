import pytest

from edgeopt.planning.bisection import CLOSED_RANGE_RATIO, Point, next_ratios, parent_ratio


def test_the_first_round_reaches_down_evenly_on_a_logarithmic_scale():
    assert next_ratios([Point(1.0, True)], 3) == pytest.approx((1 / 2, 1 / 4, 1 / 8))


def test_the_range_between_good_and_bad_is_divided():
    points = [Point(1.0, True), Point(0.4, True), Point(0.1, False)]
    assert next_ratios(points, 1) == pytest.approx((0.2,))


def test_a_closed_range_or_a_bad_original_ends_the_search():
    assert next_ratios([Point(1.0, True), Point(0.2, True), Point(0.2 / 1.1, False)], 2) == ()
    assert next_ratios([Point(1.0, False)], 2) == ()


def test_a_bad_size_above_a_good_one_is_noise_and_does_not_stop_the_search():
    points = [Point(1.0, True), Point(0.5, False), Point(0.25, True)]
    assert max(next_ratios(points, 2)) < 0.25


@pytest.mark.parametrize("limit", [0.03, 0.11, 0.3, 0.77])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_search_converges_to_any_limit_and_ends(limit, count):
    points = [Point(1.0, True)]
    for _ in range(20):
        ratios = next_ratios(points, count)
        if not ratios:
            break
        assert len(ratios) <= count
        points += [Point(ratio, ratio >= limit) for ratio in ratios]
    best = min(point.ratio for point in points if point.good)
    assert limit <= best <= limit * CLOSED_RANGE_RATIO
    assert len(points) < 30


def test_a_candidate_starts_from_the_nearest_larger_good_network():
    points = [Point(1.0, True), Point(0.4, True), Point(0.3, False), Point(0.1, True)]
    assert parent_ratio(points, 0.2) == 0.4
    assert parent_ratio(points, 0.6) == 1.0


def test_many_sizes_at_a_time_are_not_closer_than_another_training_could_tell():
    assert len(next_ratios([Point(1.0, True)], 16)) == 16, "the first round reaches down to an eighth"
    points = [Point(1.0, True), Point(0.4, True), Point(0.25, False)]
    found = next_ratios(points, 16)
    assert len(found) == 3
    assert min(a / b for a, b in zip((0.4, *found), (*found, 0.25), strict=True)) >= CLOSED_RANGE_RATIO
    assert len(next_ratios([Point(1.0, True), Point(0.3, True), Point(0.25, False)], 16)) == 2, "as on a small machine"
