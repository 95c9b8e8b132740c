"""What a score is, from the arrays that people bring: one test for each kind of output and labels."""

import numpy as np
import pytest

from edgeopt.errors import DataError, EdgeoptError, StepError, TaskError
from edgeopt.records.scoring import ScoreWish
from edgeopt.scoring.agreement import choose_agreement
from edgeopt.scoring.choose import choose_score
from edgeopt.scoring.compute import sample_values, score_of
from edgeopt.scoring.constant import check_constant

RNG = np.random.default_rng(0)
COUNT = 60
LABELS = RNG.integers(0, 4, COUNT)
LOGITS = (3 * np.eye(4)[LABELS] + RNG.standard_normal((COUNT, 4))).astype(np.float32)


def softmax(values, axis=1):
    exp = np.exp(values - values.max(axis, keepdims=True))
    return exp / exp.sum(axis, keepdims=True)


def in_batches(*arrays, size=16):
    return [tuple(array[at : at + size] for array in arrays) for at in range(0, len(arrays[0]), size)]


def chosen(outputs, labels, **wish):
    """Return the kind for outputs (a name to an array each) and labels, and the score of these outputs."""
    batches, targets = in_batches(*outputs.values()), [label for (label,) in in_batches(labels)]
    kind = choose_score(batches, list(outputs), targets, ScoreWish(**wish), source="data.npz: 'labels'")
    pairs = [(batch if len(batch) > 1 else batch[0], target) for batch, target in zip(batches, targets, strict=True)]
    return kind, score_of(kind, pairs)


RIGHT = float((LOGITS.argmax(1) == LABELS).mean())


@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        LABELS.astype(np.uint8),
        LABELS.astype(np.float64),
        LABELS[:, None],
        np.eye(4, dtype=np.int64)[LABELS],
        np.eye(4, dtype=np.float32)[LABELS],
        np.eye(4, dtype=bool)[LABELS],
    ],
    ids=["(N,)", "uint8", "float", "(N,1)", "one-hot", "float one-hot", "bool one-hot"],
)
def test_labels_of_classes_are_taken_as_people_have_them(labels):
    kind, score = chosen({"logits": LOGITS}, labels)
    assert score == pytest.approx(RIGHT)
    assert kind.direction == "higher"


YES = RNG.integers(0, 2, COUNT)
MARGIN = (4 * YES - 2 + RNG.standard_normal(COUNT)).astype(np.float32)
DECIDED = float(((MARGIN > 0) == YES).mean())


@pytest.mark.parametrize("labels", [YES, YES[:, None], YES.astype(bool), 2 * YES - 1, YES.astype(np.float32)])
@pytest.mark.parametrize("output", [MARGIN, MARGIN[:, None], 1 / (1 + np.exp(-MARGIN[:, None]))])
def test_one_logit_or_sigmoid_a_sample_is_a_decision(output, labels):
    kind, score = chosen({"p": output}, labels)
    assert score == pytest.approx(DECIDED)
    assert kind.parts[0].threshold == (0.5 if output.min() >= 0 else 0.0)
    assert "taken for" in kind.notes[-1]


def test_several_labels_a_sample_are_judged_each_by_its_own_threshold():
    labels = RNG.integers(0, 2, (COUNT, 5))
    output = (3.0 * labels - 1.5 + RNG.standard_normal((COUNT, 5))).astype(np.float32)
    kind, score = chosen({"y": output}, labels)
    assert score == pytest.approx(((output > 0) == labels).mean())
    assert sample_values(kind, [(output, labels)]).shape == (COUNT,)
    kind, score = chosen({"y": output}, labels, score="f1")
    right, found, true = ((output > 0) & (labels > 0)).sum(0), (output > 0).sum(0), labels.sum(0)
    assert score == pytest.approx((2 * right / (found + true)).mean())


MASKS = RNG.integers(0, 3, (COUNT, 5, 6))
MAPS = np.moveaxis(2 * np.eye(3)[MASKS], -1, 1) + RNG.standard_normal((COUNT, 3, 5, 6))


@pytest.mark.parametrize("ignored", [None, 255, -100, -1])
@pytest.mark.parametrize("axis", [1, 3])
@pytest.mark.parametrize("labels", [MASKS, MASKS[:, None], MASKS[..., None]], ids=["NHW", "N1HW", "NHW1"])
def test_masks_are_judged_over_the_positions_that_count(axis, labels, ignored):
    labels, counted = labels.copy(), np.ones(MASKS.shape, bool)
    if ignored is not None:
        labels.reshape(MASKS.shape)[:, 0] = ignored
        counted[:, 0] = False
    kind, score = chosen({"mask": np.moveaxis(MAPS, 1, axis).astype(np.float32)}, labels)
    expected = ((MAPS.argmax(1) == MASKS) & counted).sum((1, 2)) / counted.sum((1, 2))
    assert score == pytest.approx(expected.mean())
    assert kind.parts[0].ignored == ignored


def test_tokens_with_their_classes_last_are_found_by_the_labels_even_if_the_axes_are_equally_long():
    labels = RNG.integers(0, 6, (COUNT, 6))
    output = 3 * np.eye(6)[labels] + RNG.standard_normal((COUNT, 6, 6))
    kind, score = chosen({"tokens": output}, labels)
    assert kind.parts[0].class_axis == 2
    assert score == pytest.approx((output.argmax(2) == labels).mean())
    assert any("axis 2" in note for note in kind.notes)


def test_a_mask_of_one_sigmoid_a_position_is_yes_or_no():
    labels = RNG.integers(0, 2, (COUNT, 4, 4))
    output = 1 / (1 + np.exp(-(3.0 * labels - 1.5 + RNG.standard_normal(labels.shape))))[:, None]
    labels[:, 0, 0] = 255
    kind, score = chosen({"mask": output}, labels)
    counted = labels != 255
    assert score == pytest.approx((((output[:, 0] > 0.5) == labels) & counted).sum((1, 2)).mean() / 15)
    assert kind.parts[0].ignored == 255


@pytest.mark.parametrize("output", [LABELS, LABELS[:, None], LABELS.astype(np.float32)], ids=["(N,)", "(N,1)", "float"])
def test_class_numbers_of_the_graph_itself_are_compared(output):
    wrong = output.copy()
    wrong[:6] = (wrong[:6] + 1) % 4
    kind, score = chosen({"answer": wrong}, LABELS)
    assert score == pytest.approx(0.9)
    assert kind.parts[0].layout == "class numbers"


def test_real_numbers_are_judged_by_an_error_and_lower_is_better():
    labels = RNG.standard_normal(COUNT).astype(np.float32)
    kind, score = chosen({"y": labels[:, None] + 0.25}, labels)
    assert score == pytest.approx(0.25, rel=1e-5)
    assert kind.direction == "lower"
    error = 0.1 * RNG.standard_normal((COUNT, 3))
    labels = RNG.standard_normal((COUNT, 3))
    assert chosen({"y": labels + error}, labels, score="rmse")[1] == pytest.approx(np.sqrt((error**2).mean()))
    assert chosen({"y": labels + error}, labels, score="mse")[1] == pytest.approx((error**2).mean())


def test_whole_numbers_for_one_output_are_a_regression_only_if_asked():
    ages = RNG.integers(0, 90, COUNT)
    with pytest.raises(DataError, match=r"'age' estimates a number, ask for its error .* --score KIND"):
        chosen({"age": ages[:, None] + 0.5}, ages)
    assert chosen({"age": ages[:, None] + 0.5}, ages, score="mae")[1] == pytest.approx(0.5)


@pytest.mark.parametrize("ignored", [0, 7])
def test_a_label_that_the_user_does_not_count_is_left_out_of_any_kind(ignored):
    labels = np.where(RNG.random(COUNT) < 0.3, ignored, LABELS)
    counted = labels != ignored
    kind, score = chosen({"logits": LOGITS}, labels, ignored=ignored)
    assert score == pytest.approx((LOGITS.argmax(1) == labels)[counted].mean())
    assert f"labels of {ignored} don't count." in kind.notes
    signs = np.where(RNG.random(COUNT) < 0.3, ignored, 2 * YES - 1)
    _, score = chosen({"p": MARGIN}, signs, ignored=ignored)
    assert score == pytest.approx(((MARGIN > 0) == (signs > 0))[signs != ignored].mean())
    outputs = {"mask": MAPS}
    assert chosen(outputs, MASKS, ignored=ignored, score="miou")[1] > 0.3


@pytest.mark.parametrize("score", ["mae", "rmse"])
def test_an_ignored_value_of_real_numbers_does_not_count(score):
    depths = RNG.random((COUNT, 4, 4)) + 1
    found = (depths + 0.25).astype(np.float32)
    unknown = RNG.random(depths.shape) < 0.3
    unknown[0] = True  # a sample of which nothing is known
    kind, value = chosen({"depth": found}, np.where(unknown, 0, depths), ignored=0, score=score)
    assert value == pytest.approx(0.25, rel=1e-5)
    assert "labels of 0 don't count." in kind.notes
    check = check_constant(kind, [(found, np.where(unknown, 0, depths))])
    assert check.constant == pytest.approx({"mae": 0.25, "rmse": 12**-0.5}[score], abs=0.03)
    assert check.samples == COUNT - 1


def test_intersection_over_union_is_that_of_the_whole_set():
    kind, score = chosen({"mask": MAPS}, MASKS, score="miou")
    answers = MAPS.argmax(1)
    unions = [((answers == c) | (c == MASKS)).sum() for c in range(3)]
    both = [((answers == c) & (c == MASKS)).sum() for c in range(3)]
    assert score == pytest.approx(np.mean(np.divide(both, unions)))
    assert kind.is_summed


# -- several outputs ---------------------------------------------------------------------------------------------------


def test_an_embedding_beside_the_logits_is_not_judged():
    embedding = RNG.standard_normal((COUNT, 16))
    for outputs in ({"embedding": embedding, "logits": LOGITS}, {"logits": LOGITS, "embedding": embedding}):
        kind, score = chosen(outputs, LABELS)
        assert (kind.parts[0].output, score) == ("logits", pytest.approx(RIGHT))


def test_logits_and_their_softmax_are_one_answer():
    kind, _ = chosen({"logits": LOGITS, "probabilities": softmax(LOGITS)}, LABELS)
    assert kind.parts[0].output == "logits"
    assert "'probabilities' would fit" in kind.notes[0]


def test_two_classifiers_have_to_be_named():
    second = (2 * np.eye(4)[LABELS] + RNG.standard_normal((COUNT, 4))).astype(np.float32)
    outputs = {"main": LOGITS, "auxiliary": second}
    with pytest.raises(TaskError, match=r"'main' of shape \(N, 4\).*'auxiliary'.*--score-output NAME"):
        chosen(outputs, LABELS)
    _, score = chosen(outputs, LABELS, output="auxiliary")
    assert score == pytest.approx((second.argmax(1) == LABELS).mean())
    with pytest.raises(TaskError, match=r"no output 'mian' .did you mean 'main'"):
        chosen(outputs, LABELS, output="mian")


@pytest.mark.parametrize("score", [None, "mae"])
def test_labels_of_nan_are_to_be_replaced_by_a_number_that_is_named(score):
    values = RNG.standard_normal((COUNT, 3)).astype(np.float32)
    with pytest.raises(
        DataError, match="number that no label has in place of such values, and name it with --ignore-label N"
    ):
        chosen({"y": values}, np.where(values > 1, np.nan, values), score=score)


def test_an_unknown_score_suggests_the_nearest():
    with pytest.raises(TaskError, match=r"no score 'acuracy' .did you mean 'accuracy'"):
        chosen({"y": LOGITS}, LABELS, score="acuracy")


# -- refusals ----------------------------------------------------------------------------------------------------------

NAN = np.where(np.arange(COUNT) == 3, np.nan, LABELS)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            LABELS + 1,
            r"'logits' has 4 classes, so its labels go from 0 to 3, but they hold 1 to 4\. If yours begin at 1",
        ),
        (LABELS - 1, "labels go from 0 to 3, but they hold -1 to 2"),
        (LABELS + 0.5, "'logits' has 4 classes, so its labels are whole numbers from 0 to 3"),
        (NAN, r"1 of the labels are NaN \(shape \(N,\)\)"),
        (np.where(np.isnan(NAN), np.inf, NAN), "some labels are infinite"),
        (np.array(["cat", "dog"] * 30), "labels have type str.*return_inverse"),
        (np.array([object()] * COUNT), "labels have type object"),
        (softmax(LOGITS), "Rows of labels add up to 1.*ask for accuracy"),
        (
            RNG.integers(0, 9, (COUNT, 3)),
            r"'labels' of shape \(N, 3\).*can't judge the outputs 'logits' of shape \(N, 4\)",
        ),
    ],
    ids=["from 1", "from -1", "halves", "NaN", "infinite", "words", "objects", "probabilities", "another shape"],
)
def test_labels_that_fit_no_output_are_refused_with_what_was_found(labels, message):
    with pytest.raises(DataError, match=message):
        chosen({"logits": LOGITS}, labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([np.int64(3)], "single number"),
        ([LABELS[:-1]], "59 labels for 60 outputs"),
        ([{"a": LABELS, "b": LABELS}], "dict"),
    ],
)
def test_a_single_label_a_wrong_count_and_a_dictionary_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        choose_score([(LOGITS,)], ["logits"], labels, ScoreWish(), source="data.npz: 'labels'")


# -- agreement ---------------------------------------------------------------------------------------------------------


def agreement(outputs, others, **wish):
    """Return how far other outputs agree with those of the baseline, and what was said about it."""
    kind = choose_agreement([tuple(outputs.values())], list(outputs), ScoreWish(**wish), source="m.onnx")
    values = list(outputs.values())
    mine, theirs = (tuple(arrays) if len(values) > 1 else arrays[0] for arrays in (others, values))
    return score_of(kind, [(mine, theirs)]), kind


def test_probabilities_and_logits_by_name_agree_if_they_name_the_same_class():
    other = LOGITS + 0.01
    other[:15] = other[:15, ::-1]
    expected = (other.argmax(1) == LOGITS.argmax(1)).mean()
    for outputs in ({"p": softmax(LOGITS)}, {"log_p": np.log(softmax(LOGITS))}, {"Logits": LOGITS}):
        assert agreement(outputs, [other])[0] == pytest.approx(expected)


def test_an_embedding_is_compared_by_its_values_and_a_note_says_how_to_change_that():
    embedding = np.abs(RNG.standard_normal((COUNT, 16)))
    other = np.zeros_like(embedding)
    other[np.arange(COUNT), embedding.argmax(1)] = 5.0  # the same largest value, and nothing else
    score, kind = agreement({"y": embedding}, [other])
    assert score < 0.3
    assert "ask for accuracy with --score" in kind.notes[0]
    assert agreement({"y": embedding}, [other], score="accuracy")[0] == 1.0


def test_probabilities_that_name_one_class_for_every_input_are_compared_by_their_values():
    p = softmax(LOGITS + np.array([0, 99, 0, 0]))
    score, kind = agreement({"p": p}, [np.tile([0.3, 0.4, 0.3, 0.0], (COUNT, 1))])
    assert score < 0.5
    assert "names the same class for every input" in kind.notes[0]


def test_0_and_255_may_be_no_and_yes_so_they_are_asked_for():
    labels = np.where(RNG.random((COUNT, 4, 4)) < 0.5, 255, 0).astype(np.uint8)
    output = np.where(labels > 0, 2.0, -2.0)[:, None]
    with pytest.raises(DataError, match="if 255 means yes, divide them by 255"):
        chosen({"mask": output}, labels)
    assert chosen({"mask": output}, labels // 255)[1] == 1.0


def test_an_error_of_labels_in_another_shape_is_refused():
    with pytest.raises(DataError, match="For rmse the labels have the shape of the output"):
        chosen({"logits": LOGITS}, LABELS, score="rmse")


def test_class_numbers_agree_if_they_are_equal_and_one_real_number_is_relative_to_the_set():
    numbers = LABELS[:, None]
    assert agreement({"answer": numbers}, [np.where(np.arange(COUNT)[:, None] < 6, numbers + 1, numbers)])[0] == 0.9
    values = RNG.standard_normal(COUNT)
    values[0] = 1e-9  # nothing is relative to a value that happens to be near zero
    assert agreement({"y": values}, [values + 0.01])[0] > 0.97


def test_several_outputs_agree_by_their_mean():
    outputs = {"p": softmax(LOGITS), "y": RNG.standard_normal((COUNT, 3, 2))}
    score, kind = agreement(outputs, [outputs["p"][:, ::-1], outputs["y"]])
    assert 0.5 <= score < 0.75
    assert len(kind.parts) == 2


def test_outputs_that_are_not_finite_are_wrong_or_an_error_but_never_right():
    lost = np.full_like(LOGITS, np.nan)
    kind, _ = chosen({"logits": LOGITS}, LABELS)
    assert score_of(kind, [(lost, LABELS)]) == 0.0
    kind, _ = chosen({"y": LABELS + 0.25}, LABELS + 0.5)
    with pytest.raises(StepError, match="output 'y' holds values that are not finite"):
        score_of(kind, [(np.full(COUNT, np.nan), LABELS + 0.5)])


def test_every_refusal_is_a_wrong_input():
    with pytest.raises(EdgeoptError) as caught:
        chosen({"logits": LOGITS}, LABELS + 9)
    assert caught.value.exit_code == 2


def test_outputs_and_labels_may_be_nested():
    kind, score = chosen({"first": RNG.standard_normal((COUNT, 2, 2)), "logits": LOGITS}, LABELS)
    first = np.zeros((COUNT, 2, 2))
    for outputs in ((first, LOGITS), {"first": first, "logits": LOGITS}, [first, (LOGITS,)]):
        assert score_of(kind, [(outputs, {"labels": LABELS})]) == pytest.approx(score)
        assert score_of(kind, [(outputs, (LABELS,))]) == pytest.approx(score)


def test_agreement_on_one_class_everywhere_is_said_to_show_nothing():
    score, kind = agreement({"label": np.full(COUNT, 3)}, [np.full(COUNT, 3)])
    assert score == 1.0
    assert "'label' names the same class for every input, so agreement shows nothing" in kind.notes[0]


def test_class_numbers_that_were_cast_to_floats_are_compared_as_numbers_of_classes():
    labels = LABELS.astype(np.float32)
    score, kind = agreement({"label": labels}, [labels - (labels == 3)])
    assert score == pytest.approx(float((LABELS != 3).mean()))
    assert "every value of 'label' is a whole number: taken for class numbers" in kind.notes[0]


def test_a_picture_in_8_bits_is_compared_by_its_values():
    picture = RNG.integers(0, 255, (COUNT, 5, 5)).astype(np.uint8)
    score, kind = agreement({"picture": picture}, [picture + 1])
    assert 0.95 < score < 1.0
    assert kind.parts[0].layout == "values"


def test_the_intersection_over_union_of_one_output_says_whose_it_is():
    kind, _ = chosen({"logit": LOGITS[:, 0]}, LABELS == 0, score="miou")
    assert kind.text.startswith("intersection over union of the yes answers")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((COUNT, 4, 4), 255), "Every label is 255, which marks what does not count"),
        (np.where(RNG.random((COUNT, 4, 4)) < 0.5, -1, 255), "with --ignore-label N; if several do not, give them one"),
    ],
)
def test_labels_that_do_not_count_are_recognized(labels, message):
    with pytest.raises(DataError, match=message):
        chosen({"map": RNG.standard_normal((COUNT, 3, 4, 4))}, labels)
