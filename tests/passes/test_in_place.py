"""Models that write in place where a gradient needs the value before: they run in evaluation, and candidates train."""

import pytest
import torch
from torch import nn
from zoo_networks import random_keep

from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.proof import PROOF_TOLERANCE, verify_pruning
from edgeopt.passes.prune.rewrite import prune


def partial(m, x, in_place):
    """A part of the channels is convolved, as in FasterNet."""
    if in_place:
        x = x.clone()
        x[:, :4] = m.part(x[:, :4])
        return x
    return torch.cat([m.part(x[:, :4]), x[:, 4:]], 1)


def interleaved(m, x, in_place):
    """Every other channel gets something of all of them."""
    if in_place:
        x[:, ::2] += m.up(x)
        return x
    return torch.stack([x[:, ::2] + m.up(x), x[:, 1::2]], 2).flatten(1, 2)


def halves(m, x, in_place):
    """A half that was read is written to, and the whole shows it."""
    one, other = x[:, :4], x[:, 4:]
    gate = m.part(one).sigmoid()
    if in_place:
        one.mul_(gate)
        one += other
        return x
    return torch.cat([one * gate + other, other], 1)


def activated(m, x, in_place):
    """The gradient of an activation in place needs its result, which is written to."""
    y = nn.functional.relu(x, inplace=in_place)
    z = m.up(y)
    if in_place:
        y[:, 4:] = z
        return y
    return torch.cat([y[:, :4], z], 1)


class Around(nn.Module):
    """A layer, what is tested, and another layer."""

    def __init__(self, compute, in_place):
        super().__init__()
        self.compute, self.in_place = compute, in_place
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.part, self.up = nn.Conv2d(4, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.last(self.compute(self, self.first(x), self.in_place))


@pytest.mark.parametrize("compute", [partial, interleaved, halves, activated])
def test_candidates_train_where_the_model_writes_over_what_a_gradient_needs(compute):
    torch.manual_seed(0)
    model, x = Around(compute, in_place=True).eval(), torch.randn(4, 3, 5, 5)
    plain = Around(compute, in_place=False)
    plain.load_state_dict(model.state_dict())
    network = Network.trace(model, (x,))
    with torch.no_grad():
        torch.testing.assert_close(network.eval_module(x), model(x))
    plain(x).square().sum().backward()
    network.train_module(x).square().sum().backward()
    for name, value in plain.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(network.parameters()[name].grad, value.grad)
    groups = analyse(network)
    assert groups.free
    keep = random_keep(groups, 0.5, seed=1)
    assert verify_pruning(network, groups, keep, prune(network, groups, keep), (x,)) < PROOF_TOLERANCE
