"""States that a loader leaves out: filled in for training, fed back in scores, wrong ones refused."""

import copy

import pytest
import tiny_stream
import torch
from torch import nn

import edgeopt
from edgeopt.errors import TaskError
from edgeopt.passes.distill.epoch_choice import evaluate
from edgeopt.passes.distill.losses import distill_loss
from edgeopt.passes.distill.teacher import TeacherOutputs
from edgeopt.passes.distill.train import Distillation
from edgeopt.records.recipe import Distill
from edgeopt.task import CheckedTask


@pytest.fixture(scope="module")
def network():
    return tiny_stream.trained()


@pytest.fixture
def task(network):
    return CheckedTask(tiny_stream.task(model=network), "tiny")


def test_later_chunks_get_the_state_that_the_trained_network_has_then(task, network):
    values, _ = tiny_stream.recordings(512, 1000)
    steps = list(task.eval_steps())
    assert [continues for _, continues in steps[:6]] == [False, True, True] * 2
    state = tiny_stream.zeros(64)
    for number, ((inputs, _), _) in enumerate(steps[:3]):
        assert torch.equal(inputs[0], values[:64, number])
        assert torch.equal(inputs[1], state)
        with torch.no_grad():
            _, state = network(values[:64, number], state)


def test_a_score_feeds_a_network_with_its_own_states(task, network):
    assert evaluate(network, task) > 0.95

    def forgetful(chunk, state):
        logits, next_state = network(chunk, state)
        return logits, torch.zeros_like(next_state)

    assert evaluate(forgetful, task) < 0.5  # although every batch of the loader has a good state


def test_states_are_distilled_by_their_error_even_if_they_look_like_scores_of_classes(task):
    step = Distill(
        epochs=1, optimizer="sgd", learning_rate=0.1, weight_decay=0, warmup_ratio=0, temperature=4,
        kl_weight=1, mse_weight=0, hard_weight=0,
    )  # fmt: skip
    (inputs, targets), _ = next(iter(task.eval_steps()))
    teacher = task.interface.run(inputs)
    shifted = (teacher[0], teacher[1] + 1)  # a softmax would not see it
    assert distill_loss(task, step, teacher, teacher, targets) == 0
    assert distill_loss(task, step, shifted, teacher, targets) > 0.5


def test_a_damaged_network_learns_to_listen_again(task, network, tmp_path):
    damaged = copy.deepcopy(network)
    with torch.no_grad():
        damaged.before.weight[24:] = 0
        damaged.head.weight += 2 * torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    assert evaluate(damaged, task) < 0.9
    step = Distill(
        epochs=4, optimizer="adamw", learning_rate=5e-3, weight_decay=0, warmup_ratio=0.1, temperature=4,
        kl_weight=0.9, mse_weight=0, hard_weight=0.1,
    )  # fmt: skip
    stream = TeacherOutputs(tmp_path / "teacher", task, network, epochs=4, seed=0)
    result = Distillation(
        damaged.train(), damaged, task, step, stream,
        sparsity=None, checkpoint=tmp_path / "checkpoint", progress=lambda *_: None,
    ).run()  # fmt: skip
    assert result.best_score > 0.95


class Memory(nn.Module):
    """An LSTM of one step, whose state is a tuple."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(6, 8), nn.Linear(8, 2)

    def forward(self, chunk, state):
        values, state = self.cell(chunk[None], state)
        return self.head(values[0]), state


def memory_task(**members):
    def chunks(later):
        zeros = (torch.zeros(1, 4, 8), torch.zeros(1, 4, 8))
        first = {"chunk": torch.ones(4, 6), "state": zeros}
        return [(first, torch.zeros(4, dtype=torch.int64)), (later, torch.ones(4, dtype=torch.int64))]

    torch.manual_seed(0)
    later = members.pop("later", {"chunk": torch.ones(4, 6)})
    options = {
        "output_names": ("logits", "h", "c"), "states": {"state_0": "h", "state_1": "c"}, "score_output": "logits",
    }  # fmt: skip
    return CheckedTask(edgeopt.classification(Memory(), chunks(later), chunks(later), **options | members), "memory")


def test_a_state_may_be_a_tuple():
    task = memory_task()
    (first, _), (second, continues) = task.eval_steps()
    assert continues
    _, hidden, cell = task.interface.run(first[0])
    assert torch.equal(second[0][1], hidden)
    assert torch.equal(second[0][2], cell)
    with pytest.raises(TaskError, match="only some of the tensors of 'state'; name state_1 too"):
        list(memory_task(states={"state_0": "h"}).eval_steps())


class StateFirst(Memory):
    """The same with its parameters in another order."""

    def forward(self, state, chunk):
        return super().forward(chunk, state)


def test_the_state_may_come_first():
    torch.manual_seed(0)
    zeros = (torch.zeros(1, 4, 8), torch.zeros(1, 4, 8))
    batches = [({"chunk": torch.ones(4, 6), "state": zeros}, torch.zeros(4, dtype=torch.int64))]
    task = CheckedTask(edgeopt.classification(StateFirst(), batches, batches), "first")
    assert task.axes.inputs == (1, 1, 0)
    assert task.axes.outputs == (0, 1, 1)


def test_samples_in_any_order_have_no_states(network):
    with pytest.raises(TaskError, match=r"unlabelled takes samples in any order, and so no states"):
        edgeopt.unlabelled(network, [torch.ones(4, 12)], states={"state": "next_state"})


def test_a_chunk_of_another_form_is_refused_as_before():
    with pytest.raises(TaskError, match=r"yields 'chunk' of shape \(\), but example_inputs\(\) has"):
        list(memory_task(later={"chunk": torch.tensor(1.0)}).eval_steps())


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ({"stat": "next_state"}, r"states names 'stat', but the model has no such input \(did you mean 'state'"),
        ({"state": "next"}, r"no such output.*its outputs are logits, next_state"),
        ({"state": "logits"}, r"the state 'state' is torch.float32 \(1, 8, 24\), but the output 'logits'"),
        ({"state": "next_state", "chunk": "logits"}, r"'chunk' is torch.float32 \(8, 12\), but the output 'logits'"),
        (["state"], "states has to be a dict"),
    ],
)
def test_wrong_states_are_refused(network, states, message):
    with pytest.raises(TaskError, match=message):
        _ = CheckedTask(tiny_stream.task(model=network, states=states), "tiny").states


def test_a_recording_begins_with_its_states_and_goes_on_with_its_samples(network):
    def steps(batches):
        return list(CheckedTask(tiny_stream.task(model=network, eval=batches), "tiny").eval_steps())

    batches = tiny_stream.chunks(96, 0)
    wrong = [batches[0], *batches[1:2], batches[5]]  # the last has 32 samples
    with pytest.raises(TaskError, match=r"eval_batches\(\) goes on with another number of samples.*32 and 64"):
        steps(wrong)
    task = tiny_stream.task(model=network)
    task.eval_batches = lambda: batches[1:]
    with pytest.raises(TaskError, match=r"eval_batches\(\) begins without the state 'state'"):
        list(CheckedTask(task, "tiny").eval_steps())
