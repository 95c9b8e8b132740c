"""A model that computes a part of itself in 16 bits under autocast is traced as it computes without."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo_networks import random_keep

from edgeopt.errors import StepError
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.proof import PROOF_TOLERANCE, verify_pruning
from edgeopt.passes.prune.rewrite import prune

FLOAT32_TOLERANCE = 1e-5
"""16 bits are off by more than 1e-3."""


class Backbone(nn.Module):
    """A backbone under autocast and a head in float32, as detectors that train in mixed precision have."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.body = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 24, 3, 2, 1)
        self.scale, self.mix, self.head = nn.Parameter(torch.randn(24)), nn.Linear(24, 24), nn.Linear(24, 5)
        self.mixed = torch.autocast("cpu", dtype=torch.bfloat16)

    def forward(self, x):
        with self.mixed:
            x = F.relu(self.body(F.relu(self.norm(self.stem(x)))))
            pooled = x.mean((2, 3))
            pooled = self.mix((pooled.float() * self.scale).to(pooled.dtype))
        return self.head(pooled.float())


class Halved(nn.Module):
    """Runs only under autocast, which takes a half input and a float32 weight."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.last(self.first(x.bfloat16())).float()


def test_a_part_under_autocast_is_traced_in_float32_pruned_and_named():
    torch.manual_seed(0)
    model, x = Backbone().eval(), torch.randn(4, 3, 16, 16)
    network = Network.trace(model, (x,))
    with torch.autocast("cpu", enabled=False), torch.no_grad():
        pooled = F.relu(model.body(F.relu(model.norm(model.stem(x))))).mean((2, 3))
        expected = model.head(model.mix(pooled * model.scale))
    assert torch.allclose(network.eval_module(x), expected, atol=FLOAT32_TOLERANCE)
    assert any("autocast" in note and "float32" in note for note in network.notes)
    groups = analyse(network)
    assert {group.channels for group in groups.free.values()} == {16, 24}
    keep = random_keep(groups, 0.5, seed=1)
    assert verify_pruning(network, groups, keep, prune(network, groups, keep), (x,)) < PROOF_TOLERANCE
    with model.mixed:  # it works as before
        assert model.stem(x).dtype == torch.bfloat16


def test_a_part_with_autocast_turned_off_needs_no_note():
    class Off(Halved):
        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                return self.last(self.first(x))

    assert Network.trace(Off(), (torch.randn(2, 6),)).notes == ()


def test_a_part_that_runs_only_under_autocast_is_refused_with_what_to_write_instead():
    with pytest.raises(StepError, match=r"autocast off.*bfloat16\(\)"):
        Network.trace(Halved(), (torch.randn(2, 6),))
