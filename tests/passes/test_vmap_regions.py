"""What ``torch.vmap`` computes for each element becomes operators on whole tensors."""

import torch
from rule_networks import Formula
from torch import nn

from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse


def test_a_mask_of_positions_is_computed_by_plain_operators():
    """As transformers make them: one function of two positions, over all rows and columns."""
    x = torch.randn(2, 6, 5)

    def compute(m, x):
        def is_near(row, column):
            return (row - column >= 0) & (row - column < 3)

        positions = torch.arange(x.shape[1])
        by_column = torch.vmap(is_near, in_dims=(None, 0))
        mask = torch.vmap(by_column, in_dims=(0, None))(positions, positions)
        scores = (m.q(x) @ m.k(x).mT).masked_fill(~mask, -1e9)
        return m.o(scores.softmax(-1) @ m.v(x))

    model = Formula(compute, {"q": nn.Linear(5, 12), "k": nn.Linear(5, 12), "v": nn.Linear(5, 8), "o": nn.Linear(8, 3)})
    network = Network.trace(model, (x,))
    assert network.notes == ()
    assert not [node for node in network.eval_module.graph.nodes if "functorch" in str(node.target)]
    other = torch.randn(5, 6, 5)
    torch.testing.assert_close(network.eval_module(other), model.eval()(other))
    assert {group.channels for group in analyse(network).free.values()} == {12, 8}


def test_a_vmap_over_the_batch_keeps_the_batch_dynamic():
    x = torch.randn(2, 6, 5)
    model = Formula(lambda m, x: torch.vmap(lambda one: m.b(m.a(one).relu().mean(0)))(x), {
        "a": nn.Linear(5, 12), "b": nn.Linear(12, 3),
    })  # fmt: skip
    network = Network.trace(model, (x,))
    assert network.notes == ()
    other = torch.randn(5, 6, 5)
    torch.testing.assert_close(network.eval_module(other), model.eval()(other))
    assert [group.channels for group in analyse(network).free.values()] == [12]
