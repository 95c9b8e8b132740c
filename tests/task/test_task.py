import random
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_task
import torch
from torch import nn

import edgeopt
from edgeopt.errors import TaskError
from edgeopt.task import CheckedTask, load_task


class PlainTask:
    """A complete task; each test replaces one of its parts."""

    name = "plain"

    def build_model(self):
        return nn.Linear(4, 2)

    def example_inputs(self):
        return (torch.zeros(2, 4),)

    def train_batches(self, seed):
        return [(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))]

    eval_batches = test_batches = lambda self: self.train_batches(0)

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)

    def score(self, pairs):
        return 0.5


def checked(**parts):
    return CheckedTask(type("Task", (PlainTask,), parts)(), "tests")


def test_a_complete_task_returns_its_parts():
    task = checked()
    assert task.model.training is False
    assert task.input_names == ("input",)
    assert task.output_names == ("output",)
    assert len(list(task.eval_batches())) == 1
    assert task.score([]) == 0.5


OF_READY_TASKS = {"reads_maps", "settle_score", "source_module"}  # a user's own class has no use for them


def test_the_help_of_a_task_lists_every_member_that_is_read():
    package = Path(edgeopt.__file__).parent
    code = "".join(path.read_text() for path in sorted(package.rglob("*.py")))
    read = set(re.findall(r'getattr\((?:self\.)?_?task, "(\w+)"', code)) - OF_READY_TASKS
    assert len(read) > 20
    assert {name for name in read if not re.search(rf"\b{name}\b", edgeopt.Task.__doc__)} == set()


def test_a_missing_method_is_named_with_the_nearest_one():
    class Task(PlainTask):
        train_batches = None

        def training_batches(self, seed):
            return []

    with pytest.raises(TaskError, match=r"no method train_batches\(\) \(did you mean 'training_batches'\?\)"):
        CheckedTask(Task(), "tests")


def test_a_model_that_does_not_run_on_the_example_inputs_is_refused():
    with pytest.raises(TaskError, match=r"does not run on example_inputs\(\) of shape \(2, 5\)"):
        _ = checked(example_inputs=lambda self: (torch.zeros(2, 5),)).model


def test_a_model_that_returns_nan_is_refused():
    def nan_model(self):
        model = nn.Linear(4, 2)
        nn.init.constant_(model.weight, float("nan"))
        return model

    with pytest.raises(TaskError, match="output 0 of the model is not finite"):
        _ = checked(build_model=nan_model).model


def test_a_score_of_nan_is_refused():
    with pytest.raises(TaskError, match=r"score\(\) returned nan"):
        checked(score=lambda self, pairs: float("nan")).score([])


def test_batches_of_another_shape_are_refused():
    wrong = [(torch.zeros(2, 3), torch.zeros(2))]
    with pytest.raises(TaskError, match=r"eval_batches\(\) yields 'input' of shape \(2, 3\), but example_inputs"):
        list(checked(eval_batches=lambda self: wrong).eval_batches())


def test_no_batches_at_all_are_refused():
    with pytest.raises(TaskError, match=r"eval_batches\(\) yields no batches"):
        list(checked(eval_batches=lambda self: []).eval_batches())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fashon", "no ready task 'fashon' .did you mean 'fashion'"),
        ("no_such_module:task", "no module 'no_such_module'"),
        ("tiny_task:tusk", "has no 'tusk' .did you mean 'task'"),
        ("missing.py:task", "missing.py does not exist"),
    ],
)
def test_a_wrong_spec_suggests_the_nearest_name(spec, message):
    with pytest.raises(TaskError, match=message):
        load_task(spec)


def test_a_file_is_loaded_by_its_path(tmp_path):
    (tmp_path / "mine.py").write_text("import tiny_task\n\ndef make():\n    return tiny_task.task()\n")
    assert load_task(f"{tmp_path}/mine.py:make").name == "tiny"


def test_an_epoch_is_repeatable_whatever_is_drawn_between_its_batches():
    def train_batches(self, seed):
        for _ in range(3):
            yield torch.randn(2, 4) + np.random.rand() + random.random(), torch.zeros(2, dtype=torch.int64)

    task = checked(train_batches=train_batches)
    quiet = [inputs[0] for inputs, _ in task.train_epoch(7)]
    disturbed = []
    for inputs, _ in task.train_epoch(7):
        disturbed.append(inputs[0])
        torch.randn(5)
        np.random.rand()
    assert all(torch.equal(a, b) for a, b in zip(quiet, disturbed, strict=True))
    assert not torch.equal(quiet[0], next(iter(task.train_epoch(8)))[0][0])


def test_classification_needs_a_model_and_two_loaders():
    train, held_back = tiny_task.batches(64, 0), tiny_task.batches(64, 1)
    task = CheckedTask(edgeopt.classification(tiny_task.trained(), train, held_back), "tests")
    outputs = [(task.model(inputs[0]).detach().numpy(), targets.numpy()) for inputs, targets in task.eval_batches()]
    assert 0.5 < task.score(outputs) <= 1.0
    assert task.sample_scores(outputs).shape == (64,)
    assert task.source_file.name == "test_task.py"
