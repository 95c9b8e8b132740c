"""A spectral norm is a number in evaluation: it is folded into its weight, and the layer is cut as any other."""

import torch
from torch import nn
from zoo_networks import random_keep

from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.proof import PROOF_TOLERANCE, verify_pruning
from edgeopt.passes.prune.rewrite import prune

ROUNDING = 1e-5
"""Of float32, in networks of a few layers."""

new, old = nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm


class Discriminator(nn.Module):
    """A projection discriminator (Miyato and Koyama, 2018) with every layer normalized, by both functions of torch."""

    def __init__(self):
        super().__init__()
        self.first, self.second = new(nn.Conv2d(3, 16, 3, 2)), old(nn.Conv2d(16, 24, 3))
        self.up, self.last, self.table = (
            new(nn.ConvTranspose2d(24, 12, 2)),
            old(nn.Linear(12, 1)),
            new(nn.Embedding(5, 12)),
        )

    def forward(self, x, label):
        y = self.second(torch.relu(self.first(x)))
        y = torch.relu(self.up(torch.relu(y))).sum((2, 3))
        return self.last(y) + (self.table(label) * y).sum(1, keepdim=True)


class Both(nn.Module):
    """Uses its weight with and without the norm."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = new(nn.Linear(6, 12)), nn.Linear(12, 2)

    def forward(self, x):
        weight = self.layer.parametrizations.weight.original
        return self.last(self.layer(x) + nn.functional.linear(x, weight))


def cut_exactly(network: Network) -> set[str]:
    groups = analyse(network)
    assert groups.without_rule == ()
    keep = random_keep(groups, 0.5, seed=1)
    pruned = prune(network, groups, keep)
    assert verify_pruning(network, groups, keep, pruned, network.example_inputs) < PROOF_TOLERANCE
    return set(groups.free)


def test_spectral_norms_are_folded_and_the_network_computes_the_same():
    torch.manual_seed(0)
    model, inputs = Discriminator().eval(), (torch.randn(4, 3, 16, 16), torch.randint(5, (4,)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network = Network.trace(model, inputs)
    torch.testing.assert_close(network.eval_module(*inputs), model(*inputs), rtol=ROUNDING, atol=ROUNDING)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any("_u" in name or "_v" in name for name in network.state())
    assert any("have the spectral norm folded in" in note for note in network.notes)
    assert len(cut_exactly(network)) == 3


def test_a_weight_that_is_also_used_without_its_norm_keeps_it():
    torch.manual_seed(0)
    model, x = Both().eval(), torch.randn(4, 6)
    network = Network.trace(model, (x,))
    torch.testing.assert_close(network.eval_module(x), model(x), rtol=ROUNDING, atol=ROUNDING)
    assert not any("spectral" in note for note in network.notes)
    assert cut_exactly(network)
