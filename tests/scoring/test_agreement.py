"""How outputs without labels are compared with the baseline's, by what they look like over the data."""

import numpy as np
import pytest

from edgeopt.errors import DataError
from edgeopt.records.scoring import ScoreWish
from edgeopt.scoring.agreement import choose_agreement, constant_agreement
from edgeopt.scoring.compute import sample_values, score_of
from edgeopt.scoring.sequences import edit_distance, read_sequence

RNG = np.random.default_rng(0)
COUNT = 64


def kind_of(output, name="y", **wish):
    """Return the kind for one output in two batches."""
    return choose_agreement([(output[:40],), (output[40:],)], [name], ScoreWish(**wish), source="m.onnx")


def score(output, other, name="y", **wish):
    return score_of(kind_of(output, name, **wish), [(other[:40], output[:40]), (other[40:], output[40:])])


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def softmax(values):
    exp = np.exp(values - values.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


# -- probabilities -----------------------------------------------------------------------------------------------------


def test_one_sigmoid_agrees_if_it_is_on_the_same_side_of_a_half_and_near():
    p = sigmoid(4 * RNG.standard_normal((COUNT, 1)))
    assert score(p, p) == pytest.approx(1.0)
    assert score(p, np.clip(p + 0.001, 0, 1)) > 0.99
    assert score(p, 1 - p) == 0.0
    assert score(p, np.where(p > 0.5, 0.51, 0.49)) < 0.8  # the answers are the same, but nobody else's threshold's


def test_quiet_probabilities_are_compared_by_their_absolute_difference_and_a_note_says_that_one_answer_shows_nothing():
    quiet = 1e-3 * RNG.random((COUNT, 1))
    assert score(quiet, quiet * 0.2) > 0.999
    assert score(quiet, quiet + 0.9) == 0.0
    assert "'y' is on one side of 0.5 for every input, so agreement shows nothing" in kind_of(quiet).notes[0]


def test_a_rare_yes_counts_like_a_no():
    p = np.full((COUNT, 1), 0.01)
    p[:2] = 0.99
    other = p.copy()
    other[0] = 0.01  # one of two wake words is lost
    assert score(p, other) == pytest.approx(0.75, abs=1e-6)
    assert score(p, np.full_like(p, 0.01)) == pytest.approx(0.5, abs=1e-6)


def test_a_map_in_which_one_pixel_of_a_hundred_is_text_is_not_kept_by_an_empty_map():
    p = np.full((COUNT, 1, 16, 16), 0.001)
    p[:, :, 3, 4:7] = 0.98
    assert score(p, p) == pytest.approx(1.0)
    assert score(p, np.zeros_like(p)) == pytest.approx(0.5, abs=0.01)


def test_a_picture_in_0_to_1_is_compared_by_its_values():
    picture = RNG.random((COUNT, 3, 8, 8))
    kind = kind_of(picture)
    assert (kind.parts[0].layout, kind.parts[0].metric) == ("values", "similarity")


def test_probabilities_of_one_class_everywhere_are_compared_by_their_distance():
    p = softmax(RNG.standard_normal((COUNT, 5)) + np.array([0, 20, 0, 0, 0]))
    assert score(p, p) == pytest.approx(1.0)
    assert score(p, np.tile([0.1, 0.6, 0.1, 0.1, 0.1], (COUNT, 1))) == pytest.approx(0.6, abs=0.01)


# -- embeddings and numbers --------------------------------------------------------------------------------------------


def test_vectors_of_length_one_are_compared_by_their_angle():
    y = unit(RNG.standard_normal((COUNT, 32)))
    largest = np.zeros_like(y)
    largest[np.arange(COUNT), y.argmax(1)] = 1.0
    kind = kind_of(y)
    assert kind.parts[0].metric == "cosine"
    assert "compared by their angle" in kind.notes[0]
    assert score(y, largest) == pytest.approx(float(y.max(1).mean()))
    assert score(y, 3 * y) == pytest.approx(1.0)  # only the direction counts


def test_positive_vectors_of_length_one_are_no_probabilities():
    assert kind_of(unit(np.abs(RNG.standard_normal((COUNT, 32))))).parts[0].metric == "cosine"


def test_errors_are_relative_to_the_size_of_the_values_over_the_data_not_within_a_sample():
    y = RNG.standard_normal((COUNT, 16))
    y[0] *= 1e-4  # silence
    noisy = y + 0.01 * RNG.standard_normal(y.shape)
    values = sample_values(kind_of(y), [(noisy, y)])
    assert values[0] > 0.98
    assert values.mean() == pytest.approx(0.99, abs=0.003)


def test_columns_in_other_units_have_errors_of_their_own():
    y = np.stack([RNG.normal(50_000, 9_000, COUNT), RNG.normal(0, 1, COUNT)], axis=1)
    lost = y.copy()
    lost[:, 1] = 0
    assert score(y, lost) < 0.6
    assert "columns of 'y' differ in size" in kind_of(y).notes[0]


def test_the_agreement_of_a_constant_file_is_known():
    offset = 100 + RNG.standard_normal((COUNT, 6))
    assert constant_agreement(kind_of(offset), [(offset,)]) > 0.98
    free = RNG.standard_normal((COUNT, 6))
    assert constant_agreement(kind_of(free), [(free,)]) < 0.2


# -- sequences ---------------------------------------------------------------------------------------------------------


def ctc(texts, classes=12, steps=24):
    """Return distributions over classes: each letter for two steps, then a blank (class 0)."""
    logits = np.zeros((len(texts), steps, classes))
    logits[:, :, 0] = 4
    for row, text in zip(logits, texts, strict=True):
        for place, letter in enumerate(text):
            row[3 * place : 3 * place + 2, letter] = 9
    return softmax(logits)


def test_the_outputs_of_a_reader_are_compared_by_the_edit_distance_of_their_texts():
    texts = [list(RNG.integers(1, 12, 5)) for _ in range(COUNT)]
    other = [[*text[:2], 1 + text[2] % 11, *text[3:]] for text in texts]  # one letter of five
    kind = kind_of(ctc(texts))
    assert (kind.parts[0].metric, kind.parts[0].blank) == ("edit", 0)
    assert "edit distance" in kind.notes[0]
    assert score(ctc(texts), ctc(other)) == pytest.approx(0.8)
    assert score(ctc(texts), ctc([[]] * COUNT)) == 0.0  # most steps are blanks in both


def test_classes_that_last_for_many_steps_are_compared_step_by_step():
    steps = np.repeat(RNG.integers(0, 6, (COUNT, 4)), 6, axis=1)
    assert kind_of(softmax(9 * np.eye(6)[steps])).parts[0].metric == "accuracy"


def test_edit_distances():
    assert read_sequence(np.array([0, 3, 3, 0, 3, 5, 5]), 0) == [3, 3, 5]
    assert edit_distance([1, 2, 3], [1, 3, 4]) == 2
    assert edit_distance([], [1, 1]) == 2


# -- boxes -------------------------------------------------------------------------------------------------------------


def detections(anchors=40, classes=3):
    """Return two boxes a sample in pixels with their scores, ``(N, 4 + classes, anchors)``, before suppression."""
    y = np.zeros((COUNT, 4 + classes, anchors), np.float32)
    y[:, :2] = RNG.uniform(0, 320, (COUNT, 2, anchors))
    y[:, 2:4] = RNG.uniform(10, 60, (COUNT, 2, anchors))
    y[:, 4:] = RNG.uniform(0, 0.02, (COUNT, classes, anchors))
    for row in y:
        row[:, 7] = row[:, 8] = [100, 100, 50, 40, 0.9, 0, 0]  # the same box twice
        row[:, 20] = [250, 200, 30, 60, 0, 0.8, 0]
    return y


def test_boxes_are_compared_as_sets():
    y = detections()
    kind = kind_of(y)
    assert (kind.parts[0].metric, kind.parts[0].class_axis, kind.parts[0].has_corners) == ("boxes", 1, False)
    moved = y.copy()
    moved[:, :, 30], moved[:, :, 20] = y[:, :, 20], y[:, :, 30]  # found by another anchor, 2 pixels away
    moved[:, 0, 30] += 2
    assert score(y, moved) == 1.0
    without_scores = y.copy()
    without_scores[:, 4:] = 0  # as int8 rounds them next to pixels
    assert score(y, without_scores) == 0.0
    assert score(y.transpose(0, 2, 1).copy(), moved.transpose(0, 2, 1).copy()) == 1.0


def test_boxes_after_suppression_have_the_number_of_their_class():
    y = np.zeros((COUNT, 10, 6), np.float32)
    y[:, 0] = [10, 10, 60, 50, 0.9, 2]
    y[:, 1] = [100, 80, 160, 150, 0.7, 5]
    other = y.copy()
    other[:, 1, 5] = 4
    assert kind_of(y).parts[0].has_corners
    assert score(y, y[:, ::-1].copy()) == 1.0
    assert score(y, other) == 0.5


def test_boxes_of_which_none_is_detected_show_nothing():
    y = detections()
    y[:, 4:] *= 0.1
    assert "detects none on this data, so agreement shows nothing" in kind_of(y).notes[0]


# -- as asked ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "wish", "message"),
    [
        (RNG.standard_normal((COUNT, 3)), "probability", "holds no probabilities, which are from 0 to 1"),
        (RNG.standard_normal((COUNT, 3)), "edit", "holds no sequences"),
        (RNG.standard_normal((COUNT, 3)), "boxes", "holds no boxes"),
    ],
)
def test_a_score_that_an_output_cannot_have_is_refused(output, wish, message):
    with pytest.raises(DataError, match=message):
        kind_of(output, score=wish)


def test_a_score_of_the_users_choice_is_taken():
    y = RNG.standard_normal((COUNT, 3, 9))
    assert score(y, 2 * y, score="cosine") == pytest.approx(1.0)
    assert score(y, y[..., ::-1], score="edit") < 0.5
    assert score(softmax(y), softmax(y) * 0.999, score="probability") > 0.99


@pytest.mark.parametrize("every", [3, 50, 1000])
def test_equal_outputs_agree_wholly_on_a_set_with_another_share_of_yes(every):
    chosen_on = np.where(np.arange(1000) % 10 == 0, 0.9, 0.1).astype(np.float32)[:, None]
    kind = kind_of(chosen_on)
    assert kind.parts[0].yes_ratio == pytest.approx(0.1)
    other = np.where(np.arange(999) % every == 1, 0.9, 0.1).astype(np.float32)[:, None]
    batches = [(other[:500], other[:500]), (other[500:], other[500:])]
    assert score_of(kind, batches) == pytest.approx(1.0)
    always_no = [(np.full_like(truth, 0.1), truth) for truth, _ in batches]
    assert score_of(kind, always_no) == pytest.approx(0.5)
