"""Branches that are left out whole: which there are, what is left, what the proof sees, and what it costs."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from zoo_networks import random_keep, tensors_in, traced

from edgeopt.errors import InputError, ParityError
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.depth import inner_branches, measure_branches
from edgeopt.passes.prune.importance import score_channels
from edgeopt.passes.prune.proof import verify_pruning
from edgeopt.passes.prune.rewrite import prune
from edgeopt.passes.prune.table import build_group_table
from edgeopt.records.recipe import Importance

BRANCHES = {
    "resnet18": 8, "mobilenet_v2": 3, "regnet": 6, "convnext": 6, "ghostnet": 6, "deeplab_v3": 3, "tcn": 4,
    "tc_resnet": 3, "vit": 8, "swin": 8, "bert": 8, "llama": 6, "conformer": 12, "yolo": 6,
    "densenet": 0, "unet": 0, "lstm": 0, "mlp": 0,
}  # fmt: skip
"""Blocks and layers of these networks with a skip connection around them; of a transformer's layer two."""


class Block(nn.Module):
    """``relu(x + b(a(x)))``; its rectifier may write in place, and its sum into the branch (as torchvision's do)."""

    def __init__(self, in_place=False):
        super().__init__()
        self.a, self.b = nn.Conv2d(6, 10, 3, 1, 1), nn.Conv2d(10, 6, 3, 1, 1)
        self.in_place = in_place

    def forward(self, x):
        y = self.b(functional.relu(self.a(x)))
        if self.in_place:
            y += x
            return functional.relu(y, inplace=True)
        return functional.relu(x + y)


class Net(nn.Module):
    def __init__(self, in_place=False):
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 6, 3), Block(in_place), Block(in_place)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.stem(x)
        y = self.second(self.first(x))
        return self.head((y + x).mean((2, 3)))


def made(module, *shape):
    torch.manual_seed(0)
    network = Network.trace(module.eval(), (torch.randn(*shape),))
    return network, analyse(network)


def without(network, groups, names):
    """Return the channels to keep that leave out branches of these names."""
    return {
        group: []
        for branch in inner_branches(network, groups)
        if branch.branch.name in names
        for group in branch.groups
    }


def zeroed(module, layers):
    """Set layers' weights to zero: the branch that ends with one is zero then."""
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return module


@pytest.mark.parametrize("name", BRANCHES)
def test_every_branch_around_which_a_skip_leads_is_offered_and_cuts_without_it_are_proven(name, tmp_path):
    network, groups = traced(name)
    found = inner_branches(network, groups)
    assert len(found) == BRANCHES[name]
    if not found:
        return
    keep = random_keep(groups, 0.3, 1) | {group: [] for branch in found[::2] for group in branch.groups}
    pruned = prune(network, groups, keep)
    assert verify_pruning(network, groups, keep, pruned, network.example_inputs) < 1e-12
    path = tmp_path / "network.safetensors"
    pruned.save(path)
    loaded = Network.load(path, network)
    outputs = [tensors_in(one.eval_module(*network.example_inputs)) for one in (pruned, loaded)]
    torch.testing.assert_close(*outputs)
    gone = {tensor for branch in found[::2] for tensor in branch.branch.tensors}
    assert gone.isdisjoint(pruned.state())
    assert {name for name in network.state() if name not in gone} == pruned.state().keys()


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("names", [("first",), ("second",), ("first", "second")])
def test_a_network_without_a_branch_equals_one_in_which_the_branch_is_zero(in_place, names):
    module = Net(in_place)
    network, groups = made(module, 2, 3, 8, 8)
    pruned = prune(network, groups, without(network, groups, names))
    x = torch.randn(5, 3, 8, 8)
    expected = zeroed(module, [getattr(module, name).b for name in names])(x)
    torch.testing.assert_close(pruned.eval_module(x), expected)
    torch.testing.assert_close(pruned.train_module(x), expected)
    assert pruned.left_out == tuple(
        (branch.sum, branch.operand) for branch in network.branches() if branch.name in names
    )


def test_a_rectifier_of_what_a_rectifier_gave_goes_too():
    network, groups = made(Net(), 2, 3, 8, 8)

    def rectifiers(one):
        return sum("relu" in str(node.target) for node in one.eval_module.graph.nodes)

    assert rectifiers(prune(network, groups, without(network, groups, ["second"]))) == rectifiers(network) - 2
    assert rectifiers(prune(network, groups, without(network, groups, ["first"]))) == rectifiers(network) - 1


def test_a_saved_network_without_branches_is_loaded_and_cut_again(tmp_path):
    network, groups = made(Net(), 2, 3, 8, 8)
    keep = {name: range(group.channels // 2) for name, group in groups.free.items()}
    first = prune(network, groups, keep | without(network, groups, ["first"]))
    groups = analyse(first)
    assert [branch.branch.name for branch in inner_branches(first, groups)] == ["second"]
    keep = {name: range(group.channels - 1) for name, group in groups.free.items()}
    second = prune(first, groups, keep | without(first, groups, ["second"]))
    x = torch.randn(2, 3, 8, 8)
    for number, one in enumerate((first, second)):
        path = tmp_path / f"{number}.safetensors"
        one.save(path)
        loaded = Network.load(path, network)
        torch.testing.assert_close(loaded.eval_module(x), one.eval_module(x), rtol=0, atol=0)
        assert (loaded.left_out, loaded.state().keys()) == (one.left_out, one.state().keys())


def test_the_proof_fails_if_another_branch_was_left_out():
    network, groups = made(Net(), 2, 3, 8, 8)
    pruned = prune(network, groups, without(network, groups, ["first"]))
    with pytest.raises(ParityError, match="differs from the original"):
        verify_pruning(network, groups, without(network, groups, ["second"]), pruned, network.example_inputs)


def test_a_group_of_the_stream_or_half_of_a_branch_cannot_go():
    network, groups = traced("regnet")
    (first, *_) = (branch for branch in inner_branches(network, groups) if len(branch.groups) > 1)
    with pytest.raises(InputError, match="keeps at least one channel"):
        prune(network, groups, {first.groups[0]: []})
    network, groups = made(Net(), 2, 3, 8, 8)
    with pytest.raises(InputError, match="Group 'stem' keeps at least one channel"):
        prune(network, groups, {"stem": []} | without(network, groups, ["first"]))


def test_a_branch_with_a_weight_that_others_read_too_is_not_offered():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.own, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            y = x + self.own(torch.relu(self.shared(x)))
            return self.head(self.shared(torch.relu(y)))

    network, _ = made(Shared(), 4, 8)
    assert network.branches() == []


def test_a_sum_into_a_value_that_others_read_and_one_that_broadcasts_have_no_branch():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.gate, self.head = nn.Linear(8, 8), nn.Linear(8, 1), nn.Linear(8, 2)

        def forward(self, x):
            x = self.a(x)
            return self.head(x + self.gate(torch.relu(x)))

    network, _ = made(Written(), 4, 8)
    assert network.branches() == []


def test_a_network_is_never_left_without_parameters_or_with_an_unused_input():
    class Denoiser(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Block(), Block()

        def forward(self, x):
            return self.second(self.first(x))

    network, groups = made(Denoiser(), 2, 6, 8, 8)
    assert len(network.branches()) == 2
    assert len(inner_branches(network, groups)) == 1

    class Conditioned(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner, self.out, self.head = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x, condition):
            y = self.stem(x)
            return self.head(y + self.out(torch.relu(self.inner(condition))))

    torch.manual_seed(0)
    network = Network.trace(Conditioned().eval(), (torch.randn(4, 8), torch.randn(4, 8)))
    assert inner_branches(network, analyse(network)) == []


def test_the_proof_sees_an_output_that_a_later_operator_overwrites():
    class Overwritten(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.aux = Net(), nn.Linear(6, 2)

        def forward(self, x):
            x = self.net.stem(x)
            y = x + self.net.first.b(torch.relu(self.net.first.a(x)))
            return y.mean((2, 3)), self.aux(functional.relu_(x).mean((2, 3)))

    network, groups = made(Overwritten(), 2, 3, 8, 8)
    names = [branch.branch.name for branch in inner_branches(network, groups)]
    assert len(names) == 1
    keep = without(network, groups, names)
    pruned = prune(network, groups, keep)
    assert verify_pruning(network, groups, keep, pruned, network.example_inputs) < 1e-12


def test_a_branch_that_cannot_be_measured_is_not_offered():
    network, groups = made(Net(), 2, 3, 8, 8)
    scores = score_channels(network, groups, Importance(method="l2"))
    batches = [(torch.randn(4, 3, 8, 8), None)]

    def loss(outputs, _):
        return outputs.mean() * float("inf")

    branches = inner_branches(network, groups)
    assert measure_branches(network, groups, branches, scores, batches, loss) == {}
    assert measure_branches(network, groups, branches, scores, [], loss) == {}


def test_what_a_branch_costs_is_the_rise_of_the_loss():
    torch.manual_seed(0)
    module = Net()
    with torch.no_grad():
        module.first.b.weight.mul_(0.01)
        module.first.b.bias.zero_()
        module.second.b.weight.mul_(3)
    network, groups = made(module, 2, 3, 8, 8)
    branches = inner_branches(network, groups)
    inputs = torch.randn(64, 3, 8, 8)
    batches = [(inputs, network.eval_module(inputs).detach())]
    scores = score_channels(network, groups, Importance(method="l2"))
    losses = measure_branches(network, groups, branches, scores, batches, nn.MSELoss())
    assert 0 < losses["first"].without < losses["second"].without / 100
    assert 0 < losses["second"].half < losses["second"].without
    table = build_group_table(network, groups, scores, losses=losses)
    assert [(one.name, one.loss) for one in table.branches] == [(name, one.without) for name, one in losses.items()]
    pruned = prune(network, groups, without(network, groups, ["second"]))
    assert table.parameters(dict.fromkeys(table.branches[1].groups, 0)) == sum(
        tensor.numel() for tensor in pruned.parameters().values()
    )
    assert all(isinstance(value, torch.Tensor) for value in tensors_in(pruned.eval_module(inputs)))
    assert np.isfinite([one.half for one in losses.values()]).all()


class Products(nn.Module):
    """Two layers around which a skip leads, whose weights are multiplied in the way of GPT-2, or by hand."""

    def __init__(self, multiply):
        super().__init__()
        self.stem, self.head = nn.Linear(5, 6), nn.Linear(6, 3)
        self.multiply = multiply
        self.up, self.down = nn.Parameter(torch.randn(6, 12)), nn.Parameter(torch.randn(12, 6))
        self.bias, self.last_bias = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(6))

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.multiply(self.multiply(x, self.up, self.bias).relu(), self.down, self.last_bias))


MULTIPLY = {
    "addmm": lambda x, weight, bias: torch.addmm(bias, x, weight),
    "matmul": lambda x, weight, bias: x @ weight + bias,
    "weight first": lambda x, weight, bias: (weight.t() @ x.t()).t() + bias,
}


@pytest.mark.parametrize("multiply", MULTIPLY.values(), ids=MULTIPLY)
def test_weights_are_found_wherever_a_product_has_them(multiply):
    module = Products(multiply)
    network, groups = made(module, 4, 5)
    (branch,) = inner_branches(network, groups)
    assert branch.branch.tensors == {"up", "down", "bias", "last_bias"}
    pruned = prune(network, groups, {group: [] for group in branch.groups})
    x = torch.randn(4, 5)
    torch.testing.assert_close(pruned.eval_module(x), module.head(module.stem(x)))
