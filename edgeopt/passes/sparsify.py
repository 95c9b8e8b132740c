"""Unstructured sparsity: single weights become zero and stay zero. It shrinks the download, not the latency."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.records.recipe import Sparsify
from edgeopt.records.sparsity import SparsityPoint

_Batch = tuple[tuple[Tensor, ...], Any]
_Loss = Callable[[Any, Any], Tensor]
Masks = dict[str, Tensor]
"""Parameter name to a boolean mask, True where a weight stays."""
GROWTH_RATIO = 0.6
"""Share of the epochs in which a gradual schedule reaches its ratio; the rest trains what is left."""


def prunable(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that may become sparse: all with at least two dimensions (no biases, no norms)."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.dim() >= 2}


def saliency(module: nn.Module, method: str, batches: Sequence[_Batch], loss: _Loss) -> dict[str, Tensor]:
    """Return one score a weight, in the weights' shapes; the smallest go first. A weight of zero scores zero.

    ``magnitude`` is the absolute value (Han et al., 2015). With ``g`` the gradient on one batch, ``gradient`` is
    ``|w * sum of g|`` over all batches (Lee et al., 2019, SNIP) and ``taylor`` the sum of ``|w * g|`` (Molchanov et
    al., 2019): the second still tells weights apart where a training has ended and gradients cancel.
    """
    weights = prunable(module)
    if method == "magnitude":
        return {name: weight.detach().abs() for name, weight in weights.items()}
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for inputs, targets in batches:
        gradients = torch.autograd.grad(loss(module(*inputs), targets), list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                sums[name] += gradient if method == "gradient" else gradient.abs()
    return {name: (sums[name] * weight.detach()).abs() for name, weight in weights.items()}


def keep_masks(scores: dict[str, Tensor], ratio: float, scope: str, block: int = 0) -> Masks:
    """Return the masks with which a share ``ratio`` of the weights goes.

    ``global`` takes it of all parameters together, ``layer`` of each, ``block`` of every ``block`` neighbours among
    the weights of one output (ratio 0.5 and block 4 is the 2:4 pattern; a rest that fills no block stays). Ties go by
    position, so the count is exact.
    """
    if scope == "block":
        return {name: _blocks(score, ratio, block) for name, score in scores.items()}
    if scope == "layer":
        return {name: _largest(score.flatten(), ratio).view_as(score) for name, score in scores.items()}
    kept = _largest(torch.cat([score.flatten() for score in scores.values()]), ratio)
    parts = torch.split(kept, [score.numel() for score in scores.values()])
    return {name: part.view_as(score) for (name, score), part in zip(scores.items(), parts, strict=True)}


def _largest(scores: Tensor, ratio: float) -> Tensor:
    """Mask the largest entries of each row of the last dimension."""
    order = torch.argsort(scores, dim=-1, stable=True)
    gone = order[..., : round(ratio * scores.shape[-1])]
    return torch.ones(scores.shape, dtype=torch.bool).scatter(
        -1, gone, torch.zeros((), dtype=torch.bool).expand_as(gone)
    )


def _blocks(score: Tensor, ratio: float, block: int) -> Tensor:
    rows = score.flatten(1)
    whole = rows.shape[1] // block * block
    mask = torch.ones(rows.shape, dtype=torch.bool)
    mask[:, :whole] = _largest(rows[:, :whole].reshape(len(rows), -1, block), ratio).flatten(1)
    return mask.view_as(score)


def apply_masks(module: nn.Module, masks: Masks) -> None:
    """Zero the masked weights of ``module`` in place."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in masks:
                parameter.mul_(masks[name])


CURVE_RATIOS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Shares of zeros at which a curve has its points."""


def loss_curve(
    module: nn.Module, method: str, batches: Sequence[_Batch], held_back: Sequence[_Batch], loss: _Loss
) -> tuple[SparsityPoint, ...]:
    """Return the loss against the share of weights that are not zero, without training; ``module`` is left as it is.

    Args:
        module: The network.
        method: As in ``saliency``; zeros are taken of all weights together.
        batches: For the methods with gradients.
        held_back: Other batches, on which the loss is taken.
        loss: Of outputs and targets.
    """
    scores = saliency(module, method, batches, loss)
    points = []
    for ratio in CURVE_RATIOS:
        zeroed = copy.deepcopy(module)
        apply_masks(zeroed, keep_masks(scores, ratio, "global"))
        with torch.no_grad():
            losses = [float(loss(zeroed(*inputs), targets)) for inputs, targets in held_back]
        points.append(SparsityPoint(nonzero_ratio=1 - ratio, loss=sum(losses) / len(losses)))
    return tuple(points)


class Sparsity:
    """Which weights are zero in which epoch of a training.

    Masks are made anew at the start of each epoch while the ratio grows, from the weights as they are then; what is
    zero scores zero and stays. So they depend on nothing but those weights, and a resumed training has the same.

    Args:
        step: Method, ratio, scope and schedule.
        batches: For the methods with gradients.
        loss: Of outputs and targets.
        epochs: Of the training; 0 where none follows.
    """

    def __init__(self, step: Sparsify, batches: Sequence[_Batch], loss: _Loss, epochs: int) -> None:
        self.step = step
        self.batches = batches
        self.loss = loss
        self.growth = max(1, math.ceil(GROWTH_RATIO * epochs)) if step.schedule == "cubic" else 1

    def ratio(self, epoch: int) -> float:
        """Return the share of zeros in an epoch: at once, or on a cubic to the full one (Zhu and Gupta, 2017)."""
        left = max(0.0, 1 - (epoch + 1) / self.growth)
        return self.step.ratio * (1 - left**3)

    def is_full(self, epoch: int) -> bool:
        """Tell whether an epoch trains with all the zeros that were asked for."""
        return epoch + 1 >= self.growth

    def masks(self, module: nn.Module, epoch: int) -> Masks:
        """Return the masks of an epoch that starts with ``module``'s weights, and zero those weights."""
        scores = saliency(module, self.step.method, self.batches, self.loss)
        masks = keep_masks(scores, self.ratio(epoch), self.step.scope, self.step.block)
        apply_masks(module, masks)
        return masks
