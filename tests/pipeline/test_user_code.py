"""Errors of user code and of libraries are told apart, at each call of the user's."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import edgeopt
from edgeopt.errors import CrashError, DivergedError, StepError, TaskError
from edgeopt.pipeline.boundary import as_failed, run_step, tell_apart
from edgeopt.pipeline.user_code import GuardedTask, load_guarded_task

SOURCE = """
import sys
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Broken(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"x": torch.zeros(3)}["y"], 0


class Square(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x * x

    @staticmethod
    def backward(context, gradient):
        raise ArithmeticError("no derivative")


class Mine:
    name = "mine"
    students = {"none": lambda: 1 / 0}

    def build_model(self):
        return nn.Linear(3, 2)

    def example_inputs(self):
        return (torch.zeros(4, 3),)

    def train_batches(self, seed):
        yield torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)
        raise KeyError("second batch")

    def eval_batches(self):
        return DataLoader(Broken(), 4, num_workers=1)

    def calibration_batches(self):
        return 3

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)

    def score(self, pairs):
        if any(outputs.max() > 1e6 for outputs, _ in pairs):
            raise ValueError("such outputs cannot be")
        return sum(float(outputs.sum()) for outputs, _ in pairs)

    def distill_loss(self, outputs, teacher, targets):
        return FAULTS[self.fault](outputs)


FAULTS = {
    "type": lambda outputs: outputs + "one",
    "nothing": lambda outputs: None,
    "vector": lambda outputs: outputs,
    "detached": lambda outputs: outputs.detach().mean(),
    "exit": lambda outputs: sys.exit("no more"),
    "memory": lambda outputs: [][0] if False else (_ for _ in ()).throw(MemoryError("full")),
    "backward": lambda outputs: Square.apply(outputs).sum(),
}
task = Mine()
"""


@pytest.fixture
def task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_faults.py").write_text(SOURCE)
    return load_guarded_task(f"{tmp_path / 'my_faults.py'}:task")


def line_of(text):
    return next(number for number, line in enumerate(SOURCE.splitlines(), 1) if text in line)


def distill(task, fault):
    task.task._task.fault = fault
    return task.distill_loss(torch.zeros(4, 2, requires_grad=True), torch.zeros(4, 2), torch.zeros(4))


def test_an_exception_of_the_user_names_the_method_the_file_and_the_line(task):
    with pytest.raises(TaskError) as caught:
        distill(task, "type")
    message = str(caught.value)
    assert "my_faults.py:task': distill_loss() failed with TypeError: " in message
    line = line_of('outputs + "one"')
    assert f"(file my_faults.py, line {line}, in <lambda>)" in message
    assert message.endswith("Correct it, then run the same command again.")


def test_a_mistake_of_the_user_that_pytorch_finds_is_the_users(task):
    line = line_of("return nn.functional.cross_entropy")
    with pytest.raises(TaskError, match=rf"loss\(\) failed with .*\(file my_faults\.py, line {line}, in loss\)"):
        task.loss(torch.zeros(4, 2), torch.zeros(3, dtype=torch.long))


def test_an_exception_between_batches_or_in_a_worker_of_a_loader_is_one_sentence(task):
    line = line_of('raise KeyError("second batch")')
    with pytest.raises(TaskError, match=rf"train_batches\(\) failed with KeyError: 'second batch' \(.*line {line}, in"):
        list(task.train_epoch(0))
    line = line_of('["y"], 0')
    expected = rf"eval_batches\(\) failed with KeyError: 'y' \(file my_faults\.py, line {line}, in __getitem__\)"
    with pytest.raises(TaskError, match=expected) as caught:
        list(task.eval_batches())
    assert "\n" not in str(caught.value)
    with pytest.raises(TaskError, match=r"calibration_batches\(\) failed with TypeError: 'int' object is not iterable"):
        list(task.calibration_batches())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nothing", r"distill_loss\(\) has to return a tensor with one element, not NoneType"),
        ("vector", r"distill_loss\(\) has to return a tensor with one element, not a tensor of shape \(4, 2\)"),
        ("detached", r"distill_loss\(\) returned a tensor that does not depend on the outputs"),
        ("exit", r"distill_loss\(\) called sys\.exit\('no more'\)"),
    ],
)
def test_a_loss_that_cannot_be_trained_on_is_refused(task, fault, message):
    with pytest.raises(TaskError, match=message):
        distill(task, fault)


def test_memory_that_runs_out_in_user_code_is_no_mistake_of_the_user(task):
    with pytest.raises(CrashError, match="MemoryError: full") as caught:
        distill(task, "memory")
    assert as_failed(caught.value).kind == "crashed"
    assert tell_apart("mine", caught.value) is caught.value


def test_an_exception_in_a_backward_pass_of_the_users_is_the_users(task):
    loss = distill(task, "backward")
    with pytest.raises(CrashError) as caught:
        run_step("train", loss.backward)
    error = tell_apart("mine", caught.value)
    assert isinstance(error, TaskError)
    line = line_of("no derivative")
    assert f"ArithmeticError: no derivative (file my_faults.py, line {line}, in backward)" in str(error)


def test_a_library_that_fails_outside_of_user_code_is_no_mistake_of_the_user():
    with pytest.raises(CrashError) as caught:
        run_step("train", torch.zeros(2, 3).matmul, torch.zeros(2, 3))
    assert tell_apart("mine", caught.value) is caught.value


def test_a_model_that_cannot_be_traced_is_the_users():
    trace = 'Traceback:\n  File "/home/me/net.py", line 7, in forward\n    if x > 0:\nValueError: data-dependent'
    error = tell_apart("mine", StepError("trace", "torch.export cannot export Net: data-dependent", trace))
    assert isinstance(error, TaskError)
    assert "the model cannot be traced: torch.export" in str(error)
    assert "(file /home/me/net.py, line 7, in forward)" in str(error)


def test_workers_that_stay_do_not_change_the_order_of_shuffled_batches():
    def orders(**options):
        loader = DataLoader(TensorDataset(torch.arange(12)), 4, shuffle=True, **options)
        task = GuardedTask(SimpleNamespace(train_batches=lambda: loader), "mine")
        found = []
        for seed in (0, 1, 0):
            torch.manual_seed(seed)
            found.append([batch.tolist() for (batch,) in task.train_batches()])
        return found

    assert orders(num_workers=1, persistent_workers=True) == orders()


def collate_boxes(numbers):
    targets = [{"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([0])} for _ in numbers]
    return [torch.full((3, 8, 8), number[0]) for number in numbers], targets


def test_workers_that_stay_do_not_change_the_order_behind_a_task_that_wraps_its_loader():
    pytest.importorskip("faster_coco_eval")

    def orders(**options):
        loader = DataLoader(TensorDataset(torch.arange(12)), 4, shuffle=True, collate_fn=collate_boxes, **options)
        task = GuardedTask(edgeopt.detection(torch.nn.Identity(), loader, loader), "mine")
        found = []
        for seed in (0, 1, 0):
            torch.manual_seed(seed)
            found.append([images[:, 0, 0, 0].tolist() for images, _ in task.train_batches(seed)])
        return found

    assert orders(num_workers=1, persistent_workers=True) == orders()


def test_the_length_of_a_loader_can_be_asked_for(task):
    loader = DataLoader(TensorDataset(torch.arange(12)), 4)
    assert len(GuardedTask(SimpleNamespace(train_batches=lambda: loader), "mine").train_batches()) == 3
    without_length = task.task.train_batches(0)
    assert without_length
    with pytest.raises(TypeError):
        len(without_length)


def test_a_student_that_cannot_be_built_is_named(task):
    with pytest.raises(TaskError, match=r"students\['none'\]\(\) failed with ZeroDivisionError"):
        task.students["none"]()


def test_outputs_that_are_not_finite_are_to_blame_for_a_score_that_fails(task):
    assert task.score([(np.ones((2, 2)), None)]) == 4.0
    with pytest.raises(DivergedError, match=r"outputs are not finite .* score\(\) of them is not finite either"):
        task.score([(np.full((2, 2), np.nan), None)])
    with pytest.raises(DivergedError, match=r"outputs are not finite .* score\(\) cannot be computed for them"):
        task.score([(np.full((2, 2), np.inf), None)])
    with pytest.raises(TaskError, match=r"score\(\) failed with ValueError: such outputs cannot be"):
        task.score([(np.full((2, 2), 1e9), None)])


def test_the_users_object_stays_as_it_is(task):
    assert task.source_file.name == "my_faults.py"
    assert vars(pickle.loads(pickle.dumps(task.task._task))) == {}
    assert [len(inputs) for inputs in task.example_inputs] == [4]


def test_a_score_that_uses_pytorch_on_arrays_is_told_what_they_are():
    task = GuardedTask(SimpleNamespace(score=lambda pairs: pairs[0][0].argmax(dim=1)), "mine")
    with pytest.raises(TaskError, match=r"score\(\) failed with TypeError.*Outputs and targets are numpy arrays here"):
        task.score([(np.zeros((4, 2)), np.zeros(4))])


class TurnsGradientsOff:
    """Yields batches inside ``no_grad``, and leaves gradients off for good in its score."""

    def __init__(self):
        self.inside = []

    def train_batches(self, seed):
        with torch.no_grad():
            for _ in range(3):
                yield torch.zeros(4, 3), torch.zeros(4)
                self.inside.append(torch.is_grad_enabled())

    def score(self, pairs):
        torch.set_grad_enabled(False)
        return 0.5


def test_user_code_that_turns_gradients_off_does_not_turn_off_those_of_a_training():
    mine = TurnsGradientsOff()
    task = GuardedTask(mine, "mine")
    for _ in task.train_batches(0):
        assert torch.is_grad_enabled()
    assert mine.inside == [False] * 3
    task.score([])
    assert torch.is_grad_enabled()


def test_a_file_that_turns_gradients_off_when_it_is_imported_trains_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "inference.py").write_text(f"{SOURCE}\ntorch.set_grad_enabled(False)\n")
    monkeypatch.chdir(tmp_path)
    load_guarded_task("inference.py:Mine")
    assert torch.is_grad_enabled()
