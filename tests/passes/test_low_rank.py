"""Low rank: pairs lose what was allowed, at full rank nothing; what is saved is rebuilt; pruning goes on from there."""

import copy

import pytest
import torch
from torch import nn
from zoo_networks import random_keep

from edgeopt.errors import ParityError, StepError
from edgeopt.passes.low_rank.factor import factorize, low_rank_table
from edgeopt.passes.low_rank.layers import factorizable_layers
from edgeopt.passes.low_rank.proof import verify_factorization
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.proof import verify
from edgeopt.passes.prune.rewrite import prune
from edgeopt.records.low_rank import Factorization

FLOAT32 = 1e-5


class Mixed(nn.Module):
    """Every kind of layer that can become two, and those that cannot."""

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


def test_grouped_and_tied_layers_keep_their_form(network):
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
def test_at_full_rank_each_layer_computes_what_it_did(network, name, form, rank):
    assert form in factorizable_layers(network.eval_module)[name].forms
    made = factorize(network, {name: Factorization(rank=rank, form=form)}, BATCHES)
    expected = outputs(network, a_batch())
    assert (outputs(made, a_batch()) - expected).abs().max() < FLOAT32 * expected.abs().max()


def test_the_input_is_left_as_it_was_and_the_same_comes_out_twice(network):
    before = {name: value.clone() for name, value in network.state().items()}
    first, second = factorize(network, LOW, BATCHES), factorize(network, LOW, BATCHES)
    assert all(torch.equal(before[name], value) for name, value in network.state().items())
    assert all(torch.equal(value, second.state()[name]) for name, value in first.state().items())
    assert sum(value.numel() for value in first.parameters().values()) < 0.6 * sum(
        value.numel() for value in network.parameters().values()
    )


def test_the_proof_holds_and_finds_a_changed_tensor_or_graph(network):
    made = factorize(network, LOW, BATCHES)
    assert verify_factorization(network, LOW, made, [a_batch()]) < 1e-12
    changed = made.copy()
    with torch.no_grad():
        changed.state()["tied.weight"][0, 0] += 1
    with pytest.raises(ParityError, match=r"tied\.weight"):
        verify_factorization(network, LOW, changed, [a_batch()])
    other = copy.deepcopy(LOW) | {"wide.weight": Factorization(rank=16, form="pointwise")}
    with pytest.raises(ParityError, match="not the one that was proven"):
        verify_factorization(network, other, made, [a_batch()])


def test_a_saved_network_of_low_rank_is_rebuilt_and_pruned_before_and_after(network, tmp_path):
    groups = analyse(network)
    smaller = prune(network, groups, random_keep(groups, 0.7, 0))
    low = {name: Factorization(rank=8, form=one.form) for name, one in FULL.items()}
    made = factorize(smaller, low, BATCHES)
    groups = analyse(made)
    assert {"head.0", "wide.0", "line.0", "plain.0"} <= set(groups.free)  # the channels between are channels
    keep = random_keep(groups, 0.7, 1)
    last = prune(made, groups, keep)
    verify(made, groups, keep, last, made.example_inputs)
    for index, one in enumerate((made, last)):
        one.save(tmp_path / f"{index}.safetensors")
        again = Network.load(tmp_path / f"{index}.safetensors", network)
        assert again.factors == low
        assert torch.equal(outputs(again, a_batch()), outputs(one, a_batch()))


def test_one_training_step_reaches_both_halves(network):
    made = factorize(network, LOW, BATCHES)
    made.train_module(a_batch()).square().sum().backward()
    for name in ("head.0.weight", "head.1.weight", "wide.0.weight", "wide.1.weight"):
        assert made.parameters()[name].grad.abs().sum() > 0


def test_ranks_follow_what_the_layer_answers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 96)).eval()
    inputs = torch.randn(512, 8) @ torch.randn(8, 128)  # eight directions only, though the weight has full rank
    network = Network.trace(net, (inputs[:2],))
    table = low_rank_table(network, [((inputs,), None)], (0.001, 0.1), 4)
    first = next(row for row in table.layers if row.weight == "0.weight")
    assert first.choices[0].factor == Factorization(rank=8, form="pointwise")
    assert first.choices[1].factor.rank <= 8
    for row in table.layers:
        for loss, choice in zip(table.losses, row.choices, strict=True):
            if choice is not None:
                assert choice.output_loss_ratio <= loss
                assert choice.parameters < 0.75 * 128 * row.shape[0]
    assert table.parameters == 128 * 128 + 128 + 128 * 96 + 96


def test_a_layer_that_is_not_there_is_named(network):
    with pytest.raises(StepError, match=r"no layer \['gone\.weight'\]"):
        factorize(network, {"gone.weight": Factorization(rank=8, form="pointwise")}, BATCHES)
