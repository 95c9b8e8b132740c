"""Group lasso: a training before a cut shrinks whole channels, so that what the cut removes was nearly nothing.

The penalty is the sum over all channels that can go of the norm of everything that goes with a channel: its rows and
columns of every tensor. A channel weighs up to ``2**4`` times as much as the strongest of its group, by how weak it
was when the epoch began (Fang et al., 2023, DepGraph, section 3.3), and the whole grows from nothing over the training
(Wang et al., 2021, GReg), so that the network moves what it knows elsewhere while it can.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse

MOST = 4.0
"""Binary logarithm of how much more the weakest channel of a group is penalized than the strongest."""
SMALLEST = 1e-12


class GroupLasso:
    """The penalty on one network's channels.

    Args:
        network: Whose train and eval module share the parameters.
        strength: Of the penalty at the end of the training.
    """

    def __init__(self, network: Network, strength: float) -> None:
        self.strength = strength
        names = network.parameters()
        self.groups = [
            [(name, dim, torch.from_numpy(indices)) for (name, dim), indices in group.slots.items() if name in names]
            for group in analyse(network).free.values()
        ]
        self.weights: list[Tensor] = []

    def norms(self, module: nn.Module) -> list[Tensor]:
        """Return the norm of each channel of each group."""
        tensors = dict(module.named_parameters())
        found = []
        for slots in self.groups:
            squares = [
                tensors[name].square().transpose(0, dim).flatten(1).sum(1)[indices].sum(1)
                if tensors[name].dim() > 1
                else tensors[name].square()[indices].sum(1)
                for name, dim, indices in slots
            ]
            found.append(torch.stack(squares).sum(0).clamp_min(SMALLEST).sqrt())
        return found

    def begin_epoch(self, module: nn.Module) -> None:
        """Weigh the channels by how strong they are now."""
        with torch.no_grad():
            self.weights = []
            for norm in self.norms(module):
                span = (norm.max() - norm.min()).clamp_min(SMALLEST)
                self.weights.append(2.0 ** (MOST * (norm.max() - norm) / span))

    def penalty(self, module: nn.Module, progress: float) -> Tensor:
        """Return what is added to the loss at ``progress`` (0..1) of the training."""
        parts = [(weight * norm).sum() for weight, norm in zip(self.weights, self.norms(module), strict=True)]
        return self.strength * progress * torch.stack(parts).sum() if parts else torch.zeros(())
