"""Unstructured sparsity: single weights become zero and stay zero. This shrinks the download, not the latency.

In: a module, training batches and a ``Sparsify`` step. Out: masks over its weights, epoch by epoch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.passes.distill.compute import ComputeDevice
from edgeopt.passes.safe_gradients import take_stride_out
from edgeopt.records.recipe import Sparsify
from edgeopt.records.sparsity import SparsityPoint

_Batch = tuple[tuple[Tensor, ...], Any]
_Loss = Callable[[Any, Any], Tensor]
Masks = dict[str, Tensor]
"""Parameter name to a boolean mask that is True for the weights that stay."""
_GROWTH_RATIO = 0.6
"""Share of the epochs that a gradual schedule takes to reach its ratio; the rest train the remaining weights."""


def prunable_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that may become sparse: those with at least two dimensions (no biases, no norms)."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.dim() >= 2}


def score_weights(module: nn.Module, method: str, batches: Sequence[_Batch], loss: _Loss) -> dict[str, Tensor]:
    """Return one score per weight, in the shapes of the weights. The lowest scores go first; a zero weight scores zero.

    ``magnitude`` is the absolute value (Han et al., 2015). With ``g`` the gradient on one batch, ``gradient`` is
    ``|w * sum of g|`` over all batches (Lee et al., 2019, SNIP) and ``taylor`` the sum of ``|w * g|`` (Molchanov et
    al., 2019). ``taylor`` still ranks weights at the end of a training, when the gradients of the batches cancel out.
    """
    weights = prunable_weights(module)
    if method == "magnitude":
        return {name: weight.detach().abs() for name, weight in weights.items()}
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    module = take_stride_out(module)
    device = next(iter(weights.values())).device if weights else torch.device("cpu")
    for inputs, targets in ComputeDevice(device).put(batches):
        gradients = torch.autograd.grad(loss(module(*inputs), targets), list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                sums[name] += gradient if method == "gradient" else gradient.abs()
    return {name: (sums[name] * weight.detach()).abs() for name, weight in weights.items()}


def make_masks(scores: dict[str, Tensor], ratio: float, scope: str, block: int = 0) -> Masks:
    """Return masks that remove a share ``ratio`` of the weights.

    ``global`` takes the share of all parameters together, ``layer`` of each parameter, and ``block`` of every ``block``
    neighbours among the weights of one output: ratio 0.5 with block 4 is the 2:4 pattern. A last, incomplete block is
    kept. Ties are broken by position, so the count is exact.
    """
    if scope == "block":
        return {name: _mask_blocks(score, ratio, block) for name, score in scores.items()}
    if scope == "layer":
        return {name: _mask_largest(score.flatten(), ratio).view_as(score) for name, score in scores.items()}
    kept = _mask_largest(torch.cat([score.flatten() for score in scores.values()]), ratio)
    masks = torch.split(kept, [score.numel() for score in scores.values()])
    return {name: mask.view_as(score) for (name, score), mask in zip(scores.items(), masks, strict=True)}


def _mask_largest(scores: Tensor, ratio: float) -> Tensor:
    """Mask the largest entries of each row of the last dimension."""
    order = torch.argsort(scores, dim=-1, stable=True)
    lost = order[..., : round(ratio * scores.shape[-1])]
    return torch.ones_like(scores, dtype=torch.bool).scatter(-1, lost, torch.zeros_like(lost, dtype=torch.bool))


def _mask_blocks(score: Tensor, ratio: float, block: int) -> Tensor:
    rows = score.flatten(1)
    covered = rows.shape[1] // block * block
    mask = torch.ones_like(rows, dtype=torch.bool)
    mask[:, :covered] = _mask_largest(rows[:, :covered].reshape(len(rows), -1, block), ratio).flatten(1)
    return mask.view_as(score)


def apply_masks(module: nn.Module, masks: Masks) -> None:
    """Zero the masked weights of ``module`` in place."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in masks:
                parameter.mul_(masks[name])


CURVE_RATIOS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Shares of zeros at which the curve is measured."""


def measure_loss_curve(
    module: nn.Module, method: str, batches: Sequence[_Batch], held_back: Sequence[_Batch], loss: _Loss
) -> tuple[SparsityPoint, ...]:
    """Measure the loss at several shares of nonzero weights, without training; ``module`` is not changed.

    Args:
        module: The network.
        method: As in ``score_weights``; the zeros are taken of all weights together.
        batches: For the methods that need gradients.
        held_back: Other batches, to measure the loss on.
        loss: Function of outputs and targets.
    """
    scores = score_weights(module, method, batches, loss)
    points = []
    for ratio in CURVE_RATIOS:
        zeroed = copy.deepcopy(module)
        apply_masks(zeroed, make_masks(scores, ratio, "global"))
        with torch.no_grad():
            losses = [float(loss(zeroed(*inputs), targets)) for inputs, targets in held_back]
        points.append(SparsityPoint(nonzero_ratio=1 - ratio, loss=sum(losses) / len(losses)))
    return tuple(points)


class SparsitySchedule:
    """Which weights are zero in which epoch of a training.

    Each epoch starts with new masks, made from the current weights. A zero weight scores zero, so it stays zero. The
    masks depend only on those weights, so a resumed training gets the same masks.

    Args:
        step: Method, ratio, scope and schedule.
        batches: For the methods that need gradients.
        loss: Function of outputs and targets.
        epochs: Epochs of the training that follows; 0 if there is none.
    """

    def __init__(self, step: Sparsify, batches: Sequence[_Batch], loss: _Loss, epochs: int) -> None:
        self.step = step
        self.batches = batches
        self.loss = loss
        self.set_epochs(epochs)

    def set_epochs(self, epochs: int) -> None:
        """Set the epochs of the training that follows."""
        self.growth_epochs = max(1, math.ceil(_GROWTH_RATIO * epochs)) if self.step.schedule == "cubic" else 1

    def ratio(self, epoch: int) -> float:
        """Return the share of zeros in an epoch: all at once, or rising along a cubic (Zhu and Gupta, 2017)."""
        remaining = max(0.0, 1 - (epoch + 1) / self.growth_epochs)
        return self.step.ratio * (1 - remaining**3)

    def is_full(self, epoch: int) -> bool:
        """Tell whether an epoch trains with the full share of zeros."""
        return epoch + 1 >= self.growth_epochs

    def begin_epoch(self, module: nn.Module, epoch: int) -> Masks:
        """Zero weights of ``module`` for an epoch, and return the masks that keep them at zero."""
        scores = score_weights(module, self.step.method, self.batches, self.loss)
        masks = make_masks(scores, self.ratio(epoch), self.step.scope, self.step.block)
        apply_masks(module, masks)
        return masks
