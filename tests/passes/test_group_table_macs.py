"""Multiplications of weights that a graph takes apart or turns before it multiplies."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.table import build_group_table


class Cross(nn.Module):
    """Attention from 3 queries to 7 places, whose packed projection is split."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, queries, places):
        return self.attention(queries, places, places, need_weights=False)[0]


class Turned(nn.Module):
    """Products with a weight that is transposed, and with a slice of another."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 8))
        self.table = nn.Parameter(torch.randn(6, 10))

    def forward(self, values):
        return (values @ self.weight.t()) @ self.table[:, :4]


@pytest.mark.parametrize(
    ("module", "inputs", "products"),
    [
        (Cross(), (torch.randn(2, 3, 8), torch.randn(2, 7, 8)), 2 * 2 * 3 * 7 * 4),  # of activations, by heads of 4
        (Turned(), (torch.randn(2, 5, 8),), 0),
    ],
    ids=["cross attention", "turned"],
)
def test_parts_and_views_of_weights_are_counted(module, inputs, products):
    network = Network.trace(module.eval(), inputs)
    table = build_group_table(network, analyse(network), {})
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval_module(*inputs)
    attention = counter.get_flop_counts()["Global"].get(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, 0)
    of_weights = counter.get_total_flops() - attention
    assert table.macs({}) in (of_weights // 2 // 2, of_weights // 2 // 2 - products)
    assert table.macs({}) > 0
