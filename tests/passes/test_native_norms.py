"""Norms that a network calls by their native operators: pruned, proven and trained as plain ones."""

import pytest
import torch
from torch import nn

from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.importance import choose_strongest, score_channels
from edgeopt.passes.prune.proof import verify_pruning
from edgeopt.passes.prune.rewrite import prune
from edgeopt.records.recipe import Importance

NORMS = {
    "layer": lambda x, w, b, mean, var: torch.native_layer_norm(x.mT, (16,), w, b, 1e-5)[0].mT,
    "group": lambda x, w, b, mean, var: torch.native_group_norm(x, w, b, x.shape[0], 16, x.shape[2], 4, 1e-5)[0],
    "batch": lambda x, w, b, mean, var: torch.native_batch_norm(x, w, b, mean, var, False, 0.1, 1e-5)[0],
    "batch, without statistics": lambda x, w, b, *_: torch.ops.aten._native_batch_norm_legit.no_stats(
        x, w, b, True, 0.1, 1e-5
    )[0],
    "batch, in evaluation": lambda x, w, b, mean, var: torch.ops.aten._native_batch_norm_legit_no_training(
        x, w, b, mean, var, 0.1, 1e-5
    )[0],
}


class Normed(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm
        self.first, self.last = nn.Conv1d(3, 16, 3), nn.Conv1d(16, 5, 3)
        self.weight, self.bias = nn.Parameter(torch.rand(16) + 0.5), nn.Parameter(torch.randn(16))
        self.register_buffer("mean", torch.randn(16))
        self.register_buffer("variance", torch.rand(16) + 0.5)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.first(x), self.weight, self.bias, self.mean, self.variance)))


class UsesItsStatistics(Normed):
    def forward(self, x):
        x, mean, _ = torch.native_layer_norm(self.first(x).mT, (16,), self.weight, self.bias, 1e-5)
        return self.last(torch.relu(x.mT)) + mean.mean(1, keepdim=True)


@pytest.mark.parametrize("name", NORMS)
def test_native_norms_are_pruned_and_proven(name):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 20)
    network = Network.trace(Normed(NORMS[name]), (x,))
    groups = analyse(network)
    assert not groups.without_rule
    scores = score_channels(network, groups, Importance(method="l2"))
    keep = choose_strongest(scores, {name: group.channels // 2 for name, group in groups.free.items()})
    pruned = prune(network, groups, keep)
    assert pruned.state()["first.weight"].shape[0] == 8
    assert verify_pruning(network, groups, keep, pruned, (x,)) < 1e-9


def test_a_norm_whose_statistics_are_used_keeps_its_channels():
    network = Network.trace(UsesItsStatistics(None), (torch.randn(4, 3, 20),))
    assert not analyse(network).free
