"""Unstructured sparsity: single weights become zero and stay zero. It shrinks the download, not the latency."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.records.recipe import Sparsify


def prunable(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that may become sparse: all with at least two dimensions (no biases, no norms)."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.dim() >= 2}


def saliency(
    module: nn.Module,
    method: str,
    batches: Iterable[tuple[tuple[Tensor, ...], Any]],
    loss: Callable[[Any, Any], Tensor],
) -> dict[str, Tensor]:
    """Return one score a weight, in the weights' shapes; the smallest go first.

    ``magnitude`` is the absolute value (Han et al., 2015). ``gradient`` is the first-order change of the loss,
    ``|gradient * weight|``, with the gradient summed over ``batches`` (Lee et al., 2019).
    """
    weights = prunable(module)
    if method == "magnitude":
        return {name: weight.detach().abs() for name, weight in weights.items()}
    module.zero_grad(set_to_none=True)
    for inputs, targets in batches:
        loss(module(*inputs), targets).backward()  # type: ignore[no-untyped-call]
    scores = {
        name: (weight.grad * weight).detach().abs() if weight.grad is not None else torch.zeros_like(weight)
        for name, weight in weights.items()
    }
    module.zero_grad(set_to_none=True)
    return scores


def keep_masks(scores: dict[str, Tensor], ratio: float, scope: str) -> dict[str, Tensor]:
    """Return boolean masks, True where a weight stays; a share ``ratio`` of the weights goes.

    ``layer`` takes that share of every parameter, ``global`` of all together. Ties go by position, so the count is
    exact.
    """
    if scope == "layer":
        return {name: _largest(score.flatten(), ratio).view_as(score) for name, score in scores.items()}
    kept = _largest(torch.cat([score.flatten() for score in scores.values()]), ratio)
    parts = torch.split(kept, [score.numel() for score in scores.values()])
    return {name: part.view_as(score) for (name, score), part in zip(scores.items(), parts, strict=True)}


def _largest(scores: Tensor, ratio: float) -> Tensor:
    mask = torch.ones(scores.numel(), dtype=torch.bool)
    order = torch.argsort(scores, stable=True)
    mask[order[: round(ratio * scores.numel())]] = False
    return mask


def apply_masks(module: nn.Module, masks: dict[str, Tensor]) -> None:
    """Zero the masked weights of ``module`` in place."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in masks:
                parameter.mul_(masks[name])


def sparsify(
    module: nn.Module,
    step: Sparsify,
    batches: Iterable[tuple[tuple[Tensor, ...], Any]],
    loss: Callable[[Any, Any], Tensor],
) -> dict[str, Tensor]:
    """Zero a share of ``module``'s weights in place and return the masks that keep them at zero in a training."""
    masks = keep_masks(saliency(module, step.method, batches, loss), step.ratio, step.scope)
    apply_masks(module, masks)
    return masks
