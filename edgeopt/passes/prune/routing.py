"""Routing statistics: how much of a softmax, or how many of the best picked, each channel gets on training batches.

An expert that is lost has a logit of minus infinity, which no weight at zero imitates: what a method says of the
router's row means nothing. So the importance of the whole group is shared out by these statistics.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from edgeopt.passes.aten import aten
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import Groups
from edgeopt.passes.prune.interpret import execute
from edgeopt.passes.prune.labels import Marked, varying_dims

_SOFTMAX = (aten.softmax, aten._softmax)
_Floats = npt.NDArray[np.float64]


class _Line(NamedTuple):
    """Positions along a dimension of an operator's input, and the channels of a group that they are."""

    group: str
    dim: int
    channels: npt.NDArray[np.int64]
    """Of each position."""


def routing_shares(network: Network, groups: Groups, batches: Iterable[tuple[Tensor, ...]]) -> dict[str, _Floats]:
    """Return the share of each channel of the free groups that a softmax weighs or ``topk`` picks from.

    Args:
        network: The network that ``groups`` was made from.
        groups: The result of ``analyse``.
        batches: Inputs.

    Returns:
        Group name to one share for each channel, with a sum of 1: the mean over the group's operators of the mean
        weight in a softmax, or of how often ``topk`` picks the channel.
    """
    lines = _find_lines(network, groups)
    sums = {node: np.zeros(len(line.channels)) for node, line in lines.items()}
    for inputs in batches if lines else ():
        for node, value in execute(network.eval_module, inputs):
            if node in lines:
                sums[node] += _weigh(node, value, lines[node])
    shares: dict[str, _Floats] = {}
    for node, line in lines.items():
        if sums[node].sum() > 0:
            channels = groups.groups[line.group].channels
            share = np.bincount(line.channels, sums[node], channels) / sums[node].sum()
            shares[line.group] = shares.get(line.group, np.zeros(channels)) + share
    return {name: share / share.sum() for name, share in shares.items()}


def _find_lines(network: Network, groups: Groups) -> dict[fx.Node, _Line]:
    """Return the operators that weigh or pick all channels of a free group."""
    slots = groups.marks.labels.slots
    owners = {
        slots[slot].start + index: (name, channel)
        for name, group in groups.free.items()
        for slot, indices in group.slots.items()
        for channel, row in enumerate(indices.tolist())
        for index in row
    }
    lines: dict[fx.Node, _Line] = {}
    for node in network.eval_module.graph.nodes:
        packet = getattr(node.target, "overloadpacket", None)
        if packet not in _SOFTMAX and packet is not aten.topk:
            continue
        marked = groups.marks.values[node.args[0].name]
        position = 1 if packet in _SOFTMAX else 2
        dim = node.args[position] if len(node.args) > position else node.kwargs.get("dim", -1)
        dim %= len(marked.shape)
        for layer in marked.layers if isinstance(marked, Marked) else ():
            found = [owners.get(label) for label in layer.reshape(-1).tolist()]
            names = {None if one is None else one[0] for one in found}
            if varying_dims(layer) == (dim,) and len(names) == 1 and None not in names:
                channels = np.array([one[1] for one in found if one is not None], dtype=np.int64)
                lines[node] = _Line(str(names.pop()), dim, channels)
    return lines


def _weigh(node: fx.Node, value: Any, line: _Line) -> _Floats:
    """Return the summed weight of each position, or how often it is picked."""
    if isinstance(value, Tensor):
        weights: _Floats = value.detach().movedim(line.dim, 0).flatten(1).sum(1, dtype=torch.float64).numpy()
        return weights
    picked = value[1].reshape(-1).numpy()
    return np.bincount(picked, minlength=len(line.channels)).astype(np.float64)
