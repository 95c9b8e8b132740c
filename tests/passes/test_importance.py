"""Scores of channels, and the table that the search reads."""

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.errors import DivergedError, InputError
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.importance import importance, strongest
from edgeopt.passes.prune.rewrite import prune
from edgeopt.passes.prune.table import group_table
from edgeopt.records.codec import from_json, to_json
from edgeopt.records.groups import GroupTable

FLOAT32_SUMS = 1e-5
"""Scores are sums of a few float32 products."""


def two_layers() -> tuple[Network, nn.Sequential]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    return Network.trace(model, (torch.randn(2, 3),)), model


@pytest.mark.parametrize(("method", "power"), [("l1", 1), ("l2", 2)])
def test_magnitudes_are_norms_of_all_that_leaves_with_a_channel(method, power):
    network, model = two_layers()
    parts = torch.cat([model[0].weight, model[0].bias[:, None], model[2].weight.T], 1).detach()
    norms = parts.abs().pow(power).sum(1).pow(1 / power).numpy()
    scores = importance(network, analyse(network), method)
    np.testing.assert_allclose(scores["0"], norms / norms.mean(), rtol=FLOAT32_SUMS)


def test_taylor_adds_up_slots_and_averages_absolute_values_over_batches():
    network, model = two_layers()
    batches = [(torch.randn(5, 3), torch.randint(2, (5,))) for _ in range(3)]
    loss = nn.functional.cross_entropy
    scores = importance(network, analyse(network), "taylor", batches, loss)["0"]
    expected = np.zeros(4)
    for inputs, targets in batches:
        model.zero_grad()
        loss(model(inputs), targets).backward()
        slots = [
            (model[0].weight * model[0].weight.grad).sum(1),
            model[0].bias * model[0].bias.grad,
            (model[2].weight * model[2].weight.grad).sum(0),
        ]
        expected += sum(slot.abs().detach().numpy() for slot in slots) / 3
    np.testing.assert_allclose(scores, expected, rtol=FLOAT32_SUMS, atol=FLOAT32_SUMS)


def test_taylor_knows_a_channel_that_the_output_does_not_need():
    network, _ = two_layers()
    with torch.no_grad():
        network.parameters()["2.weight"][:, 1] = 0
    batches = [(torch.randn(8, 3), torch.randn(8, 2))]
    scores = importance(network, analyse(network), "taylor", batches, nn.functional.mse_loss)["0"]
    assert scores.argmin() == 1
    assert scores[1] == 0
    assert all(parameter.grad is None for parameter in network.parameters().values())


def test_taylor_needs_batches_and_finite_gradients():
    network, _ = two_layers()
    groups = analyse(network)
    with pytest.raises(InputError, match="needs training batches"):
        importance(network, groups, "taylor")
    with pytest.raises(InputError, match="no batch"):
        importance(network, groups, "taylor", [], nn.functional.mse_loss)
    with pytest.raises(DivergedError):
        importance(
            network, groups, "taylor", [(torch.full((2, 3), torch.nan), torch.zeros(2, 2))], nn.functional.mse_loss
        )


def test_the_strongest_channels_are_kept_in_their_order():
    assert strongest({"a": [0.5, 2.0, 1.0, 2.0]}, {"a": 2}) == {"a": [1, 3]}
    assert strongest({"a": [1.0, 1.0, 1.0]}, {"a": 2}) == {"a": [0, 1]}


def test_the_table_survives_json_and_counts_by_hand():
    network, _ = two_layers()
    groups = analyse(network)
    scores = importance(network, groups, "l1")
    table = from_json(to_json(group_table(network, groups, scores)), GroupTable)
    assert [group.name for group in table.free] == ["0"]
    assert table.free[0].importance == tuple(scores["0"])
    assert table.parameters({}) == 4 * 3 + 4 + 2 * 4 + 2
    assert table.parameters({"0": 3}) == 3 * 3 + 3 + 2 * 3 + 2
    assert table.macs({"0": 3}) == 3 * 3 + 2 * 3
    smaller = prune(network, groups, strongest(scores, {"0": 3}))
    assert sum(parameter.numel() for parameter in smaller.parameters().values()) == table.parameters({"0": 3})
