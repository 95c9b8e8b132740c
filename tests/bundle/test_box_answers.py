"""Boxes as golden answers: which ones an app has to find, how far they may be off, and that no difference misleads."""

import msgspec
import numpy as np
import pytest
from app_bundles import BOX_MAPS

from edgeopt.bundle.box_answers import BoxMaps, FoundBox, count_wrong_boxes, find_box_answers
from edgeopt.tasks.peaks import decode_peaks

SIZE = (10, 12)
LABELS = ("ape", "bat")
SLACKS = (0.02, 0.2)
"""Of the heat-map: as of float32 and of int8."""


def smooth_maps(seed, *, flat=False):
    """Return maps of one sample with hills of several heights; values that are rounded to steps have flat tops."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    heatmap = np.full((1, 2, *SIZE), -8.0)
    for _ in range(6):
        label, row, column, height, width = (
            rng.integers(2),
            *rng.uniform(0, SIZE),
            rng.uniform(4, 12),
            rng.uniform(1, 6),
        )
        hill = height - 8 - ((rows - row) ** 2 + (columns - column) ** 2) / width
        heatmap[0, label] = np.maximum(heatmap[0, label], hill)
    sides = rng.uniform(-1, 1.5, (1, 4, 1, 1)) + rng.uniform(-0.05, 0.05, (1, 4, *SIZE))
    return {"y": np.round(heatmap * 4) / 4 if flat else heatmap, "s": sides}


def boxes_of(outputs, maps=BOX_MAPS):
    (found,) = decode_peaks(outputs["y"], outputs["s"], maps.stride)
    boxes = zip(found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True)
    return [FoundBox(*box) for box in boxes if box[1] >= maps.min_score]


@pytest.mark.parametrize("slack", SLACKS)
@pytest.mark.parametrize("flat", [False, True])
def test_no_difference_that_is_allowed_is_a_mistake(slack, flat):
    rng = np.random.default_rng(0)
    certain = 0
    for seed in range(40):
        outputs = smooth_maps(seed, flat=flat)
        answers = find_box_answers(BOX_MAPS, outputs, {"y": slack, "s": 0.03}, LABELS)
        certain += sum(answer.box.is_certain for answer in answers)
        for change in (rng.uniform(-1, 1, (5, *outputs["y"].shape)), rng.choice([-1, 1], (5, *outputs["y"].shape))):
            for one in change:
                other = {"y": outputs["y"] + slack * one, "s": outputs["s"] + 0.03 * rng.choice([-1, 1], (1, 4, *SIZE))}
                if answers:
                    assert count_wrong_boxes(answers, boxes_of(other)) == (0, 0)
    assert certain > (60 if slack < 0.1 else 10)


def test_the_boxes_are_those_that_the_score_counts_with_their_labels():
    outputs = smooth_maps(3)
    answers = find_box_answers(BOX_MAPS, outputs, {"y": 1e-3, "s": 1e-3}, LABELS)
    found = boxes_of(outputs)
    right = [answer for answer in answers if answer.box.is_certain]
    assert len(right) == len(found) > 1
    for answer in right:
        (same,) = [one for one in found if np.allclose(one.corners, answer.box.corners)]
        assert (same.class_index, answer.label) == (answer.class_index, LABELS[answer.class_index])
        assert same.score == pytest.approx(answer.box.score)
    assert {answer.label for answer in find_box_answers(BOX_MAPS, outputs, {"y": 1e-3, "s": 1e-3}, ())} == {None}


def test_missing_moved_and_further_boxes_are_counted():
    outputs = smooth_maps(3)
    answers = find_box_answers(BOX_MAPS, outputs, {"y": 1e-3, "s": 1e-3}, LABELS)
    first, *others = boxes_of(outputs)
    assert count_wrong_boxes(answers, others) == (1, 0)
    moved = first._replace(corners=[corner + 1 for corner in first.corners])
    assert count_wrong_boxes(answers, [moved, *others]) == (1, 1)
    assert count_wrong_boxes(answers, [first._replace(class_index=1 - first.class_index), *others]) == (1, 1)
    assert count_wrong_boxes(answers, [first, *others, moved]) == (0, 1)


def test_an_object_near_the_least_probability_may_be_missing():
    heatmap = np.full((1, 1, *SIZE), -8.0)
    heatmap[0, 0, 4, 4] = np.log(0.3 / 0.7) + 0.01
    outputs = {"y": heatmap, "s": np.zeros((1, 4, *SIZE))}
    (answer,) = find_box_answers(BOX_MAPS, outputs, {"y": 0.05, "s": 0.01}, ("ape",))
    assert not answer.box.is_certain
    assert count_wrong_boxes([answer], []) == (0, 0)


def test_a_sample_with_more_objects_than_an_app_shows_has_no_answers():
    heatmap = np.full((2, 1, *SIZE), -8.0)
    heatmap[0, 0, ::2, ::2] = 2
    heatmap[1, 0, 5, 5] = 2
    few: BoxMaps = msgspec.structs.replace(BOX_MAPS, max_boxes=10)
    answers = find_box_answers(few, {"y": heatmap, "s": np.zeros((2, 4, *SIZE))}, {"y": 0.01, "s": 0.01}, ())
    assert [answer.sample for answer in answers] == [1]
