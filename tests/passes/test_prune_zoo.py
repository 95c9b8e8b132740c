"""Every architecture of the zoo, pruned at random at 30 % and 50 %."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from zoo_networks import RATIOS, random_keep, tensors_in, traced

from benchmarks.zoo import ZOO
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.importance import importance
from edgeopt.passes.prune.proof import PROOF_TOLERANCE, verify
from edgeopt.passes.prune.rewrite import prune
from edgeopt.passes.prune.table import group_table

EVERY = pytest.mark.parametrize("name", ZOO)
BOTH = pytest.mark.parametrize("ratio", RATIOS)


@EVERY
@BOTH
def test_each_node_of_the_pruned_network_equals_the_kept_part_of_the_original(name, ratio):
    network, groups = traced(name)
    keep = random_keep(groups, ratio, seed=1)
    pruned = prune(network, groups, keep)
    assert verify(network, groups, keep, pruned, network.example_inputs) < PROOF_TOLERANCE


@EVERY
@BOTH
def test_a_pruned_network_is_pruned_again(name, ratio):
    network, groups = traced(name)
    once = prune(network, groups, random_keep(groups, ratio, seed=2))
    again_groups = analyse(once)
    keep = random_keep(again_groups, ratio, seed=3)
    twice = prune(once, again_groups, keep)
    assert verify(once, again_groups, keep, twice, network.example_inputs) < PROOF_TOLERANCE
    for (tensor, dim), indices in twice.kept.items():
        whole, cut = network.state()[tensor], twice.state()[tensor]
        assert len(indices) == cut.shape[dim] < whole.shape[dim]


@EVERY
def test_one_training_step_reaches_every_parameter_and_changes_no_other_network(name):
    network, groups = traced(name)
    before = {key: tensor.clone() for key, tensor in network.state().items()}
    pruned = prune(network, groups, random_keep(groups, 0.5, seed=4))
    optimizer = torch.optim.SGD(pruned.train_module.parameters(), lr=0.1)
    sum(tensor.square().mean() for tensor in tensors_in(pruned.train_module(*network.example_inputs))).backward()
    missing = [key for key, parameter in pruned.parameters().items() if parameter.grad is None]
    assert not missing
    optimizer.step()
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state().items())


@EVERY
@BOTH
def test_parameters_and_macs_are_what_the_table_predicts(name, ratio):
    network, groups = traced(name)
    table = group_table(network, groups, importance(network, groups, "l2"))
    keep = random_keep(groups, ratio, seed=5)
    widths = {group: len(channels) for group, channels in keep.items()}
    for candidate, at in ((network, {}), (prune(network, groups, keep), widths)):
        assert sum(parameter.numel() for parameter in candidate.parameters().values()) == table.parameters(at)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            candidate.eval_module(*candidate.example_inputs)
        counted = counter.get_total_flops() - _attention_flops(counter)
        assert counted == 2 * table.macs(at) * candidate.example_inputs[0].shape[0]


def _attention_flops(counter: FlopCounterMode) -> int:
    counts = counter.get_flop_counts()["Global"]
    return sum(flops for operator, flops in counts.items() if "attention" in str(operator) or "bmm" in str(operator))


@EVERY
def test_a_saved_network_comes_back_with_bitwise_equal_outputs(name, tmp_path):
    network, groups = traced(name)
    pruned = prune(network, groups, random_keep(groups, 0.5, seed=6))
    pruned = prune(pruned, analyse(pruned), random_keep(analyse(pruned), 0.3, seed=7))
    path = tmp_path / "network.safetensors"
    pruned.save(path)
    back = Network.load(path, network)
    for one, other in zip(_outputs(pruned), _outputs(back), strict=True):
        assert torch.equal(one, other)


@EVERY
def test_the_batch_is_dynamic_after_pruning(name):
    network, groups = traced(name)
    assert network.notes == ()
    pruned = prune(network, groups, random_keep(groups, 0.5, seed=8))
    more = tuple(torch.randn(5, *tensor.shape[1:]) for tensor in network.example_inputs)
    assert all(output.shape[0] == 5 for output in tensors_in(pruned.eval_module(*more)))


def _outputs(network: Network) -> list[torch.Tensor]:
    with torch.no_grad():
        return tensors_in(network.eval_module(*network.example_inputs))
