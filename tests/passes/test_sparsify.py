import pytest
import tiny_task
import torch
from torch import nn

from edgeopt.passes.sparsify import CURVE_RATIOS, SparsitySchedule, measure_loss_curve, score_weights
from edgeopt.records.recipe import Sparsify


def sparsify(module, batches, loss, **step):
    """Zero weights immediately, without a training."""
    SparsitySchedule(Sparsify(**{"schedule": "once"} | step), batches, loss, epochs=0).begin_epoch(module, 0)


def zeros(module):
    return {name: float((value == 0).float().mean()) for name, value in module.named_parameters() if value.dim() > 1}


@pytest.mark.parametrize("method", ["magnitude", "gradient", "taylor"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_requested_share_becomes_zero(method, scope):
    torch.manual_seed(0)
    net = tiny_task.TinyNet(8)
    total = sum(value.numel() for value in net.parameters() if value.dim() > 1)
    batches = [((x,), labels) for x, labels in tiny_task.batches(64, 0)]
    sparsify(net, batches, nn.CrossEntropyLoss(), method=method, ratio=0.6, scope=scope)
    zero_count = sum(int((value == 0).sum()) for value in net.parameters() if value.dim() > 1)
    assert zero_count == pytest.approx(0.6 * total, abs=3)
    if scope == "layer":
        assert all(share == pytest.approx(0.6, abs=0.02) for share in zeros(net).values())
    assert all(
        value.dim() > 1 or name.endswith("bias") or bool((value != 0).all()) for name, value in net.named_parameters()
    )


def test_magnitude_zeroes_the_smallest_weights():
    net = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.1, -3.0, 0.2, -0.05]]))
    sparsify(net, [], nn.MSELoss(), method="magnitude", ratio=0.5, scope="global")
    assert net.weight.tolist() == [[0.0, -3.0, pytest.approx(0.2), 0.0]]


def test_the_gradient_score_is_a_weight_times_its_gradient():
    net = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 1.0]]))
    batch = ((torch.tensor([[0.0, 2.0]]),), torch.tensor([[0.0]]))
    scores = score_weights(net, "gradient", [batch], nn.MSELoss())
    assert scores["weight"].tolist() == [[0.0, 8.0]]  # d/dw (2w)^2 = 8w


def test_taylor_ranks_weights_whose_gradients_cancel_over_batches():
    net = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 1.0]]))
    batches = [((torch.tensor([[2.0, 1.0]]),), torch.tensor([[target]])) for target in (2.0, 4.0)]  # errors 1 and -1
    assert score_weights(net, "gradient", batches, nn.MSELoss())["weight"].tolist() == [[0.0, 0.0]]
    assert score_weights(net, "taylor", batches, nn.MSELoss())["weight"].tolist() == [[8.0, 4.0]]


def test_blocks_of_four_keep_their_two_largest_and_an_incomplete_block_is_kept():
    net = nn.Linear(10, 3, bias=False)
    before = net.weight.detach().clone()
    sparsify(net, [], nn.MSELoss(), method="magnitude", ratio=0.5, scope="block", block=4)
    for row, old in zip(net.weight.detach(), before, strict=True):
        for start in (0, 4):
            kept = set(old[start : start + 4].abs().argsort()[2:].tolist())
            assert {index for index in range(4) if row[start + index] != 0} == kept
        assert torch.equal(row[8:], old[8:])


def test_the_cubic_schedule_rises_quickly_and_ends_at_its_ratio():
    step = Sparsify(method="magnitude", ratio=0.8, scope="global", schedule="cubic")
    sparsity = SparsitySchedule(step, [], nn.MSELoss(), epochs=10)
    ratios = [sparsity.ratio(epoch) for epoch in range(10)]
    assert ratios[0] == pytest.approx(0.8 * (1 - (5 / 6) ** 3))
    assert ratios == sorted(ratios)
    assert ratios[5:] == [0.8] * 5
    assert [sparsity.is_full(epoch) for epoch in (4, 5)] == [False, True]


@pytest.mark.parametrize("method", ["magnitude", "taylor"])
def test_the_loss_curve_starts_at_the_networks_own_loss_and_does_not_change_the_network(method):
    net = tiny_task.trained()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    batches = [((x,), labels) for x, labels in tiny_task.batches(128, 0)]
    held_back = [((x,), labels) for x, labels in tiny_task.batches(128, 1000)]
    loss = nn.CrossEntropyLoss()
    points = measure_loss_curve(net, method, batches, held_back, loss)
    with torch.no_grad():
        own = sum(float(loss(net(*inputs), labels)) for inputs, labels in held_back) / len(held_back)
    assert [point.nonzero_ratio for point in points] == [1 - ratio for ratio in CURVE_RATIOS]
    assert points[0].loss == pytest.approx(own)
    assert points[-1].loss > points[0].loss  # a twentieth of the weights is not enough
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
