"""How far a score can be trusted: the interval of a drop, constant answers, and sets that are too small."""

import time

import numpy as np
import pytest

from edgeopt.records.scoring import OutputScore, ScoreKind, ScoreWish
from edgeopt.scoring.choose import choose_score
from edgeopt.scoring.compute import sample_sums, score_from_sums, score_of
from edgeopt.scoring.constant import check_constant
from edgeopt.scoring.drop import (
    is_mean,
    mean_drop_interval,
    resampled_drop_interval,
    sums_drop_interval,
    worsening,
)
from edgeopt.scoring.enough import expected_margin, samples_needed
from edgeopt.scoring.samples import SampleSet
from edgeopt.statistics import paired_drop_interval


def kind_of(outputs, labels, **wish):
    return choose_score([(outputs,)], ["y"], [labels], ScoreWish(**wish), source="test")


# -- samples -----------------------------------------------------------------------------------------------------------


def test_nested_outputs_and_targets_are_drawn_by_sample():
    targets = ({"boxes": np.arange(12).reshape(3, 4), "label": np.array([5, 6, 7])}, None)
    others = ({"boxes": np.zeros((2, 4)), "label": np.array([8, 9])}, None)
    pairs = [((np.arange(3), np.ones((3, 2))), targets), ((np.arange(2), np.zeros((2, 2))), others)]
    drawn = SampleSet(pairs, [3, 2]).draw([4, 0, 0])
    assert [pair[1][0]["label"].tolist() for pair in drawn] == [[5, 5], [9]]
    assert drawn[0][0][0].tolist() == [0, 0]
    assert not SampleSet([pairs[0], (pairs[1][0], targets)], [3, 2]).can_be_drawn  # three boxes for two samples


def test_a_list_of_one_target_a_sample_is_drawn_by_its_entries():
    targets = [{"boxes": np.zeros((2, 4))}, {"boxes": np.zeros((5, 4))}]
    drawn = SampleSet([(np.arange(2), targets)], [2]).draw([1, 1])
    assert [len(target["boxes"]) for target in drawn[0][1]] == [5, 5]


# -- the interval of a drop --------------------------------------------------------------------------------------------


def f1_pairs(seed, count=300, wrong=0.1):
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.2).astype(int)
    outputs = np.where(rng.random(count) < wrong, 1 - labels, labels)
    return [(outputs[at : at + 50], labels[at : at + 50]) for at in range(0, count, 50)], [50] * (count // 50)


def f1(pairs):
    found, true = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return 2 * (found & true).sum() / (found.sum() + true.sum())


def test_a_score_that_is_no_mean_is_resampled_as_a_whole_and_covers_its_truth():
    truth = f1(f1_pairs(99, 100_000, 0.05)[0]) - f1(f1_pairs(98, 100_000, 0.15)[0])
    covered = 0
    for seed in range(20):
        first, counts = f1_pairs(2 * seed, wrong=0.05)
        rng = np.random.default_rng(1000 + seed)
        second = [(np.where(rng.random(50) < 0.1 / 0.9, 1 - o, o), t) for o, t in first]
        interval = resampled_drop_interval(first, second, counts, f1, "higher", max_repeats=200, max_seconds=60)
        assert interval.value == f1(first) - f1(second)
        covered += interval.low <= truth <= interval.high
    assert covered >= 16  # 19 of 20 are expected


def test_sums_give_the_same_interval_as_the_whole_score():
    first, counts = f1_pairs(1, wrong=0.05)
    second, _ = f1_pairs(1, wrong=0.15)
    part = OutputScore(output="y", index=0, metric="f1", layout="yes or no", labels="numbers", threshold=0.5)
    kind = ScoreKind(parts=(part,), by_agreement=False)
    assert score_of(kind, first) == pytest.approx(f1(first))
    sums = [sample_sums(kind, pairs) for pairs in (first, second)]
    fast = sums_drop_interval(*sums, lambda total: score_from_sums(kind, total), "higher")
    slow = resampled_drop_interval(first, second, counts, f1, "higher", max_seconds=60)
    assert fast.value == pytest.approx(slow.value)
    assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high), abs=0.02)


def test_a_mean_over_batches_is_resampled_by_batches_and_has_no_interval_if_they_are_few():
    def by_batch(pairs):
        return float(np.mean([f1([pair]) if pair[1].any() else 1.0 for pair in pairs]))

    first, counts = f1_pairs(1, 1500, 0.05)
    second, _ = f1_pairs(1, 1500, 0.15)
    interval = resampled_drop_interval(first, second, counts, by_batch, "higher", max_repeats=200, max_seconds=60)
    assert interval.low < interval.value < interval.high
    assert resampled_drop_interval(first[:5], second[:5], counts[:5], by_batch, "higher") is None


def test_there_is_no_interval_if_samples_cannot_be_drawn_or_the_score_is_slow():
    first, counts = f1_pairs(1)
    ragged = [(outputs, np.zeros(7)) for outputs, _ in first]
    assert resampled_drop_interval(ragged, ragged, counts, lambda pairs: 0.0, "higher") is None

    def slow(pairs):
        time.sleep(0.002)
        return f1(pairs)

    assert resampled_drop_interval(first, first, counts, slow, "higher", max_seconds=0.1) is None


def test_an_error_that_grows_is_a_drop():
    assert worsening(0.2, 0.3, "lower") == pytest.approx(0.1)
    assert worsening(0.9, 0.8, "higher") == pytest.approx(0.1)
    baseline, samples = np.array([0.1, 0.2, 0.3]), np.array([0.2, 0.3, 0.5])
    interval = mean_drop_interval(baseline, samples, "lower")
    assert interval.value == pytest.approx(0.4 / 3)
    assert interval.low > 0


@pytest.mark.parametrize(
    ("score", "samples", "mean"),
    [
        (0.5, [0.0, 1.0], True),
        (0.50001, [0.0, 1.0], True),
        (0.45, [0.0, 1.0], False),
        (0.5, [[0.5]], False),
        (0.5, [np.nan], False),
    ],
)
def test_scores_of_single_samples_count_only_if_their_mean_is_the_score(score, samples, mean):
    assert is_mean(score, np.array(samples)) == mean
    assert not is_mean(score, None)


# -- constant answers --------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(3)
MANY = RNG.integers(0, 4, 400)


def logits(labels, strength, seed=0):
    return strength * np.eye(4)[labels] + np.random.default_rng(seed).standard_normal((len(labels), 4))


def test_a_trained_network_is_above_a_constant_answer_and_a_random_one_is_not():
    for strength, like_constant in ((4.0, False), (0.0, True)):
        outputs = logits(MANY, strength)
        check = check_constant(kind_of(outputs, MANY), [(outputs, MANY)])
        assert check.is_like_constant == like_constant
        assert check.is_above_noise != like_constant
        assert check.constant == np.bincount(MANY).max() / 400


def test_a_good_network_on_few_samples_is_not_called_constant():
    labels = np.tile([0, 1], 6)
    outputs = logits(labels, 3.0)
    outputs[0] = -outputs[0]
    assert not check_constant(kind_of(outputs, labels), [(outputs, labels)]).is_like_constant


def test_a_network_that_always_gives_the_commonest_class_is_found_whatever_its_share_is():
    labels = (np.arange(400) % 20 == 0).astype(int)
    outputs = np.tile([2.0, 1.0], (400, 1))
    check = check_constant(kind_of(outputs, labels), [(outputs, labels)])
    assert (check.score, check.constant, check.answers) == (0.95, 0.95, 1)
    assert check.is_like_constant


def test_labels_that_are_all_the_same_show_nothing_but_are_no_misreading():
    labels = np.full(50, 3)
    check = check_constant(kind_of(logits(labels, 9.0), labels), [(logits(labels, 9.0), labels)])
    assert (check.constant, check.is_above_noise, check.is_like_constant) == (1.0, False, False)


@pytest.mark.parametrize("metric", [None, "mse", "rmse"])
def test_real_numbers_are_compared_with_their_middle(metric):
    labels = RNG.standard_normal(400)
    for error, like_constant in ((0.1, False), (5.0, True)):
        outputs = (labels + error * RNG.standard_normal(400))[:, None]
        check = check_constant(kind_of(outputs, labels, score=metric), [(outputs, labels)])
        assert check.is_like_constant == like_constant


def test_masks_labels_and_summed_scores_are_compared_with_constants_too():
    masks = RNG.integers(0, 3, (100, 4, 4))
    good, bad = (
        strength * np.moveaxis(np.eye(3)[masks], -1, 1) + RNG.standard_normal((100, 3, 4, 4)) for strength in (4, 0)
    )
    for score in (None, "miou"):
        assert not check_constant(kind_of(good, masks, score=score), [(good, masks)]).is_like_constant
        assert check_constant(kind_of(bad, masks, score=score), [(bad, masks)]).is_like_constant
    labels = (RNG.random((300, 5)) < [0.1, 0.2, 0.3, 0.8, 0.9]).astype(int)
    outputs = RNG.standard_normal((300, 5))
    check = check_constant(kind_of(outputs, labels), [(outputs, labels)])
    assert check.is_like_constant
    assert check.constant > 0.75  # each label has its own commonest answer


# -- sets that are too small -------------------------------------------------------------------------------------------


def test_the_number_of_samples_that_show_a_drop_is_about_right():
    """With the number that is asked for, a candidate that loses nothing keeps the limit about half of the time."""
    rng, allowed, accuracy = np.random.default_rng(5), 0.02, 0.9
    needed = samples_needed((rng.random(4000) < accuracy).astype(float), allowed)
    assert 400 <= needed <= 600  # 1.96² * 0.045 / 0.02² = 432

    def kept(count):
        found = 0
        for _ in range(60):
            baseline = (rng.random(count) < accuracy).astype(float)
            swapped = rng.random(count) < np.where(baseline > 0, 0.025, 0.225)  # half of the errors, in expectation
            found += paired_drop_interval(baseline, np.where(swapped, 1 - baseline, baseline)).high <= allowed
        return found

    assert kept(needed // 4) < 18
    assert 15 <= kept(needed) <= 48
    assert kept(4 * needed) > 54


def test_a_baseline_without_errors_still_needs_enough_samples_to_show_one():
    samples = np.ones(100)
    assert samples_needed(samples, 0.01) == 390
    assert expected_margin(samples, 0.01) == pytest.approx(1.96 * 0.1 / 10, rel=1e-4)


def test_scores_between_0_and_1_need_as_many_as_their_spread_asks_for():
    tight, wide = RNG.normal(0.9, 0.01, 200), RNG.normal(0.9, 0.2, 200)
    assert samples_needed(tight, 0.01) < 10 < samples_needed(wide, 0.01)


def test_means_over_positions_need_no_more_than_their_spread_asks_for():
    assert samples_needed(np.ones(100), 0.01, single_answers=False) <= 1
