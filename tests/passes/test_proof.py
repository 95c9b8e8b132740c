"""The proof notices a single wrong index, in any tensor, along any dimension."""

import dataclasses

import numpy as np
import pytest
import torch
from rule_networks import CASES, Formula
from torch import Tensor
from zoo_networks import random_keep, traced

from benchmarks.zoo import ARCHITECTURES, MINIATURES
from edgeopt.errors import ParityError, StepError
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import Groups, analyse
from edgeopt.passes.prune.interpret import execute
from edgeopt.passes.prune.labels import Slot
from edgeopt.passes.prune.masked import Masked
from edgeopt.passes.prune.proof import PROOF_TOLERANCE, verify_pruning
from edgeopt.passes.prune.resize import take_indices
from edgeopt.passes.prune.rewrite import prune

SAMPLED_SLOTS = 8
"""Slots of a network that the fast test tries; the slow test tries all of them."""


def swap_two_channels(groups: Groups, name: str, slot: Slot, kept: list[int]) -> Groups:
    """Imitate a wrong rule: in one slot of one group, a kept and a lost channel swap their indices."""
    group = groups.groups[name]
    lost = np.setdiff1d(np.arange(group.channels), kept)
    one, other = sorted(kept)[len(kept) // 2], lost[len(lost) // 2]
    indices = group.slots[slot].copy()
    indices[[one, other]] = indices[[other, one]]
    faulty = dataclasses.replace(group, slots={**group.slots, slot: indices})
    return dataclasses.replace(groups, groups={**groups.groups, name: faulty})


def traced_on_many_samples(architecture: str) -> tuple[Network, Groups]:
    """Trace with many samples: a channel that is zero after a ReLU for all of them would hide errors."""
    torch.manual_seed(0)
    model, inputs = MINIATURES[architecture]()
    network = Network.trace(model, tuple(torch.randn(16, *tensor.shape[1:]) for tensor in inputs))
    return network, analyse(network)


def missed_faults(architecture: str, every: bool) -> list[Slot]:
    network, groups = traced_on_many_samples(architecture)
    keep = random_keep(groups, 0.5, seed=1)
    right = prune(network, groups, keep)
    assert verify_pruning(network, groups, keep, right, network.example_inputs) < PROOF_TOLERANCE
    slots = [
        (name, slot) for name, group in groups.free.items() if len(keep[name]) < group.channels for slot in group.slots
    ]
    assert slots
    missed = []
    for name, slot in slots if every else slots[:: max(1, len(slots) // SAMPLED_SLOTS)]:
        faulty = swap_two_channels(groups, name, slot, keep[name])
        try:
            verify_pruning(network, faulty, keep, prune(network, faulty, keep), network.example_inputs)
        except StepError:  # refused when pruned, or caught by the proof
            continue
        missed.append(slot)
    return missed


@pytest.mark.parametrize("architecture", MINIATURES)
def test_a_rule_that_confuses_two_channels_of_one_tensor_is_caught(architecture):
    assert missed_faults(architecture, every=False) == []


@pytest.mark.slow
@pytest.mark.parametrize("architecture", MINIATURES)
def test_a_rule_that_confuses_two_channels_of_any_tensor_is_caught(architecture):
    assert missed_faults(architecture, every=True) == []


TRIAL_COUNT = 200
CAUGHT_RATIO = 0.95
"""Some wrong indices have no effect on a batch: the channel is zero after a ReLU for every sample."""


@pytest.mark.slow
def test_19_of_20_faults_planted_across_the_zoo_are_caught():
    random = np.random.default_rng(0)
    names = [name for name in ARCHITECTURES if name != "resnet50"]  # its proof takes minutes
    missed = []
    for number in range(TRIAL_COUNT):
        architecture = names[number % len(names)]
        network, groups = traced(architecture)
        keep = random_keep(groups, 0.5, seed=number)
        slots = [(name, slot) for name in keep for slot in groups.groups[name].slots if len(keep[name]) > 1]
        name, slot = slots[random.integers(len(slots))]
        faulty = swap_two_channels(groups, name, slot, keep[name])
        try:
            verify_pruning(network, faulty, keep, prune(network, faulty, keep), network.example_inputs)
        except StepError:
            continue
        missed.append((architecture, slot))
    assert len(missed) <= TRIAL_COUNT * (1 - CAUGHT_RATIO), missed


def test_a_tensor_cut_at_a_wrong_index_is_caught_and_the_node_named():
    network, groups = traced("resnet")
    keep = random_keep(groups, 0.5, seed=1)
    faulty = prune(network, groups, keep)
    name, dim = "stages.0.conv1.weight", 1
    kept = {d: faulty.kept[name, d] for d in (0, 1)}
    lost = np.setdiff1d(np.arange(network.state()[name].shape[dim]), kept[dim])
    kept[dim] = np.concatenate([kept[dim][:-1], lost[:1]])
    faulty.state()[name].copy_(take_indices(network.state()[name], kept))
    with pytest.raises(ParityError, match="'stages_0_conv1_weight'"):
        verify_pruning(network, groups, keep, faulty, network.example_inputs)


def test_attention_follows_from_the_pruned_network_though_torch_tags_it_as_random():
    case = CASES["relative positions"]
    network = Network.trace(Formula(case.compute, case.parts), case.inputs)
    groups = analyse(network)
    keep = random_keep(groups, 0.5, seed=1)
    faulty = prune(network, groups, keep)
    [attention] = [node for node in faulty.eval_module.graph.nodes if "attention" in node.name]
    attention.update_kwarg("scale", 0.01)
    faulty.eval_module.recompile()
    with pytest.raises(ParityError, match="scaled_dot_product_attention"):
        verify_pruning(network, groups, keep, faulty, case.inputs)


def test_a_node_of_another_shape_is_caught():
    network, groups = traced("flatten")
    keep = random_keep(groups, 0.5, seed=1)
    with pytest.raises(ParityError):
        verify_pruning(network, groups, keep, network, (torch.randn(2, 1, 8, 8),))


def test_a_pruned_network_that_cannot_run_is_caught_and_the_node_named():
    case = CASES["rnn"]
    torch.manual_seed(0)
    network = Network.trace(Formula(case.compute, case.parts), case.inputs)
    groups = analyse(network)
    keep = random_keep(groups, 0.5, seed=1)
    faulty = swap_two_channels(groups, "rnn.weight_ih_l0", ("rnn.bias_hh_l0", 0), keep["rnn.weight_ih_l0"])
    with pytest.raises(ParityError, match="cannot run at node 'rnn_tanh'"):
        verify_pruning(network, faulty, keep, prune(network, faulty, keep), case.inputs)


class DistanceBias(torch.nn.Module):
    """Adds the logarithm of each position's distance; log(0) is minus infinity until it is replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 8)
        self.second = torch.nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, positions, 4)`` to ``(batch, positions, 2)``."""
        distances = torch.arange(x.shape[1]).float()
        logarithms = torch.where(distances < 1, 0.0, distances.log())
        return self.second(torch.relu(self.first(x)) + logarithms[:, None])


def test_infinities_in_both_networks_are_equal_and_others_are_not():
    torch.manual_seed(0)
    network = Network.trace(DistanceBias(), (torch.randn(2, 5, 4),))
    groups = analyse(network)
    keep = {name: list(range(group.channels // 2)) for name, group in groups.free.items()}
    assert keep
    pruned = prune(network, groups, keep)
    assert verify_pruning(network, groups, keep, pruned, network.example_inputs) < 1e-9
    with torch.no_grad():
        pruned.parameters()["second.bias"][0] = -float("inf")
    with pytest.raises(ParityError, match="relative error inf"):
        verify_pruning(network, groups, keep, pruned, network.example_inputs)


def test_only_what_draws_random_numbers_takes_the_values_of_the_original():
    network, groups = traced("vit")
    keep = random_keep(groups, 0.5, seed=1)
    reference = Masked(network.eval_module, groups.marks, groups.alive(keep))
    assert any(
        "attention" in str(node.target) for node, _ in execute(network.eval_module, network.example_inputs, reference)
    )
    assert not reference.given
