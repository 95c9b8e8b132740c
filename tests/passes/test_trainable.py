"""Every parameter of a traced network can be trained, however the user froze it."""

import pytest
import torch
from torch import nn

from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.importance import score_channels
from edgeopt.passes.tracing.trainable import FROZEN_NOTE
from edgeopt.records.recipe import Importance


def layers():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip


class Backbone(nn.Module):
    """A head on a backbone that gets no gradient."""

    def __init__(self, how):
        super().__init__()
        self.backbone, self.head, self.how = layers()[:4], layers()[4:], how

    def forward(self, x):
        if self.how == "detach":
            return self.head(self.backbone(x).detach())
        with torch.no_grad():
            y = self.backbone(x)
        return self.head(y)


class Decorated(nn.Module):
    """A network written for inference only."""

    def __init__(self):
        super().__init__()
        self.layers = layers()

    @torch.no_grad()
    def forward(self, x):
        return self.layers(x)


def all_frozen():
    return layers().requires_grad_(False)


def first_layers_frozen():
    model = layers()
    model[:2].requires_grad_(False)
    return model


def tied_and_frozen():
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), first, nn.ReLU(), second)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "note"),
    [
        (all_frozen, "All parameters"),
        (first_layers_frozen, "4 of 8 parameters"),
        (tied_and_frozen, "All parameters"),
        (Decorated, "All parameters"),
        (lambda: Backbone("no_grad"), "6 of 8 parameters"),
        (lambda: Backbone("detach"), "6 of 8 parameters"),
    ],
)
def test_frozen_parameters_are_trained_and_the_notes_say_so(make, note):
    model = make().eval()
    flags = [value.requires_grad for value in model.parameters()]
    inputs, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    network = Network.trace(model, (inputs,))
    assert any(note in one and one.endswith(FROZEN_NOTE) for one in network.notes)
    nn.functional.cross_entropy(network.train_module(inputs), labels).backward()
    assert all(value.grad is not None for value in network.parameters().values())
    assert [value.requires_grad for value in model.parameters()] == flags
    groups = analyse(network)
    scores = score_channels(network, groups, Importance(), [(inputs, labels)], nn.functional.cross_entropy)
    assert scores.keys() == groups.free.keys()
    assert all(values.sum() > 0 for values in scores.values())


class StraightThrough(nn.Module):
    """Rounds its weight, with the gradient passed straight through."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        weight = self.layer.weight
        rounded = weight + (weight.round() - weight).detach()
        return nn.functional.linear(x, rounded, self.layer.bias)


def test_a_straight_through_estimator_stays_one_and_a_trainable_network_has_no_note():
    network = Network.trace(StraightThrough().eval(), (torch.randn(2, 4),))
    assert network.notes == ()
    network.train_module(torch.ones(2, 4)).sum().backward()
    gradient = network.parameters()["layer.weight"].grad
    assert torch.equal(gradient, torch.full((4, 4), 2.0))  # without the detaching it would be zero
