"""Each operator rule, on the smallest network that has the operator."""

import pytest
import torch
from field_networks import FIELD_CASES
from operator_networks import ACROSS
from rule_networks import CASES, Formula
from zoo_networks import random_keep

from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.proof import PROOF_TOLERANCE, verify_pruning
from edgeopt.passes.prune.rewrite import prune

ALL_CASES = {**CASES, **FIELD_CASES, **ACROSS}


@pytest.mark.parametrize("name", ALL_CASES)
def test_free_channels_are_found_and_pruned_and_the_rest_computes_the_same_and_trains(name):
    case = ALL_CASES[name]
    torch.manual_seed(0)
    network = Network.trace(Formula(case.compute, case.parts), case.inputs)
    groups = analyse(network)
    assert groups.without_rule == ()
    assert {group: owned.channels for group, owned in groups.free.items()} == case.free
    last = {name: range(group.channels // 2, group.channels) for name, group in groups.free.items()}
    for keep in (last, random_keep(groups, 0.3, seed=1), random_keep(groups, 0.5, seed=1)):
        pruned = prune(network, groups, keep)
        assert verify_pruning(network, groups, keep, pruned, case.inputs) < PROOF_TOLERANCE
    pruned.train_module(*case.inputs).square().mean().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters().values())


class Regions(torch.nn.Module):
    """One part with autocast disabled, one part without gradients."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.o = torch.nn.Linear(5, 12), torch.nn.Linear(5, 12), torch.nn.Linear(12, 3)

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            y = self.a(x)
        with torch.no_grad():
            z = self.b(x).sigmoid()
        return self.o(y.relu() * z)


def test_regions_are_inlined_and_a_part_that_had_no_gradients_gets_some():
    network = Network.trace(Regions(), (torch.randn(2, 5),))
    groups = analyse(network)
    assert {name: group.channels for name, group in groups.free.items()} == {"a": 12}
    keep = random_keep(groups, 0.5, seed=1)
    pruned = prune(network, groups, keep)
    assert verify_pruning(network, groups, keep, pruned, network.example_inputs) < PROOF_TOLERANCE
    pruned.train_module(*network.example_inputs).sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters().values())
    assert any("2 of 6 parameters" in note for note in network.notes)
