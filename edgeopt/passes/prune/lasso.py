"""Group lasso: a penalty that shrinks whole channels during a training, so that the cut after it removes little.

In: a ``Network`` and a strength. Out: a term of the loss. The penalty sums the norms of all channels that can go; a
channel's norm covers all of its rows and columns in all tensors. Each channel has a weight, from 1 for the strongest of
its group to ``2**4`` for the weakest at the start of the epoch (Fang et al., 2023, DepGraph, section 3.3). The penalty
grows from zero over the training (Wang et al., 2021, GReg), so that the network has time to move its knowledge to other
channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse

_MAX_WEIGHT_LOG2 = 4.0
"""Binary logarithm of the weight of a group's weakest channel; its strongest has weight 1."""
_EPSILON = 1e-12


class GroupLasso:
    """The penalty on one network's channels.

    Args:
        network: The network; its train and eval modules share the parameters.
        strength: Strength of the penalty at the end of the training.
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
        norms = []
        for slots in self.groups:
            squares = [
                tensors[name].square().transpose(0, dim).flatten(1).sum(1)[indices].sum(1)
                if tensors[name].dim() > 1
                else tensors[name].square()[indices].sum(1)
                for name, dim, indices in slots
            ]
            norms.append(torch.stack(squares).sum(0).clamp_min(_EPSILON).sqrt())
        return norms

    def begin_epoch(self, module: nn.Module) -> None:
        """Set the channels' weights from their current norms."""
        with torch.no_grad():
            self.weights = []
            for norm in self.norms(module):
                span = (norm.max() - norm.min()).clamp_min(_EPSILON)
                self.weights.append(2.0 ** (_MAX_WEIGHT_LOG2 * (norm.max() - norm) / span))

    def penalty(self, module: nn.Module, progress: float) -> Tensor:
        """Return the term to add to the loss at ``progress`` (0..1) of the training."""
        terms = [(weight * norm).sum() for weight, norm in zip(self.weights, self.norms(module), strict=True)]
        return self.strength * progress * torch.stack(terms).sum() if terms else torch.zeros(())
