"""A training ends early if it cannot reach its floor, and at once if the time of the build is over."""

import itertools

import msgspec
import pytest
import tiny_task
import torch
from test_distill import STEP, student

from edgeopt.errors import OutOfTimeError
from edgeopt.passes.distill.outlook import LEAST_EPOCHS
from edgeopt.passes.distill.teacher import TeacherOutputs
from edgeopt.passes.distill.train import Distillation
from edgeopt.records.scoring import ScoreFloor
from edgeopt.task import CheckedTask

OUT_OF_REACH = ScoreFloor(value=2.0, max_drop=0.01, direction="higher")


@pytest.fixture(scope="module")
def task():
    torch.set_num_threads(1)
    return CheckedTask(tiny_task.task(), "tests/tiny_task.py:task")


def a_training(task, folder, step, **options):
    stream = TeacherOutputs(folder / "teacher", task, task.model, epochs=step.epochs, seed=0)
    return Distillation(
        *student(), task, step, stream, sparsity=None, checkpoint=folder / "checkpoint.safetensors",
        progress=lambda *_: None, **options,
    )  # fmt: skip


def weights(training):
    return torch.cat([value.detach().flatten() for value in training.train_module.state_dict().values()])


@pytest.mark.parametrize(("may_stop", "epochs"), [(True, LEAST_EPOCHS), (False, 10)])
def test_a_floor_out_of_reach_ends_a_training_unless_it_must_not(task, tmp_path, may_stop, epochs):
    step = msgspec.structs.replace(STEP, epochs=10, may_stop=may_stop)
    result = a_training(task, tmp_path, step, floor=OUT_OF_REACH).run()
    assert (len(result.epochs), result.stopped) == (epochs, may_stop)
    assert result.best_score == result.epochs[result.best_epoch].score


def test_a_training_that_is_not_finished_in_time_goes_on_as_if_nothing_had_happened(task, tmp_path):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = a_training(task, tmp_path / "whole", STEP)
    expected = whole.run()
    steps = itertools.count()
    with pytest.raises(OutOfTimeError, match=rf"the time was over in epoch 2 of {STEP.epochs}; with more time"):
        a_training(task, tmp_path / "parts", STEP, is_over=lambda: next(steps) > steps_of_an_epoch(task) + 2).run()
    parts = a_training(task, tmp_path / "parts", STEP)
    assert parts.run() == expected
    assert torch.equal(weights(parts), weights(whole))


WITHIN_REACH = ScoreFloor(value=0.1, max_drop=0.01, direction="higher")


def ends_in_epoch(task, number):
    """Tell, once for each step, whether the time is over: it is in the middle of that epoch (from 0)."""
    steps, last = itertools.count(), number * (steps_of_an_epoch(task) + 1) + 2
    return lambda: next(steps) > last


@pytest.mark.parametrize("floor", [WITHIN_REACH, None])
def test_a_network_that_keeps_its_floor_when_the_time_is_over_is_used_as_it_is(task, tmp_path, floor):
    for name in ("whole", "parts", "again"):
        (tmp_path / name).mkdir()
    step = msgspec.structs.replace(STEP, epochs=4)
    whole = a_training(task, tmp_path / "whole", step)
    expected = whole.run()

    early = a_training(task, tmp_path / "parts", step, floor=floor, is_over=ends_in_epoch(task, 2), may_be_cut_off=True)
    found = early.run()
    assert (found.ended_after, found.stopped, len(found.epochs)) == (2, False, 2)
    assert found.epochs == expected.epochs[:2]
    assert found.best_score == found.epochs[found.best_epoch].score

    as_recipe = a_training(task, tmp_path / "again", msgspec.structs.replace(step, ended_after=2))
    assert as_recipe.run() == found
    assert torch.equal(weights(as_recipe), weights(early))

    rest = a_training(task, tmp_path / "parts", step)
    assert rest.run() == expected
    assert torch.equal(weights(rest), weights(whole))


@pytest.mark.parametrize(
    ("epochs", "options"),
    [
        (4, {"floor": OUT_OF_REACH, "may_be_cut_off": True}),
        (9, {"floor": None, "may_be_cut_off": True}),  # 2 of 9 epochs say too little
        (4, {"floor": WITHIN_REACH, "may_be_cut_off": False}),  # a cut comes after it
    ],
)
def test_a_network_that_is_of_no_use_when_the_time_is_over_is_not_used(task, tmp_path, epochs, options):
    step = msgspec.structs.replace(STEP, epochs=epochs)
    with pytest.raises(OutOfTimeError, match=rf"the time was over in epoch 3 of {epochs}"):
        a_training(task, tmp_path, step, is_over=ends_in_epoch(task, 2), **options).run()


def steps_of_an_epoch(task):
    return sum(1 for _ in task.train_epoch(0))
