"""Importance: one score for each channel of each group that can go; higher means keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgeopt.errors import DivergedError, InputError
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import Group, Groups
from edgeopt.records.recipe import Importance

Scores = dict[str, npt.NDArray[np.float64]]
Batch = tuple[Any, Any]
"""Inputs (a tensor or a tuple of them) and targets."""


def importance(
    network: Network,
    groups: Groups,
    method: Importance,
    batches: Iterable[Batch] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
) -> Scores:
    """Score every channel of the groups that can go.

    ``l1`` and ``l2`` are norms of all weights that would leave with a channel (Li et al., 2017). Sizes of weights in
    different layers have no common unit, so they are divided by the group's mean: scores of a group average 1.

    ``taylor`` estimates how much the loss changes without the channel (Molchanov et al., 2019, equation 8): the sum
    over its slots of ``|sum over the slot of gradient * weight|``, averaged over batches. The absolute value is taken
    for each batch, because at the end of a training the gradients of all batches add up to nearly nothing. Every score
    is in the unit of the loss, so groups compare as they are and nothing is normalised.

    Args:
        network: The network that ``groups`` was made from; its tensors are left as they are.
        groups: What ``analyse`` gave.
        method: How to score.
        batches: For ``taylor``: pairs of inputs and targets.
        loss: For ``taylor``: the loss of outputs and targets.

    Returns:
        Group name to one score a channel.

    Raises:
        InputError: ``taylor`` without batches or loss.
        DivergedError: the loss or its gradient is not finite.
    """
    weights = {name: parameter.detach() for name, parameter in network.parameters().items()}
    if method == "l1":
        sums = _summed(groups, {name: weight.abs() for name, weight in weights.items()}, np.asarray)
        return {name: _relative(score) for name, score in sums.items()}
    if method == "l2":
        sums = _summed(groups, {name: weight.square() for name, weight in weights.items()}, np.asarray)
        return {name: _relative(np.sqrt(score)) for name, score in sums.items()}
    if batches is None or loss is None:
        raise InputError("Importance 'taylor' needs training batches and a loss; give both, or use 'l1' or 'l2'.")
    return _taylor(network, groups, batches, loss)


def strongest(
    scores: Mapping[str, Sequence[float] | npt.NDArray[np.float64]], widths: Mapping[str, int]
) -> dict[str, list[int]]:
    """Choose the channels to keep: in each group the ``widths[group]`` ones that score highest, in their old order."""
    order = {name: np.argsort(-np.asarray(scores[name]), kind="stable") for name in widths}
    return {name: sorted(order[name][:width].tolist()) for name, width in widths.items()}


def _taylor(network: Network, groups: Groups, batches: Iterable[Batch], loss: Callable[[Any, Any], Tensor]) -> Scores:
    parameters = network.parameters()
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    total: Scores = {}
    count = 0
    for inputs, targets in batches:
        outputs = network.eval_module(*(inputs if isinstance(inputs, (tuple, list)) else (inputs,)))
        value = loss(outputs, targets)
        gradients = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
        products = {
            name: gradient * parameter.detach()
            for (name, parameter), gradient in zip(trained.items(), gradients, strict=True)
            if gradient is not None
        }
        for name, score in _summed(groups, products, np.abs).items():
            total[name] = total.get(name, 0.0) + score
        count += 1
    if count == 0:
        raise InputError("Importance 'taylor' got no batch; give at least one.")
    if not all(np.isfinite(score).all() for score in total.values()):
        raise DivergedError("prune", "the loss or its gradient is not finite on the training batches; check the model.")
    return {name: score / count for name, score in total.items()}


def _summed(groups: Groups, values: Mapping[str, Tensor], of_slot: Callable[[Any], Any]) -> Scores:
    """Add up, for each channel, ``of_slot`` of the sum of ``values`` over each of its slots."""
    lines: dict[tuple[str, int], npt.NDArray[np.float64]] = {}

    def score(group: Group) -> npt.NDArray[np.float64]:
        total = np.zeros(group.channels)
        for slot, indices in group.slots.items():
            name, dim = slot
            if name not in values:
                continue
            if slot not in lines:
                rows = values[name].movedim(dim, 0).flatten(1) if values[name].ndim > 1 else values[name][:, None]
                lines[slot] = rows.sum(1, dtype=torch.float64).cpu().numpy()
            total += of_slot(lines[slot][indices].sum(axis=1))
        return total

    return {name: score(group) for name, group in groups.free.items()}


def _relative(score: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    mean = float(score.mean())
    return score / mean if mean > 0 else score
