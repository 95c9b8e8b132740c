"""Answers that change, and the class that loses most, next to counts by hand."""

import numpy as np
import pytest

from edgeopt.errors import TaskError
from edgeopt.records.scoring import OutputScore, ScoreKind
from edgeopt.scoring.answers import MIN_CLASS_SAMPLES, answer_parts, compare_answers, least_class_samples, unchanged

KIND = ScoreKind(
    parts=(OutputScore(output="y", index=0, metric="accuracy", layout="classes", labels="numbers"),), by_agreement=False
)


def logits(answers, classes=3):
    """Return outputs that give these answers."""
    return np.eye(classes, dtype=np.float32)[np.asarray(answers)]


def batches(answers, labels, size=50):
    """Return pairs of outputs and labels, in batches."""
    return [
        (logits(answers[start : start + size]), np.asarray(labels[start : start + size]))
        for start in range(0, len(answers), size)
    ]


def test_the_class_that_loses_most_is_named_with_its_drop():
    labels = np.repeat([0, 1, 2], 100)
    before, after = labels.copy(), labels.copy()
    after[:5] = 1  # 5 of class 0
    after[100:120] = 2  # 20 of class 1
    found = compare_answers(KIND, batches(before, labels), batches(after, labels))
    assert found.flip_ratio == pytest.approx(25 / 300)
    assert found.flip_ratio_ci95[0] < 25 / 300 < found.flip_ratio_ci95[1] < 0.13
    worst = found.worst_class
    assert (worst.number, worst.samples, worst.unjudged_classes) == (1, 100, 0)
    assert worst.drop == pytest.approx(0.2)
    assert 0.1 < worst.drop_ci95[0] < 0.2 < worst.drop_ci95[1] < 0.3


def test_a_mean_that_stays_hides_no_class_that_loses():
    labels = np.repeat([0, 1], 100)
    before, after = labels.copy(), labels.copy()
    before[:30] = 1  # the baseline misses 30 of class 0, the file 30 of class 1
    after[100:130] = 0
    found = compare_answers(KIND, batches(before, labels), batches(after, labels))
    assert np.mean(before == labels) == np.mean(after == labels)
    assert (found.worst_class.number, found.worst_class.drop) == (1, pytest.approx(0.3))
    assert found.flip_ratio == pytest.approx(0.3)


def test_equal_files_have_no_drop_but_few_samples_do_not_prove_that_no_answer_changes():
    labels = np.repeat([0, 1], 50)
    found = compare_answers(KIND, batches(labels, labels), batches(labels, labels))
    assert (found.flip_ratio, found.worst_class.drop) == (0.0, 0.0)
    assert found.flip_ratio_ci95[0] == 0
    assert found.flip_ratio_ci95[1] == pytest.approx(3.62 / 100, rel=0.01)  # Clopper and Pearson, 0 of 100


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.1])
def test_a_class_is_judged_only_if_its_samples_could_show_that_it_keeps_the_limit(limit):
    enough = least_class_samples(limit)
    labels = np.repeat([0, 1], [enough, enough - 1])
    pairs = batches(labels, labels)
    found = compare_answers(KIND, pairs, pairs, limit)
    assert (found.worst_class.number, found.worst_class.samples, found.worst_class.unjudged_classes) == (0, enough, 1)
    assert 0.9 * limit < found.worst_class.drop_ci95[1] <= limit
    assert unchanged(found).worst_class.drop_ci95 == (0, 0)
    after = labels.copy()
    after[0] = 1
    assert compare_answers(KIND, pairs, batches(after, labels), limit).worst_class.drop_ci95[1] > limit


def test_few_samples_that_surely_break_the_limit_are_not_passed_over():
    labels = np.repeat([0, 1], [500, 60])
    after = labels.copy()
    after[-30:] = 0
    found = compare_answers(KIND, batches(labels, labels), batches(after, labels), 0.05)
    assert (found.worst_class.number, found.worst_class.samples, found.worst_class.unjudged_classes) == (1, 60, 0)
    assert found.worst_class.drop_ci95[0] > 0.3


def test_a_class_in_few_samples_is_counted_but_not_judged():
    labels = np.concatenate([np.zeros(100, int), np.full(MIN_CLASS_SAMPLES - 1, 1)])
    after = labels.copy()
    after[labels == 1] = 0
    found = compare_answers(KIND, batches(labels, labels), batches(after, labels))
    assert (found.worst_class.number, found.worst_class.unjudged_classes) == (0, 1)
    alone = labels[labels == 1]
    assert compare_answers(KIND, batches(alone, alone), batches(alone, alone)).worst_class is None


def test_what_does_not_count_is_no_answer():
    part = OutputScore(output="y", index=0, metric="miou", layout="classes", labels="numbers", classes=3, ignored=2)
    kind = ScoreKind(parts=(part,), by_agreement=False)
    labels = np.tile([0, 0, 0, 1, 2, 2, 2, 2], (40, 1))
    before, after = np.where(labels == 2, 0, labels), np.where(labels == 2, 1, labels)  # they differ on void alone
    after[:20, 0] = 1
    outputs = [np.moveaxis(logits(one, 2), -1, 1) for one in (before, after)]
    found = compare_answers(kind, [(outputs[0], labels)], [(outputs[1], labels)])
    assert found.flip_ratio == pytest.approx(20 / 160)
    assert (found.worst_class.number, found.worst_class.drop) == (0, pytest.approx(20 / 120))


def test_each_of_several_labels_has_classes_of_its_own():
    part = OutputScore(output="y", index=0, metric="accuracy", layout="yes or no", labels="numbers", threshold=0.5)
    labels = np.zeros((200, 20), int)
    labels[:100, 7] = labels[50:150, 3] = 1
    after = labels.astype(np.float32)
    after[:, 7] = 0  # label 7 is never answered yes again
    kind = ScoreKind(parts=(part,), by_agreement=False)
    found = compare_answers(kind, [(labels.astype(np.float32), labels)], [(after, labels)])
    worst = found.worst_class
    assert (worst.label, worst.number, worst.drop) == (7, 1, pytest.approx(1))


def test_of_several_outputs_the_one_that_changes_most_counts():
    parts = tuple(
        OutputScore(output=name, index=index, metric="accuracy", layout="classes", labels="outputs")
        for index, name in enumerate(("age", "gender"))
    )
    own = (logits(np.repeat([0, 1], 50)), logits(np.repeat([1, 0], 50)))
    changed = np.repeat([1, 0], 50)
    changed[:10] = 2
    found = compare_answers(ScoreKind(parts=parts, by_agreement=True), [(own, own)], [((own[0], logits(changed)), own)])
    assert found.flip_ratio == pytest.approx(0.1)
    assert (found.worst_class.output, found.worst_class.number) == ("gender", 1)


def test_agreement_takes_the_baselines_own_answers_for_classes():
    part = OutputScore(output="y", index=0, metric="probability", layout="classes", labels="outputs")
    kind = ScoreKind(parts=(part,), by_agreement=True)
    before = np.repeat([0, 1], 50)
    after = before.copy()
    after[:10] = 2
    truth = [(logits(before),)]
    found = compare_answers(kind, [((logits(before),), truth[0])], [((logits(after),), truth[0])])
    assert (found.worst_class.number, found.worst_class.drop) == (0, pytest.approx(0.2))


def test_a_score_without_answers_is_refused_with_what_to_do():
    values = OutputScore(output="y", index=0, metric="mae", layout="values", labels="values")
    for kind, words in ((None, "scores itself"), (ScoreKind(parts=(values,), by_agreement=False), "mean absolute")):
        with pytest.raises(TaskError, match=words) as caught:
            answer_parts(kind)
        assert "--max-class-drop none" in str(caught.value)
