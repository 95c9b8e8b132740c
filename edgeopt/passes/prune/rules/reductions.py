"""Operators that mix what lies along some dimensions: pooling, up-sampling, softmax, means, norms.

Labels along what windows and softmax mix freeze (or are tied, where they depend on more than that). A mean, a norm or a
maximum over channels is one over the channels that are left, as in a layer norm. All other labels pass.
"""

from __future__ import annotations

from typing import Any

from edgeopt.passes.aten import aten
from edgeopt.passes.prune.labels import Labels, Marked
from edgeopt.passes.prune.rules.call import Call, Layers, Rule
from edgeopt.passes.prune.rules.elementwise import elementwise, independent_of, summed


def reduced(labels: Labels, call: Call) -> Layers:
    """A mean, a norm, a maximum over ``dim`` (over everything where none is given): over what is left of it."""
    ndim, over = len(call.input.shape), _over(call)
    call.freeze_others(labels)
    kept = summed(labels, call.input.layers, over)
    shape = call.shape[0] if isinstance(call.shape, list) else call.shape
    if len(shape) == ndim:
        return kept
    return tuple(layer.reshape([size for dim, size in enumerate(layer.shape) if dim not in over]) for layer in kept)


def picked(labels: Labels, call: Call) -> Layers:
    """What names a place along ``dim``: labels along it freeze. ``max`` of two tensors is element-wise."""
    if isinstance(call.get("other"), Marked):
        return elementwise(labels, call)
    return reduced(labels, call.with_input(_free_of(labels, call, _over(call))))


def _over(call: Call) -> set[int]:
    ndim, dims = len(call.input.shape), call.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(ndim))
    return {int(dim) % ndim for dim in dims} if ndim else set()


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
    **dict.fromkeys((aten.mean, aten.sum, aten.amax, aten.amin, aten.logsumexp), reduced),
    **dict.fromkeys((aten.var, aten.std, aten.var_mean, aten.std_mean, aten.linalg_vector_norm, aten.norm), reduced),
    **dict.fromkeys((aten.max, aten.min, aten.argmax, aten.argmin, aten.prod, aten.any, aten.all), picked),
    **dict.fromkeys((aten.softmax, aten.log_softmax, aten._softmax, aten.cumsum, aten.cumprod), along_dim),
    **dict.fromkeys((aten.sort, aten.argsort, aten.topk), along_dim),
    **dict.fromkeys((aten.tril, aten.triu), windowed(2)),
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
    **dict.fromkeys((aten.reflection_pad1d, aten.replication_pad1d), windowed(1)),
    **dict.fromkeys((aten.reflection_pad2d, aten.replication_pad2d, aten._upsample_bilinear2d_aa), windowed(2)),
    **dict.fromkeys((aten.reflection_pad3d, aten.replication_pad3d), windowed(3)),
    aten.grid_sampler: windowed(2),
}
