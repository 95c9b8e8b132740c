"""Low-rank factorization: pairs keep the allowed loss, full rank loses nothing, and results can be saved and pruned."""

import copy

import pytest
import torch
from torch import nn
from zoo_networks import random_keep

from edgeopt.errors import ParityError, StepError
from edgeopt.passes.low_rank.factorization import build_low_rank_table, factorize
from edgeopt.passes.low_rank.layers import factorizable_layers
from edgeopt.passes.low_rank.proof import verify_factorization
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.proof import verify_pruning
from edgeopt.passes.prune.rewrite import prune
from edgeopt.records.low_rank import Factorization

FLOAT32 = 1e-5


class Mixed(nn.Module):
    """Every kind of layer that can be factorized, and some that cannot."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(3, 64, 3, stride=(2, 1), padding=(1, 2), dilation=(1, 2))
        self.norm = nn.BatchNorm2d(64)
        self.depthwise = nn.Conv2d(64, 64, 3, groups=64)
        self.wide = nn.Conv2d(64, 72, (3, 5), stride=(1, 2), padding=(0, 1), bias=False)
        self.line = nn.Conv1d(72, 80, 3, stride=2, padding=1)
        self.tied = nn.Linear(80, 80)
        self.head = nn.Linear(80, 70)

    def forward(self, x):
        y = torch.relu(self.norm(self.plain(x)))
        y = self.wide(self.depthwise(y))
        y = self.line(y.flatten(2)).mean(2)
        return self.head(self.tied(torch.relu(self.tied(y))))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network.trace(Mixed().eval(), (torch.randn(2, 3, 16, 16),))


def a_batch(count=8, seed=1):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


BATCHES = [((a_batch(16, seed),), None) for seed in range(3)]
FULL = {
    "plain.weight": Factorization(rank=64, form="pointwise"),
    "wide.weight": Factorization(rank=192, form="separable"),
    "line.weight": Factorization(rank=80, form="pointwise"),
    "head.weight": Factorization(rank=70, form="pointwise"),
}
LOW = {name: Factorization(rank=16, form=one.form) for name, one in FULL.items()}


def outputs(network, batch):
    with torch.no_grad():
        return network.eval_module(batch)


def test_grouped_and_tied_layers_are_not_factorized(network):
    assert set(factorizable_layers(network.eval_module)) == set(FULL)


@pytest.mark.parametrize(
    ("name", "form", "rank"),
    [
        ("plain.weight", "pointwise", 64),
        ("plain.weight", "separable", 192),
        ("wide.weight", "pointwise", 72),
        ("wide.weight", "separable", 360),
        ("line.weight", "pointwise", 80),
        ("head.weight", "pointwise", 70),
    ],
)
def test_at_full_rank_each_layer_computes_the_same(network, name, form, rank):
    assert form in factorizable_layers(network.eval_module)[name].forms
    factorized = factorize(network, {name: Factorization(rank=rank, form=form)}, BATCHES)
    expected = outputs(network, a_batch())
    assert (outputs(factorized, a_batch()) - expected).abs().max() < FLOAT32 * expected.abs().max()


def test_the_input_is_not_changed_and_the_result_is_deterministic(network):
    before = {name: value.clone() for name, value in network.state().items()}
    first, second = factorize(network, LOW, BATCHES), factorize(network, LOW, BATCHES)
    assert all(torch.equal(before[name], value) for name, value in network.state().items())
    assert all(torch.equal(value, second.state()[name]) for name, value in first.state().items())
    assert sum(value.numel() for value in first.parameters().values()) < 0.6 * sum(
        value.numel() for value in network.parameters().values()
    )


def test_the_proof_holds_and_finds_a_changed_tensor_or_graph(network):
    factorized = factorize(network, LOW, BATCHES)
    assert verify_factorization(network, LOW, factorized, [a_batch()]) < 1e-12
    changed = factorized.copy()
    with torch.no_grad():
        changed.state()["tied.weight"][0, 0] += 1
    with pytest.raises(ParityError, match=r"tied\.weight"):
        verify_factorization(network, LOW, changed, [a_batch()])
    other = copy.deepcopy(LOW) | {"wide.weight": Factorization(rank=16, form="pointwise")}
    with pytest.raises(ParityError, match="differs from the graph that was proven"):
        verify_factorization(network, other, factorized, [a_batch()])


class Masked(nn.Module):
    """Attention over tokens of which some are masked out."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(64, 64)

    def forward(self, x):
        y = self.wide(x)
        scores = (y @ y.transpose(1, 2)).masked_fill(torch.ones(6, 6).tril() == 0, float("-inf"))
        return scores.softmax(-1) @ y


def test_a_recipe_may_name_its_layers_in_any_order(network):
    turned = dict(reversed(LOW.items()))  # recipes are read back in the order of the alphabet
    factorized = factorize(network, turned, BATCHES)
    assert verify_factorization(network, turned, factorized, [a_batch()]) < 1e-12


def test_infinities_that_both_sides_have_are_no_difference():
    torch.manual_seed(0)
    x = torch.randn(4, 6, 64)
    network = Network.trace(Masked().eval(), (x,))
    low = {"wide.weight": Factorization(rank=16, form="pointwise")}
    assert verify_factorization(network, low, factorize(network, low, [((x,), None)]), [x]) < 1e-12


def test_a_network_can_be_pruned_before_and_after_a_factorization_and_is_loaded_as_saved(network, tmp_path):
    groups = analyse(network)
    smaller = prune(network, groups, random_keep(groups, 0.7, 0))
    low = {name: Factorization(rank=8, form=one.form) for name, one in FULL.items()}
    factorized = factorize(smaller, low, BATCHES)
    groups = analyse(factorized)
    assert {"head.0", "wide.0", "line.0", "plain.0"} <= set(groups.free)  # the channels between the two layers
    keep = random_keep(groups, 0.7, 1)
    last = prune(factorized, groups, keep)
    verify_pruning(factorized, groups, keep, last, factorized.example_inputs)
    for index, one in enumerate((factorized, last)):
        one.save(tmp_path / f"{index}.safetensors")
        loaded = Network.load(tmp_path / f"{index}.safetensors", network)
        assert loaded.factorizations == low
        assert torch.equal(outputs(loaded, a_batch()), outputs(one, a_batch()))


def test_one_training_step_reaches_both_layers_of_a_pair(network):
    factorized = factorize(network, LOW, BATCHES)
    factorized.train_module(a_batch()).square().sum().backward()
    for name in ("head.0.weight", "head.1.weight", "wide.0.weight", "wide.1.weight"):
        assert factorized.parameters()[name].grad.abs().sum() > 0


def test_ranks_follow_the_rank_of_the_layers_outputs():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 96)).eval()
    inputs = torch.randn(512, 8) @ torch.randn(8, 128)  # only eight directions, although the weight has full rank
    network = Network.trace(net, (inputs[:2],))
    table = build_low_rank_table(network, [((inputs,), None)], (0.001, 0.1), 4)
    first = next(row for row in table.layers if row.weight == "0.weight")
    assert first.choices[0].factor == Factorization(rank=8, form="pointwise")
    assert first.choices[1].factor.rank <= 8
    for row in table.layers:
        for loss, choice in zip(table.losses, row.choices, strict=True):
            if choice is not None:
                assert choice.output_loss_ratio <= loss
                assert choice.parameters < 0.75 * 128 * row.shape[0]
    assert table.parameters == 128 * 128 + 128 + 128 * 96 + 96


def test_a_missing_layer_is_named(network):
    with pytest.raises(StepError, match=r"no layer \['gone\.weight'\]"):
        factorize(network, {"gone.weight": Factorization(rank=8, form="pointwise")}, BATCHES)
