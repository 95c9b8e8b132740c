"""Group lasso: whole channels shrink, the score holds, an interrupted training ends like an uninterrupted one."""

import msgspec
import pytest
import tiny_task
import torch
from test_distill import STEP

from edgeopt.passes.distill.epoch_choice import evaluate
from edgeopt.passes.distill.teacher import TeacherOutputs
from edgeopt.passes.distill.train import Distillation
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.lasso import GroupLasso
from edgeopt.task import CheckedTask

STRENGTH = 0.1


@pytest.fixture(scope="module")
def task():
    torch.set_num_threads(1)
    return CheckedTask(tiny_task.task(), "tests/tiny_task.py:task")


@pytest.fixture
def network(task):
    return Network.trace(task.model, task.example_inputs)


def a_training(task, network, folder, strength, progress=lambda *_: None):
    folder.mkdir(exist_ok=True)
    step = msgspec.structs.replace(STEP, group_lasso=strength)
    stream = TeacherOutputs(folder / "teacher", task, task.model, epochs=step.epochs, seed=0)
    return Distillation(
        network.train_module, network.eval_module, task, step, stream, sparsity=None,
        lasso=GroupLasso(network, strength) if strength else None, checkpoint=folder / "checkpoint.safetensors",
        progress=progress,
    )  # fmt: skip


def norms(network):
    with torch.no_grad():
        return torch.cat(GroupLasso(network, 0.0).norms(network.eval_module))


def test_a_channels_norm_covers_everything_that_goes_with_it(network):
    groups = analyse(network).free
    (channel_norms, *_), (name, group) = GroupLasso(network, 0.0).norms(network.eval_module), next(iter(groups.items()))
    squares = torch.zeros(group.channels)
    for (tensor, dim), indices in group.slots.items():
        if tensor in network.parameters():
            rows = network.parameters()[tensor].detach().movedim(dim, 0)
            squares += torch.stack([rows[torch.from_numpy(index)].square().sum() for index in indices])
    torch.testing.assert_close(channel_norms, squares.sqrt(), msg=name)


def test_the_penalty_grows_and_its_gradient_pulls_weak_channels_hardest(network):
    lasso = GroupLasso(network, 1.0)
    lasso.begin_epoch(network.train_module)
    start, middle, end = (lasso.penalty(network.train_module, progress).item() for progress in (0.0, 0.5, 1.0))
    assert start == 0.0
    assert middle == pytest.approx(end / 2)
    for weight, norm in zip(lasso.weights, lasso.norms(network.train_module), strict=True):
        assert weight[norm.argmin()].item() == pytest.approx(16.0)
        assert weight[norm.argmax()].item() == pytest.approx(1.0)


def test_penalized_channels_shrink_and_the_score_holds(task, network, tmp_path):
    plain = network.copy()
    a_training(task, plain, tmp_path / "plain", 0.0).run()
    before = evaluate(network.eval_module, task)
    result = a_training(task, network, tmp_path / "lasso", STRENGTH).run()
    assert result.best_epoch == STEP.epochs - 1
    weak, weak_plain = (one.quantile(0.25) / one.max() for one in (norms(network), norms(plain)))
    assert weak < 0.7 * weak_plain
    assert result.best_score > before - 0.05


def test_an_interrupted_training_under_a_lasso_ends_with_the_same_weights(task, network, tmp_path):
    uninterrupted, interrupted = network.copy(), network.copy()
    a_training(task, uninterrupted, tmp_path / "uninterrupted", STRENGTH).run()

    def interrupt(epoch, epochs, score):
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        a_training(task, interrupted, tmp_path / "interrupted", STRENGTH, interrupt).run()
    resumed = network.copy()
    a_training(task, resumed, tmp_path / "interrupted", STRENGTH).run()
    assert all(torch.equal(value, resumed.state()[name]) for name, value in uninterrupted.state().items())
