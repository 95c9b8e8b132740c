"""Scores of a given file, with real runs: refusals and notes before anything is measured, and paired intervals."""

from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import pytest
from builders import a_budget
from onnx import TensorProto, helper
from stub_builds import a_stub_build
from tiny_models import a_run_target

from edgeopt.bench.outputs import run_model, write_batches
from edgeopt.errors import DataError, TaskError
from edgeopt.pipeline.artifacts.evaluator import Evaluator, FileScore
from edgeopt.pipeline.evaluation import EvaluationSet
from edgeopt.pipeline.score_checks import _small_set_note, check_score
from edgeopt.records.scoring import ScoreWish
from edgeopt.store.ledger import Ledger
from edgeopt.store.workspace import Workspace
from edgeopt.tasks.given.onnx_file import OnnxTask

RNG = np.random.default_rng(0)
COUNT = 240
X = RNG.standard_normal((COUNT, 4)).astype(np.float32)


class LocalEvaluator(Evaluator):
    """Runs files of a folder on this machine; a file's name is its SHA-256."""

    ran = 0

    def outputs(self, sha256, inputs):
        self.ran += 1
        target = inputs.with_name(f"outputs-{sha256}.npz")
        run_model(inputs.with_name(f"{sha256}.onnx"), inputs, target, a_run_target())
        return target


@pytest.fixture
def opened(tmp_path):
    """Return a function from labels to an evaluator: files give their inputs, ``worse`` with a part set to zero."""
    ledgers = []

    def value(name):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4])

    for name, floor in (("given", -100.0), ("worse", 0.4)):
        bound = helper.make_tensor("low", TensorProto.FLOAT, [], [floor])
        node = helper.make_node("Max", ["x", "low"], ["y"])
        graph = helper.make_graph([node], name, [value("x")], [value("y")], [bound])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.save(model, tmp_path / f"{name}.onnx")

    def opened(labels, *, wish=None, inputs=X, **limits):
        arrays = {"x": inputs} if labels is None else {"x": inputs, "labels": labels}
        np.savez(tmp_path / "in.npz", **arrays)
        data = EvaluationSet(OnnxTask(tmp_path / "given.onnx", tmp_path / "in.npz", wish))
        data.eval_file = tmp_path / "eval.npz"
        write_batches(data.eval_file, data.inputs)
        workspace = Workspace(tmp_path / str(len(ledgers)))
        workspace.folder("arrays").mkdir(parents=True)
        ledgers.append(Ledger(workspace.root / "ledger.sqlite"))
        shown = []
        build = a_stub_build(
            data=data, ledger=ledgers[-1], workspace=workspace, task="given.onnx",
            budget=a_budget(**{"max_score_drop": 0.2} | limits), progress=lambda *line: shown.append(line),
        )  # fmt: skip
        evaluator = LocalEvaluator(build, "given")
        evaluator.shown = shown
        return evaluator

    yield opened
    for ledger in ledgers:
        ledger.close()


def check(evaluator, *, go_on=False):
    return check_score(evaluator.build, evaluator, go_on=go_on)


def test_right_labels_pass_and_the_score_is_settled_once(opened):
    evaluator = opened(X.argmax(1)[:, None])
    remarks = check(evaluator)
    assert remarks.warnings == remarks.notes == ()
    assert remarks.kind.text == "accuracy (the largest value of 'y')"
    ran = evaluator.ran
    check(evaluator)
    assert evaluator.ran == ran
    score = evaluator.score("worse")
    assert 0 < score.drop_ci95[0] <= score.drop <= score.drop_ci95[1]


def test_labels_that_the_network_does_not_know_stop_the_build_unless_the_user_goes_on(opened):
    evaluator = opened(np.roll(X.argmax(1), 1))
    with pytest.raises(
        TaskError, match=r"^given\.onnx: The trained network scores 0\.2.* like a constant answer .* --yes"
    ):
        check(evaluator)
    [warning] = check(evaluator, go_on=True).warnings
    assert "were probably misread. The score is the accuracy (the largest value of 'y')" in warning
    assert ("warning", warning) in evaluator.shown


def test_labels_that_are_all_the_same_are_a_warning(opened):
    one_class = X.copy()
    one_class[:, 2] += 100
    [warning] = check(opened(np.full(COUNT, 2), inputs=one_class)).warnings
    assert "but every label is the same" in warning


def test_a_constant_answer_that_would_keep_the_limit_is_noted(opened):
    evaluator = opened(X.argmax(1), max_score_drop=0.9)
    [note] = check(evaluator).notes
    assert "a drop of 0.9 is allowed: a file that has learned nothing could win" in note
    assert evaluator.shown[0][0] == "score"
    assert evaluator.shown[0][1].startswith("the accuracy (the largest value of 'y'); the trained network's is 1.0000")


def test_labels_that_fit_nothing_are_refused_by_name(opened):
    with pytest.raises(DataError, match=r"in\.npz: 'labels': .*'y' has 4 classes, so its labels go from 0 to 3"):
        check(opened(X.argmax(1) + 1))


@pytest.mark.parametrize("labels", [np.float32(3), np.array(["a", "b"] * (COUNT // 2))])
def test_labels_that_are_no_array_of_numbers_are_refused_when_the_file_is_read(opened, labels):
    with pytest.raises(DataError, match=r"in\.npz: 'labels' is (a single number|<U1; labels are numbers)"):
        opened(labels)


def test_a_set_that_is_too_small_for_the_allowed_drop_is_noted_with_the_number_that_is_enough(opened):
    evaluator = opened(X.argmax(1), max_score_drop=0.01)
    [note] = check(evaluator).notes
    assert note.startswith("192 samples cannot show a score drop of 0.01 at 95 %; about 390 can.")
    assert ("note", note) in evaluator.shown


def test_a_handful_of_samples_says_nothing_of_others(opened):
    labels = X.argmax(1)
    notes = check(opened(labels[:12], inputs=X[:12])).notes
    assert any(note.startswith("12 samples cannot tell what a file loses on others") for note in notes)


def test_scores_of_a_task_that_are_not_right_or_wrong_vary_without_saying_how_files_differ():
    data = SimpleNamespace(counts=[500], eval_file=None, targets=[])
    build = a_stub_build(budget=a_budget(max_score_drop=0.01), data=data)
    decibels, answers = RNG.normal(25, 3, 500), (RNG.random(500) < 0.9).astype(float)
    notes = []
    for scores in (decibels, answers):
        found = FileScore(value=float(scores.mean()), total=500, samples=scores)
        evaluator = SimpleNamespace(baseline="base", evaluate=lambda *_, found=found: found)
        notes.append(_small_set_note(build, evaluator, SimpleNamespace(kind=None)))
    assert notes[0] == []
    assert notes[1][0].startswith("500 samples cannot show a score drop of 0.01")


def test_a_regression_says_what_the_allowed_drop_means_and_a_larger_error_is_a_drop(opened):
    evaluator = opened(X + 0.1, max_score_drop=0.5)
    notes = check(evaluator).notes
    assert "Lower is better: the trained network's error is 0.1, and it may become 0.5 larger" in notes[1]
    score = evaluator.score("worse")
    assert (score.direction, score.drop) == ("lower", pytest.approx(score.value - 0.1, rel=1e-4))
    assert score.drop_ci95[0] > 0


@pytest.mark.parametrize("metric", ["f1", "miou", "rmse"])
def test_the_interval_of_a_score_that_is_a_function_of_sums_is_its_own(opened, metric):
    evaluator = opened(X.argmax(1) if metric != "rmse" else X + 0.1, wish=ScoreWish(score=metric))
    check(evaluator)
    score = evaluator.score("worse")
    assert score.drop_ci95[0] < score.drop < score.drop_ci95[1]
    assert evaluator.score("given").drop_ci95 == (0.0, 0.0)


def test_without_labels_the_score_is_the_agreement_as_asked(opened):
    evaluator = opened(None)
    assert "ask for accuracy with --score" in check(evaluator).notes[0]
    assert evaluator.score("worse").value < 0.8
    evaluator = opened(None, wish=ScoreWish(score="accuracy"))
    assert check(evaluator).notes == ()
    assert evaluator.score("worse").value > 0.8


class OwnScore(EvaluationSet):
    """A task with a score of its own, without scores of single samples."""

    def settle_score(self, baseline):
        return None

    def score(self, pairs):
        return float(np.median([np.median(outputs.argmax(1) == labels) + 0.5 * self.luck for outputs, labels in pairs]))

    def sample_scores(self, pairs):
        return None

    sample_statistics = sample_scores
    luck = 0.0


def test_a_score_that_sees_no_answers_is_a_warning_and_does_not_stop(opened):
    evaluator = opened(X.argmax(1))
    evaluator.build.data.__class__ = OwnScore
    assert check(evaluator).warnings == ()
    evaluator = opened(np.zeros(COUNT, np.int64))
    evaluator.build.data.__class__ = OwnScore
    [warning] = check(evaluator).warnings
    assert "score() may not see what the network answers" in warning


def test_scores_of_single_samples_that_are_another_number_do_not_make_the_interval(opened):
    class Rounded(OwnScore):
        def score(self, pairs):
            return float(np.mean(np.concatenate([outputs.argmax(1) == labels for outputs, labels in pairs])) ** 2)

        def sample_scores(self, pairs):
            return np.concatenate([(outputs.argmax(1) == labels).astype(float) for outputs, labels in pairs])

    evaluator = opened(X.argmax(1))
    evaluator.build.data.__class__ = Rounded
    score = evaluator.score("worse")
    right = (np.maximum(X, 0.4).argmax(1) == X.argmax(1)).mean()
    width = score.drop_ci95[1] - score.drop_ci95[0]
    assert width == pytest.approx(2 * 1.96 * 2 * right * np.sqrt(right * (1 - right) / 192), rel=0.4)
    assert score.drop_ci95[0] < score.drop < score.drop_ci95[1]
    assert msgspec.structs.asdict(score)["direction"] == "higher"
