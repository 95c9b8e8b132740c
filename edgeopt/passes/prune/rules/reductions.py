"""Operators that mix elements along some dimensions: pooling, up-sampling, softmax, means, norms.

Labels along dimensions that windows and softmax mix freeze, or are tied if they also depend on other dimensions. A
mean, norm or maximum over channels becomes one over the channels that are left, as in a layer norm. Other labels pass.
"""

from __future__ import annotations

from typing import Any

from edgeopt.passes.aten import aten
from edgeopt.passes.prune.labels import Labels, Marked
from edgeopt.passes.prune.rules.call import Call, Layers, Rule
from edgeopt.passes.prune.rules.elementwise import elementwise, make_independent, match, sum_over


def reduce_dims(labels: Labels, call: Call) -> Layers:
    """Reduce over ``dim``, or over everything if there is none: means, norms, maxima of the channels that are left."""
    ndim, dims = len(call.input.shape), _reduced_dims(call)
    call.freeze_others(labels)
    kept = sum_over(labels, call.input.layers, dims)
    shape = call.shape[0] if isinstance(call.shape, list) else call.shape
    if len(shape) == ndim:
        return kept
    return tuple(layer.reshape([size for dim, size in enumerate(layer.shape) if dim not in dims]) for layer in kept)


def pick_index(labels: Labels, call: Call) -> Layers:
    """Freeze labels along ``dim``, because the result may be an index there. ``max`` of two tensors is element-wise.

    If nothing uses the index, ``max(x, dim)[0]``, the result is the maximum of the channels that are left.
    """
    if isinstance(call.get("other"), Marked):
        return elementwise(labels, call)
    if call.target in VALUES_OF_CHANNELS and (call.unused == {1} or not isinstance(call.shape, list)):
        return reduce_dims(labels, call)
    return reduce_dims(labels, call.with_input(_make_constant(labels, call, _reduced_dims(call))))


def _reduced_dims(call: Call) -> set[int]:
    ndim, dims = len(call.input.shape), call.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(ndim))
    return {int(dim) % ndim for dim in dims} if ndim else set()


def mix_along_dim(labels: Labels, call: Call) -> Layers:
    """Freeze labels along ``dim``: in a softmax or a cumulative sum, the elements along it depend on each other."""
    return _make_constant(labels, call, {call.dim()})


def window_rule(positions: int) -> Rule:
    """Make the rule of an operator that mixes elements along the last ``positions`` dimensions."""

    def rule(labels: Labels, call: Call) -> Layers:
        ndim = len(call.input.shape)
        return _make_constant(labels, call, set(range(ndim - positions, ndim)))

    return rule


def sample_grid(labels: Labels, call: Call) -> Layers:
    """``input[n, c, *positions]`` read at ``grid[n, *sampled, coordinates]``: the batch of both goes together."""
    x, grid, ndim = call["input"], call["grid"], len(call.shape)
    channels = make_independent(labels, x.layers, set(range(2, ndim)), "positions that a grid refers to")
    sampled = make_independent(labels, grid.layers, {ndim - 1}, "coordinates of a position")
    parts = [
        Marked((*x.shape[:2], *[1] * (ndim - 2)), channels),
        Marked((grid.shape[0], 1, *grid.shape[1:-1]), tuple(layer[..., 0].unsqueeze(1) for layer in sampled)),
    ]
    return match(labels, parts, call.shape)


def fractional_pool(labels: Labels, call: Call) -> Layers:
    """Pool windows at random places, ``random_samples[batch, channel, dimension]``."""
    x, samples = call["self"], call["random_samples"]
    positions = set(range(2, len(x.shape)))
    places = make_independent(labels, samples.layers, {2}, "dimensions of a position")
    shape = (*x.shape[:2], *[1] * len(positions))
    parts = [
        Marked(shape, make_independent(labels, x.layers, positions, "computes over these channels")),
        Marked(shape, tuple(layer.reshape(*layer.shape[:2], *[1] * len(positions)) for layer in places)),
    ]
    return match(labels, parts, shape)


def unpool(labels: Labels, call: Call) -> Layers:
    """Undo a pooling: values go to the positions that ``indices`` names; both go together across positions."""
    x, indices = call["self"], call["indices"]
    positions = set(range(len(x.shape) - _UNPOOLED[call.target.overloadpacket], len(x.shape)))
    shape = tuple(1 if dim in positions else size for dim, size in enumerate(x.shape))
    parts = [
        Marked(shape, make_independent(labels, part.layers, positions, "computes over these channels"))
        for part in (x, indices)
    ]
    return match(labels, parts, shape)


def sliding_windows(labels: Labels, call: Call) -> Layers:
    """Copy windows along ``dimension`` into a new last dimension; both stay."""
    dim = call.dim("dimension")
    return tuple(layer.unsqueeze(-1) for layer in _make_constant(labels, call, {dim}))


def affine_grid(labels: Labels, call: Call) -> Layers:
    """Positions of a grid from a small matrix for each sample; only the batch passes."""
    layers = _make_constant(labels, call, {1, 2})
    return tuple(layer.reshape(-1, *[1] * (len(call.shape) - 1)) for layer in layers)


def _make_constant(labels: Labels, call: Call, dims: set[int]) -> Layers:
    """Return the layers of the first operand, made constant along ``dims``."""
    call.freeze_others(labels)
    return make_independent(labels, call.input.layers, dims, "computes over these channels")


_UNPOOLED: dict[Any, int] = {aten.max_unpool2d: 2, aten.max_unpool3d: 3}
"""The number of dimensions of positions."""
VALUES_OF_CHANNELS: tuple[Any, ...] = (
    aten.max.dim, aten.min.dim, aten.max.default, aten.min.default, aten.prod.default, aten.prod.dim_int,
)  # fmt: skip
"""Forms of these operators that compute a value of the channels that are left, if nothing uses an index."""

RULES: dict[Any, Rule] = {
    **dict.fromkeys((aten.mean, aten.sum, aten.amax, aten.amin, aten.logsumexp), reduce_dims),
    **dict.fromkeys(
        (aten.var, aten.std, aten.var_mean, aten.std_mean, aten.linalg_vector_norm, aten.norm), reduce_dims
    ),
    **dict.fromkeys((aten.nansum, aten.count_nonzero, aten.aminmax), reduce_dims),
    **dict.fromkeys((aten.max, aten.min, aten.argmax, aten.argmin, aten.prod, aten.any, aten.all), pick_index),
    **dict.fromkeys((aten.median, aten.nanmedian, aten.kthvalue, aten.mode), pick_index),
    **dict.fromkeys((aten.log_softmax, aten._log_softmax), mix_along_dim),
    **dict.fromkeys((aten._safe_softmax, aten.cumsum, aten.cumprod, aten.cummax, aten.cummin), mix_along_dim),
    **dict.fromkeys((aten.logcumsumexp, aten.sort, aten.argsort), mix_along_dim),
    **dict.fromkeys((aten.tril, aten.triu), window_rule(2)),
    **dict.fromkeys(
        (aten.max_pool1d, aten.avg_pool1d, aten.adaptive_avg_pool1d, aten.adaptive_max_pool1d), window_rule(1)
    ),
    **dict.fromkeys(
        (aten.max_pool2d, aten.avg_pool2d, aten.adaptive_avg_pool2d, aten.adaptive_max_pool2d), window_rule(2)
    ),
    **dict.fromkeys(
        (aten.max_pool3d, aten.avg_pool3d, aten.adaptive_avg_pool3d, aten.adaptive_max_pool3d), window_rule(3)
    ),
    **dict.fromkeys((aten.max_pool1d_with_indices,), window_rule(1)),
    **dict.fromkeys((aten.max_pool2d_with_indices, aten._adaptive_avg_pool2d), window_rule(2)),
    **dict.fromkeys((aten.max_pool3d_with_indices, aten._adaptive_avg_pool3d), window_rule(3)),
    **dict.fromkeys(_UNPOOLED, unpool),
    **dict.fromkeys((aten.fractional_max_pool2d, aten.fractional_max_pool3d), fractional_pool),
    aten.unfold: sliding_windows,
    aten.affine_grid_generator: affine_grid,
    aten._upsample_nearest_exact1d: window_rule(1),
    **dict.fromkeys((aten._upsample_nearest_exact2d, aten._upsample_bicubic2d_aa), window_rule(2)),
    aten._upsample_nearest_exact3d: window_rule(3),
    **dict.fromkeys((aten.upsample_nearest1d, aten.upsample_linear1d), window_rule(1)),
    **dict.fromkeys((aten.upsample_nearest2d, aten.upsample_bilinear2d, aten.upsample_bicubic2d), window_rule(2)),
    **dict.fromkeys((aten.upsample_nearest3d, aten.upsample_trilinear3d), window_rule(3)),
    **dict.fromkeys((aten.reflection_pad1d, aten.replication_pad1d), window_rule(1)),
    **dict.fromkeys((aten.reflection_pad2d, aten.replication_pad2d, aten._upsample_bilinear2d_aa), window_rule(2)),
    **dict.fromkeys((aten.reflection_pad3d, aten.replication_pad3d), window_rule(3)),
    **dict.fromkeys((aten.grid_sampler, aten.grid_sampler_2d, aten.grid_sampler_3d), sample_grid),
}
