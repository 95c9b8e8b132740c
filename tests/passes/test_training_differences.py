"""What a model does only in training: the traced network does it too, or its notes name it."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.proof import verify_pruning
from edgeopt.passes.prune.rewrite import prune
from edgeopt.passes.training_run import run_module

DROPPED_RATIO = 0.25


class Stochastic(nn.Module):
    """Stochastic depth, as timm and torchvision have it: identity in evaluation."""

    def forward(self, x):
        if not self.training:
            return x
        kept = 1 - DROPPED_RATIO
        return x * x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(kept) / kept


class Residual(nn.Module):
    def __init__(self, branch, drop):
        super().__init__()
        self.stem, self.branch, self.drop = nn.Conv2d(3, 8, 3, padding=1), branch, drop
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.head((x + self.drop(self.branch(x))).mean((2, 3)))


class Auxiliary(nn.Module):
    """A second head that runs only in training, as in GoogLeNet."""

    def __init__(self):
        super().__init__()
        self.stem, self.head, self.aux = nn.Linear(6, 8), nn.Linear(8, 4), nn.Sequential(nn.Linear(8, 4))

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


class Attention(nn.Module):
    def __init__(self, need_weights):
        super().__init__()
        self.attention, self.need_weights = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True), need_weights
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=self.need_weights)[0])


class Functional(nn.Module):
    """Stochastic depth by a function, which a trace of the evaluation does not show."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        y = self.layer(x)
        return x + (y * torch.empty(len(y), 1).bernoulli_(0.5) if self.training else y)


class FusedAttention(nn.Module):
    """Attention without a dropout, whose fused operator is tagged as random all the same."""

    def forward(self, x):
        return functional.scaled_dot_product_attention(x, x, x, is_causal=True)


class Probabilities(nn.Module):
    """Logits in training, probabilities in evaluation."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        y = self.layer(x)
        return y if self.training else y.softmax(1)


class NeedsTargets(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x, targets=None):
        if self.training and targets is None:
            raise ValueError("targets should be given in training")
        return self.layer(x)


def traced(model, *shape):
    torch.manual_seed(0)
    return Network.trace(model, (torch.randn(*shape),))


def is_random(network):
    inputs = network.example_inputs
    return not torch.equal(network.train_module(*inputs), network.train_module(*inputs))


def test_stochastic_depth_drops_whole_samples_and_scales_the_others():
    network = traced(Residual(nn.Conv2d(8, 8, 3, padding=1), Stochastic()), 64, 3, 6, 6)
    assert network.notes == ()
    with torch.no_grad():
        assert torch.ops.aten.feature_dropout.default in {node.target for node in network.train_module.graph.nodes}
        identity = traced(Residual(nn.Identity(), Stochastic()), 64, 3, 6, 6)
        plain, (x,) = identity.eval_module(*identity.example_inputs), identity.example_inputs
        state = identity.state()
        features = torch.relu(functional.conv2d(x, state["stem.weight"], state["stem.bias"], padding=1)).mean((2, 3))
        alone = functional.linear(features, state["head.weight"], state["head.bias"])
        scaled = functional.linear(features * (1 + 1 / (1 - DROPPED_RATIO)), state["head.weight"], state["head.bias"])
        found = identity.train_module(x)
    is_dropped = torch.isclose(found, alone, atol=1e-5).all(1)
    is_scaled = torch.isclose(found, scaled, atol=1e-5).all(1)
    assert bool((is_dropped | is_scaled).all())
    assert 0 < int(is_dropped.sum()) < 32
    assert not torch.allclose(plain, found)


def test_stochastic_depth_stays_through_a_cut_that_is_proven():
    network = traced(Residual(nn.Conv2d(8, 8, 3, padding=1), Stochastic()), 4, 3, 6, 6)
    groups = analyse(network)
    keep = {name: range(group.channels // 2) for name, group in groups.free.items()}
    assert keep
    pruned = prune(network, groups, keep)
    verify_pruning(network, groups, keep, pruned, network.example_inputs)
    assert is_random(pruned)
    assert is_random(pruned.copy())
    assert torch.equal(pruned.eval_module(*pruned.example_inputs), pruned.eval_module(*pruned.example_inputs))


@pytest.mark.parametrize("need_weights", [False, True])
def test_attention_dropout_is_active_in_training_only(need_weights):
    model = Attention(need_weights).eval()
    network = traced(model, 4, 5, 8)
    assert network.notes == ()
    assert is_random(network)
    expected = model(*network.example_inputs)
    torch.testing.assert_close(network.eval_module(*network.example_inputs), expected)


def test_running_statistics_of_instance_norm_are_trained():
    norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
    network = traced(Residual(norm, nn.Dropout(0.1)), 4, 3, 6, 6)
    before = network.state()["branch.running_mean"].clone()
    network.train_module(*network.example_inputs)
    assert network.notes == ()
    assert not torch.equal(network.state()["branch.running_mean"], before)


def test_statistics_averaged_over_all_batches_become_moving_averages():
    network = traced(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, momentum=None)).eval(), 4, 6)
    before = network.state()["1.running_mean"].clone()
    network.train_module(*network.example_inputs)
    assert network.notes == ()
    assert not torch.equal(network.state()["1.running_mean"], before)


@pytest.mark.parametrize(
    ("make", "shape", "notes"),
    [
        (
            Auxiliary,
            (4, 6),
            [
                "aux runs only in training: left out, and its part of the loss too",
                r"forward\(\) gives 2 outputs of shape \(4, 4\), \(4, 4\) in training and 1 output of shape",
            ],
        ),
        (FusedAttention, (4, 2, 5, 8), []),
        (Functional, (4, 6), [r"forward\(\) \(Functional\) is random in training: left out"]),
        (
            lambda: nn.Sequential(spectral_norm(nn.Linear(6, 6)), nn.ReLU()),
            (4, 6),
            [r"0\.parametrizations\.weight\.original has the spectral norm folded in; candidates train without it"],
        ),
        (
            lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, momentum=0.0)),
            (4, 6),
            [],
        ),
        (Probabilities, (4, 6), ["softmax runs only in evaluation; candidates train on the result"]),
        (NeedsTargets, (4, 6), [r"does not run in training mode on the inputs alone \(ValueError: targets should be"]),
        (lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.BatchNorm1d(6)), (4, 6), []),
        (lambda: nn.LSTM(6, 6, 2, dropout=0.5, batch_first=True), (4, 5, 6), []),
    ],
    ids=[
        "auxiliary head",
        "fused attention",
        "function",
        "spectral norm",
        "fixed average",
        "probabilities",
        "targets",
        "plain",
        "lstm",
    ],
)
def test_what_only_training_does_is_named(make, shape, notes):
    model = make().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = traced(model, *shape).notes
    assert len(found) == len(notes)
    for note, expected in zip(found, notes, strict=True):
        assert note.startswith("Training differs from the model's own: ")
        assert re.search(expected, note), note
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())


class Remembers(nn.Module):
    """Keeps what it saw, in an attribute and in a list."""

    def __init__(self):
        super().__init__()
        self.layer, self.last, self.seen = nn.Linear(6, 6), None, []
        self.register_buffer("positions", torch.arange(1.0).expand(6))

    def forward(self, x):
        y = self.layer(x)
        self.seen.append(y)
        self.last = y if self.last is None else self.last + y
        return self.last


def test_runs_that_compare_the_modes_leave_no_trace_in_the_model():
    model = Remembers().eval()
    run_module(model, (torch.randn(4, 6),))
    run_module(model.train(), (torch.randn(4, 6),))
    assert model.last is None
    assert model.seen == []
