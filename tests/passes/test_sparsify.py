import pytest
import tiny_task
import torch
from torch import nn

from edgeopt.passes.sparsify import saliency, sparsify
from edgeopt.records.recipe import Sparsify


def zeros(module):
    return {name: float((value == 0).float().mean()) for name, value in module.named_parameters() if value.dim() > 1}


@pytest.mark.parametrize("method", ["magnitude", "gradient"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_asked_share_becomes_zero(method, scope):
    torch.manual_seed(0)
    net = tiny_task.TinyNet(8)
    total = sum(value.numel() for value in net.parameters() if value.dim() > 1)
    batches = [((x,), labels) for x, labels in tiny_task.batches(64, 0)]
    sparsify(net, Sparsify(method=method, ratio=0.6, scope=scope), batches, nn.CrossEntropyLoss())
    gone = sum(int((value == 0).sum()) for value in net.parameters() if value.dim() > 1)
    assert gone == pytest.approx(0.6 * total, abs=3)
    if scope == "layer":
        assert all(share == pytest.approx(0.6, abs=0.02) for share in zeros(net).values())
    assert all(
        value.dim() > 1 or name.endswith("bias") or bool((value != 0).all()) for name, value in net.named_parameters()
    )


def test_magnitude_takes_the_smallest():
    net = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.1, -3.0, 0.2, -0.05]]))
    sparsify(net, Sparsify(method="magnitude", ratio=0.5, scope="global"), [], nn.MSELoss())
    assert net.weight.tolist() == [[0.0, -3.0, pytest.approx(0.2), 0.0]]


def test_gradient_saliency_is_what_a_weight_contributes():
    net = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 1.0]]))
    batch = ((torch.tensor([[0.0, 2.0]]),), torch.tensor([[0.0]]))
    scores = saliency(net, "gradient", [batch], nn.MSELoss())
    assert scores["weight"].tolist() == [[0.0, 8.0]]  # d/dw (2w)^2 = 8w
