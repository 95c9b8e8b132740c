"""What the table of groups says about channels: their unit, and whether a convolution has them."""

import torch
from torch import nn

from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.table import build_group_table


class Attention(nn.Module):
    """Packed projections of heads, with a bias for each head's scores."""

    def __init__(self, heads, depth):
        super().__init__()
        self.heads, self.depth = heads, depth
        self.qkv, self.proj = nn.Linear(32, 3 * heads * depth), nn.Linear(heads * depth, 32)
        self.position = nn.Parameter(torch.randn(heads, 5, 5))

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, self.depth).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2) / self.depth**0.5 + self.position).softmax(-1)
        return self.proj((scores @ v).transpose(1, 2).flatten(2))


def units(model, example, heads="most"):
    torch.manual_seed(0)
    network = Network.trace(model, (example,))
    groups = analyse(network, heads)
    table = build_group_table(network, groups, {})
    return {(group.channels, group.unit, group.in_convolution) for group in table.free}


def test_a_head_has_its_depth_as_a_unit_and_a_depth_has_single_channels():
    assert units(Attention(6, 12), torch.randn(2, 5, 32), "whole") == {(6, 12, False)}
    assert units(Attention(6, 12), torch.randn(2, 5, 32), "depth") >= {(12, 1, False)}


def test_a_group_of_a_convolution_has_its_channels_as_a_unit():
    model = nn.Sequential(nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 3, groups=6), nn.ReLU(), nn.Conv2d(24, 5, 1))
    assert (6, 4, True) in units(model, torch.randn(2, 3, 8, 8))


def test_channels_that_are_flattened_are_single():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(16 * 36, 5))
    assert units(model, torch.randn(2, 3, 8, 8)) == {(16, 1, True)}
