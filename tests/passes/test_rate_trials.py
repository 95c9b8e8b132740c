"""A network that knows its task already is not trained at a rate that throws it back."""

import copy
import itertools
import math

import msgspec
import pytest
import tiny_task
import torch
from test_distill import STEP, a_training

from edgeopt.passes.distill.epoch_choice import evaluate
from edgeopt.passes.distill.rate_trials import RATE_DIVISORS, choose_rate
from edgeopt.passes.distill.train import AS_IT_BEGAN
from edgeopt.records.recipe import Distill
from edgeopt.task import CheckedTask

RATE = 1.0
"""Far too high for Adam."""


@pytest.fixture(scope="module")
def task():
    torch.set_num_threads(1)
    return CheckedTask(tiny_task.task(), "tests/tiny_task.py:task")


def nearly_the_teacher(task):
    """Return the teacher with weights off by 1 %, as a train and an eval module that share their tensors."""
    torch.manual_seed(0)
    training = copy.deepcopy(task.model)
    with torch.no_grad():
        for value in training.parameters():
            value.requires_grad_(True).add_(0.01 * value.std() * torch.randn_like(value) if value.numel() > 1 else 0)
    shared = {id(value): value for value in itertools.chain(training.parameters(), training.buffers())}
    return training.train(), copy.deepcopy(training, shared).eval()


def a_step(**changes) -> Distill:
    return msgspec.structs.replace(STEP, **({"optimizer": "adamw", "learning_rate": RATE, "find_rate": True} | changes))


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        ({}, 0.3),
        ({0.3: 1.05}, 0.3),
        ({0.3: 1.2}, 0.1),
        ({0.3: 9.0, 0.1: math.nan}, 0.03),
        ({0.3: math.inf, 0.1: 5.0, 0.03: 2.0}, 0.01),
    ],
)
def test_the_highest_rate_that_loses_nothing_is_chosen(losses, chosen):
    tried = []

    def loss_after(rate):
        tried.append(rate)
        return next((loss for known, loss in losses.items() if math.isclose(known, rate)), 0.5)

    assert choose_rate(0.3, 1.0, loss_after) == pytest.approx(chosen)
    assert tried == sorted(tried, reverse=True)
    assert len(tried) < len(RATE_DIVISORS)  # the lowest is not tried: there is no other left


def test_losses_below_zero_are_compared_alike():
    assert choose_rate(1.0, -10.0, lambda rate: -10.5) == 1.0
    assert choose_rate(1.0, -10.0, lambda rate: -8.0) == pytest.approx(1 / RATE_DIVISORS[-1])


def test_a_loss_that_does_not_fit_into_the_memory_is_computed_in_parts(task, tmp_path):
    training = a_training(task, tmp_path, modules=nearly_the_teacher(task))
    training.stream.prepare(0)
    batch = next(iter(training.stream.batches(0)))
    judge = training.gradient_step(training.eval_module)
    whole = judge.judge(batch)

    def refuse_large(module, inputs):
        if len(inputs[0]) > len(batch.inputs[0]) // 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with training.eval_module.register_forward_pre_hook(refuse_large):
        assert judge.judge(batch) == pytest.approx(whole, rel=1e-4)
    assert judge.parts == 4


def test_a_network_near_its_teacher_is_trained_at_a_rate_that_keeps_it_there(task, tmp_path):
    found = a_training(task, tmp_path, a_step(), modules=nearly_the_teacher(task))
    result = found.run()
    assert found.step.learning_rate < RATE
    assert any("trained at a learning rate of" in note for note in result.notes)
    (tmp_path / "fixed").mkdir()
    fixed = a_training(task, tmp_path / "fixed", a_step(find_rate=False), modules=nearly_the_teacher(task)).run()
    assert fixed.epochs[0].loss > 10 * result.epochs[0].loss
    assert fixed.epochs[0].score < result.epochs[0].score


def test_trials_leave_no_trace_in_a_training_at_the_rate_that_was_given(task, tmp_path):
    weights = []
    for find_rate in (False, True):
        folder = tmp_path / str(find_rate)
        folder.mkdir()
        training = a_training(task, folder, a_step(learning_rate=0.001, find_rate=find_rate))
        training.run()
        assert training.step.learning_rate == 0.001
        weights.append(torch.cat([value.flatten().float() for value in training.train_module.state_dict().values()]))
    assert torch.equal(*weights)


def test_an_interrupted_training_goes_on_at_the_rate_that_was_found(task, tmp_path):
    def interrupt(epoch, epochs, score):
        raise KeyboardInterrupt

    first = a_training(task, tmp_path, a_step(), progress=interrupt, modules=nearly_the_teacher(task))
    with pytest.raises(KeyboardInterrupt):
        first.run()
    again = a_training(task, tmp_path, a_step(), modules=nearly_the_teacher(task))
    again.find_rate = None  # it must not look again
    again.run()
    assert again.step.learning_rate == first.step.learning_rate < RATE


def test_a_rate_at_which_a_trial_is_not_finite_is_too_high(task, tmp_path):
    training = a_training(task, tmp_path, a_step(optimizer="sgd", learning_rate=1e30), modules=nearly_the_teacher(task))
    training.set_rate(3e30)
    training.find_rate()
    assert training.step.learning_rate == 3e30 / RATE_DIVISORS[-1]


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_network_that_every_epoch_makes_worse_is_kept_as_it_began(task, tmp_path, interrupted):
    def interrupt(epoch, epochs, score):
        raise KeyboardInterrupt

    options = {"modules": nearly_the_teacher(task), "may_keep_start": True}
    start = evaluate(options["modules"][1], task)
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            a_training(task, tmp_path, a_step(find_rate=False), progress=interrupt, **options).run()
        options["modules"] = nearly_the_teacher(task)
    training = a_training(task, tmp_path, a_step(find_rate=False), **options)
    result = training.run()
    assert max(epoch.score for epoch in result.epochs) < start
    assert (result.best_epoch, result.best_score) == (AS_IT_BEGAN, start)
    assert evaluate(training.eval_module, task) == start
    assert "kept as it began: every epoch of the training scored clearly lower" in result.notes


def test_a_network_that_training_improves_is_kept_as_trained(task, tmp_path):
    result = a_training(task, tmp_path, may_keep_start=True).run()
    assert result.best_epoch >= 0
    assert result.best_score == result.epochs[result.best_epoch].score
