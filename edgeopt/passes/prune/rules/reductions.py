"""Operators that mix positions but no channels: pooling, up-sampling, means and sums, softmax.

Labels along what they mix freeze (or are tied, where they depend on more than that); all others pass.
"""

from __future__ import annotations

from typing import Any

import torch

from edgeopt.passes.prune.labels import Labels
from edgeopt.passes.prune.rules.call import Call, Layers, Rule
from edgeopt.passes.prune.rules.elementwise import independent_of

aten = torch.ops.aten


def reduced(labels: Labels, call: Call) -> Layers:
    """A mean, sum or the like over ``dim`` (over everything where none is given)."""
    ndim, dims = len(call.input.shape), call.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(ndim))
    over = {int(dim) % ndim for dim in dims} if ndim else set()
    shape = call.shape[0] if isinstance(call.shape, list) else call.shape
    kept = _free_of(labels, call, over)
    if len(shape) == ndim:
        return kept
    return tuple(layer.reshape([size for dim, size in enumerate(layer.shape) if dim not in over]) for layer in kept)


def along_dim(labels: Labels, call: Call) -> Layers:
    """Softmax, a cumulative sum: the shape stays, what lies along ``dim`` depends on each other."""
    return _free_of(labels, call, {call.dim()})


def windowed(positions: int) -> Rule:
    """Make the rule of an operator that mixes the last ``positions`` dimensions."""

    def rule(labels: Labels, call: Call) -> Layers:
        ndim = len(call.input.shape)
        return _free_of(labels, call, set(range(ndim - positions, ndim)))

    return rule


def _free_of(labels: Labels, call: Call, dims: set[int]) -> Layers:
    """Return the layers of the first operand, made constant along ``dims``."""
    call.freeze_others(labels)
    return independent_of(labels, call.input.layers, dims, "computes over these channels")


RULES: dict[Any, Rule] = {
    **dict.fromkeys((aten.mean, aten.sum, aten.amax, aten.amin, aten.var, aten.std, aten.logsumexp), reduced),
    **dict.fromkeys((aten.max, aten.min, aten.argmax, aten.argmin, aten.prod), reduced),
    **dict.fromkeys((aten.softmax, aten.log_softmax, aten._softmax, aten.cumsum), along_dim),
    **dict.fromkeys(
        (aten.max_pool1d, aten.avg_pool1d, aten.adaptive_avg_pool1d, aten.adaptive_max_pool1d), windowed(1)
    ),
    **dict.fromkeys(
        (aten.max_pool2d, aten.avg_pool2d, aten.adaptive_avg_pool2d, aten.adaptive_max_pool2d), windowed(2)
    ),
    **dict.fromkeys(
        (aten.max_pool3d, aten.avg_pool3d, aten.adaptive_avg_pool3d, aten.adaptive_max_pool3d), windowed(3)
    ),
    **dict.fromkeys((aten.upsample_nearest1d, aten.upsample_linear1d), windowed(1)),
    **dict.fromkeys((aten.upsample_nearest2d, aten.upsample_bilinear2d, aten.upsample_bicubic2d), windowed(2)),
    **dict.fromkeys((aten.upsample_nearest3d, aten.upsample_trilinear3d), windowed(3)),
}
