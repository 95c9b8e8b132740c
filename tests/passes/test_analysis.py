"""Which channels go together, and why some of them cannot go."""

import numpy as np
import pytest
import torch
from torch import nn
from zoo_networks import random_keep, traced

from edgeopt.errors import InputError, StepError
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import Groups, analyse
from edgeopt.passes.prune.couplings import resolve_couplings
from edgeopt.passes.prune.labels import Labels, Marked, connect
from edgeopt.passes.prune.proof import PROOF_TOLERANCE, verify_pruning
from edgeopt.passes.prune.resize import kept_indices
from edgeopt.passes.prune.rewrite import prune


def analysed(model: nn.Module, *inputs: torch.Tensor) -> tuple[Network, Groups]:
    network = Network.trace(model, inputs)
    return network, analyse(network)


def test_connected_labels_take_the_smallest_name():
    assert connect(np.arange(6), np.array([[4, 5], [1, 2], [5, 2]])).tolist() == [0, 1, 1, 3, 1, 1]


def test_a_layer_that_meets_label_zero_freezes():
    labels = Labels()
    line = labels.label_parameter("weight", (3,)).layers[0]
    labels.unite(line, torch.tensor([0, 2, 3]))
    _, reasons = resolve_couplings(labels)
    assert [reason is not None for reason in reasons[1:]] == [True, False, False]


def test_a_residual_sum_ties_the_channels_of_all_its_terms():
    _, groups = traced("resnet")
    stream = groups.groups["stages.0.skip.0"]
    written = {("stages.0.conv2.weight", 0), ("stages.0.skip.0.weight", 0), ("stages.1.conv2.weight", 0)}
    read = {("stages.1.conv1.weight", 1), ("stages.2.conv1.weight", 1), ("stages.2.skip.0.weight", 1)}
    assert written | read <= set(stream.slots)
    assert all((indices == np.arange(8)[:, None]).all() for indices in stream.slots.values())


def test_a_view_that_merges_channels_with_positions_gives_each_channel_all_its_positions():
    _, groups = traced("flatten")
    indices = groups.groups["0"].slots["4.weight", 1]
    assert indices.shape == (8, 9)
    assert indices[2].tolist() == list(range(18, 27))


def test_a_shuffle_ties_the_same_channel_of_every_group():
    _, groups = traced("shufflenet")
    assert groups.groups["3"].slots["3.weight", 0].tolist() == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]


def test_inputs_and_outputs_are_frozen_with_a_reason():
    _, groups = traced("two_heads")
    assert "the model's output" in str(groups.groups["middle"].frozen_by)
    assert "fixed size" in str(groups.groups["right:1"].frozen_by)
    assert set(groups.free) == {"right", "wide"}


class Renormalized(nn.Module):
    """Has a renorm, which has no rule."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        y = self.first(x).renorm(2, 0, 1.0)
        return self.third(torch.relu(self.second(y)))


def test_an_operator_without_a_rule_freezes_its_channels_and_is_named():
    _, groups = analysed(Renormalized(), torch.randn(2, 4))
    assert groups.without_rule == ("aten.renorm",)
    assert "no rule" in str(groups.groups["first"].frozen_by)


def test_channels_behind_an_unknown_operator_are_still_pruned():
    network, groups = analysed(Renormalized(), torch.randn(2, 4))
    assert set(groups.free) == {"second"}
    keep = random_keep(groups, 0.5, seed=1)
    assert verify_pruning(network, groups, keep, prune(network, groups, keep), network.example_inputs) < PROOF_TOLERANCE


class Attention(nn.Module):
    """Packed projections, four heads of depth eight, written by hand."""

    def __init__(self):
        super().__init__()
        self.stem, self.packed, self.out = nn.Linear(5, 16), nn.Linear(16, 96), nn.Linear(32, 3)

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = self.packed(self.stem(x)).reshape(batch, length, 3, 4, 8).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-2, -1) / 8**0.5).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(batch, length, 32))


@pytest.mark.parametrize(("heads", "channels", "rows"), [("whole", 4, 3 * 8), ("depth", 8, 3 * 4), ("most", 8, 3 * 4)])
def test_whole_heads_go_or_the_same_depth_of_all_heads(heads, channels, rows):
    torch.manual_seed(0)
    network = Network.trace(Attention(), (torch.randn(2, 7, 5),))
    groups = analyse(network, heads)
    assert groups.free["packed"].slots["packed.weight", 0].shape == (channels, rows)
    assert groups.free["packed"].slots["out.weight", 1].shape == (channels, 32 // channels)
    keep = random_keep(groups, 0.5, seed=1)
    assert verify_pruning(network, groups, keep, prune(network, groups, keep), network.example_inputs) < PROOF_TOLERANCE


class Views(nn.Module):
    """Data movement of every kind: slices at literal positions, packed heads, a table over positions."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 12, 3), nn.Conv2d(12, 12, 1), nn.Conv2d(10, 6, 1)
        self.table = nn.Parameter(torch.randn(1, 1, 4, 4))
        self.heads, self.last = nn.Linear(6 * 16, 12), nn.Linear(12, 3)

    def forward(self, x):
        y = self.a(x) + self.table
        y = torch.cat([y[:, 7:], y[:, :7]], 1).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        y = self.b(y).narrow(1, 1, 10)
        y = self.c(y).unsqueeze(2).expand(-1, -1, 1, -1, -1).squeeze().flatten(1)
        y = self.heads(y).unflatten(1, (3, 4)).transpose(1, 2).reshape(-1, 12)
        return self.last(torch.stack([y, y * 2], 0).mean(0))


@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_literal_sizes_and_positions_are_rewritten(ratio):
    torch.manual_seed(0)
    network, groups = analysed(Views(), torch.randn(2, 2, 6, 6))
    assert {"a", "c"} <= set(groups.free)
    keep = random_keep(groups, ratio, seed=1)
    assert verify_pruning(network, groups, keep, prune(network, groups, keep), network.example_inputs) < PROOF_TOLERANCE


def test_a_wrong_request_is_refused():
    network, groups = traced("mlp")
    with pytest.raises(InputError, match="did you mean '0'"):
        prune(network, groups, {"00": [1]})
    with pytest.raises(InputError, match="at least one"):
        prune(network, groups, {"0": []})
    with pytest.raises(InputError, match="0 to 15"):
        prune(network, groups, {"0": [16]})
    with pytest.raises(InputError, match="cannot be pruned: output"):
        prune(network, groups, {"6": [0]})


def test_a_rest_that_is_not_a_rectangle_is_refused():
    alive = torch.tensor([True, True, True, True, False])
    with pytest.raises(StepError, match="rectangle"):
        kept_indices(Marked((2, 2), (torch.tensor([[1, 2], [3, 4]]),)), alive)
