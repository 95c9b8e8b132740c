"""Mean average precision: cases by hand, its rows against the library on any draw of images, and its interval."""

import time

import numpy as np
import pytest

pytest.importorskip("faster_coco_eval")

from edgeopt.scoring.average_precision import (
    MAX_DETECTIONS,
    match_rows,
    mean_average_precision,
    score_of_matches,
)
from edgeopt.scoring.drop import rows_drop_interval

BOX, OTHER, THIRD = [0, 0, 8, 8], [16, 16, 24, 24], [40, 0, 60, 30]
SAME = 1e-9  # both are float64


def wanted(*boxes, labels=None, iscrowd=None):
    labels = [0] * len(boxes) if labels is None else labels
    found = {"boxes": np.array(boxes, float).reshape(-1, 4), "labels": np.array(labels, int)}
    return found if iscrowd is None else {**found, "iscrowd": np.array(iscrowd)}


def found(*boxes, labels=None, scores=None):
    scores = np.linspace(0.9, 0.1, len(boxes)) if scores is None else np.array(scores, float)
    return {**wanted(*boxes, labels=labels), "scores": scores}


def both(detections, truth):
    """Return the score by the library, which that of the rows has to be."""
    score = mean_average_precision(detections, truth)
    assert score_of_matches(match_rows(detections, truth)) == pytest.approx(score, abs=SAME)
    return score


def test_each_box_counts_once_and_a_shifted_one_is_a_miss():
    truth = [wanted(BOX, OTHER)]
    assert both([found(BOX, OTHER)], truth) == pytest.approx(1)
    assert both([found(BOX, BOX)], truth) == pytest.approx(51 / 101)  # a recall of 0 to 0.5 in steps of 0.01
    assert both([found([2, 0, 10, 8], [16, 16, 24, 24])], truth) == pytest.approx(1)  # an overlap of 6 / 10
    assert both([found([4, 0, 12, 8], OTHER)], truth) == pytest.approx(51 / 101 / 2)  # of 4 / 12, ranked first
    assert both([found()], truth) == 0


def test_classes_count_alike_and_those_without_an_object_do_not():
    truth = [wanted(BOX, OTHER, THIRD, labels=[0, 0, 2])]
    assert both([found(BOX, OTHER, labels=[0, 0])], truth) == pytest.approx(0.5)
    assert both([found(BOX, OTHER, THIRD, BOX, labels=[0, 0, 2, 1])], truth) == pytest.approx(1)
    assert both([found(BOX, OTHER, THIRD, labels=[0, 0, 7])], truth) == pytest.approx(0.5)
    assert mean_average_precision([found(BOX)], [wanted()]) == 0


def test_labels_may_be_a_column_and_real_numbers():
    truth = {"boxes": [BOX, OTHER], "labels": [[0.0], [1.0]], "iscrowd": [[0], [0]]}
    detections = {"boxes": [BOX, OTHER], "labels": [[0.0], [1.0]], "scores": [[0.5], [0.4]]}
    assert both([detections], [truth]) == pytest.approx(1)


def test_a_crowd_need_not_be_found_and_what_overlaps_it_is_not_wrong():
    truth = [wanted(BOX, THIRD, iscrowd=[0, 1])]
    assert both([found(BOX)], truth) == pytest.approx(1)
    assert both([found(THIRD, [40, 0, 60, 14], BOX)], truth) == pytest.approx(1)
    assert both([found(OTHER, BOX)], truth) == pytest.approx(0.5)


def test_a_box_whose_ends_are_exchanged_is_empty_and_wrong():
    assert both([found([8, 8, 0, 0], BOX)], [wanted(BOX)]) == pytest.approx(0.5)


def test_what_is_not_finite_or_beyond_the_limit_is_not_found():
    many = [[100 + index, 0, 110 + index, 9] for index in range(MAX_DETECTIONS)]
    assert both([found(*many, BOX)], [wanted(BOX)]) == 0
    assert both([found(BOX, OTHER, scores=[np.nan, 0.5])], [wanted(BOX, OTHER)]) == pytest.approx(51 / 101)


def scenes(seed, images, spread=3.0):
    """Return what a poor detector finds, with many equal scores, and what should be found."""
    rng = np.random.default_rng(seed)
    truth, detections = [], []
    for _ in range(images):
        corners, sizes = rng.uniform(0, 150, (2, int(rng.integers(0, 6)), 2))
        boxes = np.concatenate([corners, corners + 8 + sizes / 3], 1)
        labels = rng.integers(0, 3, len(boxes))
        truth.append({"boxes": boxes, "labels": labels, "iscrowd": rng.random(len(boxes)) < 0.2})
        extra = rng.uniform(0, 150, (int(rng.integers(0, 30)), 2))
        guessed = np.concatenate([boxes + rng.normal(0, spread, boxes.shape), np.concatenate([extra, extra + 20], 1)])
        scores = np.concatenate([rng.uniform(0.3, 1, len(boxes)), rng.uniform(0, 0.7, len(extra))]).round(1)
        kinds = np.concatenate([labels, rng.integers(0, 3, len(extra))])
        detections.append({"boxes": guessed, "labels": kinds, "scores": scores})
    return detections, truth


def test_rows_give_the_score_of_the_library_for_any_draw_of_images():
    for seed in range(5):
        detections, truth = scenes(seed, 40)
        rows = match_rows(detections, truth)
        assert 0 < both(detections, truth) < 1
        draw = np.sort(np.random.default_rng(seed).integers(0, 40, 40))
        expected = mean_average_precision([detections[at] for at in draw], [truth[at] for at in draw])
        assert score_of_matches(rows[draw]) == pytest.approx(expected, abs=SAME)


def test_the_interval_is_fast_and_covers_the_drop():
    worse, truth = scenes(3, 100, spread=6.0)
    better, _ = scenes(3, 100, spread=2.0)
    rows = [match_rows(one, truth) for one in (better, worse)]
    begin = time.perf_counter()
    interval = rows_drop_interval(*rows, score_of_matches, "higher")
    assert time.perf_counter() - begin < 10  # 1,000 draws take about one second on an idle core
    drop = mean_average_precision(better, truth) - mean_average_precision(worse, truth)
    assert interval.value == pytest.approx(drop, abs=SAME)
    assert 0 < interval.low < drop < interval.high
    same = rows_drop_interval(rows[0], rows[0], score_of_matches, "higher")
    assert (same.low, same.high) == (0, 0)
