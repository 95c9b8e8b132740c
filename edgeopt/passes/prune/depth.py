"""Depth: which branches of a network can be left out by channels at zero, and what that costs before any training.

In: a ``Network`` with its groups. Out: its branches whose inner channels are groups of their own, each with the loss
without it, and the loss with the more important half of these channels. The second number makes the first comparable
with the importance of channels: both are seen without training.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from edgeopt.errors import InputError, StepError
from edgeopt.passes.branches.residual import ResidualBranch, copy_without
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import Groups
from edgeopt.passes.prune.importance import Scores, as_inputs, choose_strongest

_logger = logging.getLogger(__name__)

_RUNS = 48
"""Most runs of the network on one batch, for all branches together; each branch has two in any case."""


class InnerBranch(NamedTuple):
    """A branch and the groups whose channels are only in it."""

    branch: ResidualBranch
    groups: tuple[str, ...]
    """That can lose channels."""
    frozen: tuple[str, ...]
    """That can only go with the whole branch."""


class BranchLoss(NamedTuple):
    """By how much the loss rises, without training."""

    without: float
    half: float
    """With the more important half of the channels of each of its groups."""


def inner_branches(network: Network, groups: Groups) -> list[InnerBranch]:
    """Return the branches that zero channels can leave out; no group is in two of them.

    Of branches inside of each other, the inner ones are returned. Without all of them, the network still has parameters
    and uses all of its inputs.
    """
    found: list[InnerBranch] = []
    taken: set[str] = set()
    for branch in sorted(network.branches(), key=lambda branch: len(branch.nodes)):
        inside = [
            name for name, group in groups.groups.items() if branch.tensors.issuperset(slot[0] for slot in group.slots)
        ]
        free = tuple(name for name in inside if name in groups.free)
        frozen = tuple(name for name in inside if name not in groups.free)
        one = InnerBranch(branch, free, frozen)
        if free and taken.isdisjoint(inside) and _leaves_a_network(network, [*found, one]):
            found.append(one)
            taken.update(inside)
    order = {node.name: place for place, node in enumerate(network.eval_module.graph.nodes)}
    return sorted(found, key=lambda one: order[one.branch.sum])


def _leaves_a_network(network: Network, branches: Sequence[InnerBranch]) -> bool:
    """Tell whether parameters are left and every input is used if all of these branches go."""
    tensors = {name for one in branches for name in one.branch.tensors}
    nodes = {name for one in branches for name in one.branch.nodes}
    inputs = [node for node in network.eval_module.graph.nodes if node.op == "placeholder" and node.users]
    return not tensors.issuperset(network.parameters()) and all(
        any(user.name not in nodes for user in node.users) for node in inputs
    )


def split_zeros(
    network: Network, groups: Groups, keep: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Sequence[int]], list[ResidualBranch]]:
    """Return the channels to keep of all groups that keep some, and the branches that the others leave out.

    Raises:
        InputError: a group keeps no channel, and it is in no branch, or other groups of its branch keep some.
    """
    empty = {name for name, channels in keep.items() if len(channels) == 0}
    if not empty:
        return dict(keep), []
    gone = [one for one in inner_branches(network, groups) if empty.issuperset(one.groups)]
    explained = {name for one in gone for name in one.groups}
    if unexplained := sorted(empty - explained):
        raise InputError(
            f"Group '{unexplained[0]}' keeps at least one channel: only a branch that is added to what goes around it "
            "can lose all, of all of its groups."
        )
    return {name: channels for name, channels in keep.items() if name not in empty}, [one.branch for one in gone]


def measure_branches(
    network: Network,
    groups: Groups,
    branches: Sequence[InnerBranch],
    scores: Scores,
    batches: Collection[tuple[Any, Any]],
    loss: Callable[[Any, Any], Tensor],
) -> dict[str, BranchLoss]:
    """Measure what each branch is worth, by its name, without training; a branch that cannot be measured is missing.

    Args:
        network: The network; it is not changed.
        groups: The result of ``analyse``.
        branches: The result of ``inner_branches``.
        scores: Of all channels.
        batches: Pairs of inputs and targets.
        loss: Function of outputs and targets.
    """
    if not branches or not batches:
        return {}
    used = list(batches)[: max(1, _RUNS // (2 * len(branches)))]

    def mean_loss(module: fx.GraphModule) -> float:
        with torch.no_grad():
            return sum(float(loss(module(*as_inputs(inputs)), targets)) for inputs, targets in used) / len(used)

    try:
        full = mean_loss(network.eval_module)
    except (RuntimeError, ValueError) as error:  # the user's loss, which a training would say better
        _logger.debug("no branch is offered: %s", error)
        return {}
    found = {}
    for branch, names, _ in branches:
        half = {name: max(groups.groups[name].least, groups.groups[name].channels // 2) for name in names}
        try:
            without = mean_loss(copy_without(network.eval_module, [(branch.sum, branch.operand)]))
            cut = network.cut(groups.kept(choose_strongest(scores, half)), groups.marks)
            losses = BranchLoss(without - full, mean_loss(cut.eval_module) - full)
        except (StepError, RuntimeError, ValueError) as error:  # a half that cannot be cut or run, or the user's loss
            _logger.debug("branch %s is not offered: %s", branch.name, error)
            continue
        if all(map(math.isfinite, losses)):
            found[branch.name] = losses
    return found
