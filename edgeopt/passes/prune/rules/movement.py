"""Operators that move data: they are executed on labels."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from edgeopt.passes.aten import aten
from edgeopt.passes.prune.labels import ALWAYS, FIXED_SIZE, Labels, Marked, compress, varying_dims
from edgeopt.passes.prune.rules.call import Call, Layers, Rule
from edgeopt.passes.prune.rules.elementwise import make_independent, match, split

LOOKED_UP = "looked up by index"
COMPUTED = "which positions are taken is computed"
_BOUNDS = frozenset({"start", "end", "step", "length", "index", "split_size", "split_sizes", "sections", "indices"})
"""Arguments that say which positions of a dimension an operator takes."""


def execute_on_labels(labels: Labels, call: Call) -> Layers | list[Layers]:
    """Execute the operator on each layer, expanded without copies to the full shape.

    Layers that a view puts along the same dimensions are merged, and parted by a view that undoes it.
    """
    call.freeze_others(labels)
    freeze_computed_bounds(labels, call)
    rest = dict(list(call.arguments.items())[1:])

    def execute(layer: Tensor) -> Any:
        return call.target(layer.expand(call.input.shape), **rest)

    layers, results = call.input.layers, [execute(layer) for layer in call.input.layers]
    if isinstance(call.shape, list):
        return [tuple(result[part] for result in results) for part in range(len(call.shape))]
    results = [compress(result) for result in results]
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, result in enumerate(results):
        alike.setdefault(varying_dims(result), []).append(number)
    placed: list[Tensor] = []
    for dims, numbers in alike.items():
        if dims and len(numbers) > 1:
            placed.append(compress(execute(labels.merge([layers[number] for number in numbers]))))
        else:
            placed += [results[number] for number in numbers]
    return tuple(part for layer in placed for part in labels.unmerge(layer))


def reshape_as(labels: Labels, call: Call) -> Layers:
    """Reshape to the size of another tensor, whose labels go with those of the result."""
    arguments = {"self": call["self"], "shape": list(call.shape)}
    layers = execute_on_labels(labels, replace(call, target=aten.reshape.default, arguments=arguments))
    return match(labels, [Marked(call.shape, tuple(layers)), call["other"]], call.shape)  # type: ignore[arg-type]


def freeze_computed_bounds(labels: Labels, call: Call) -> bool:
    """Keep the labels along a dimension whose positions follow from another input: the example shows one case only.

    So the first positions of a table are taken, as many as a text is long. Returns whether the positions are computed.
    """
    if not call.computed & _BOUNDS:
        return False
    dim = call.dim()
    layers = [layer for layer in call.input.layers if layer.shape[dim] > 1]
    labels.freeze(layers, COMPUTED)
    return True


def take_by_number(labels: Labels, call: Call) -> Layers | list[Layers]:
    """Handle an operator whose numbers of elements along ``dim`` may be a tensor: labels along it stay then."""
    if len(call.operands) == 1:
        return execute_on_labels(labels, call)
    call.freeze_others(labels)
    dims = set(range(len(call.input.shape))) if call["dim"] is None else {call.dim()}
    layers = make_independent(labels, call.input.layers, dims, COMPUTED)
    return [layers] * len(call.shape) if isinstance(call.shape, list) else layers


def take_slice(labels: Labels, call: Call) -> Layers | list[Layers]:
    """Handle a slice. Its step is not rewritten, so labels that it steps over go only in whole steps."""
    dim, step, size = call.dim(), int(call["step"]), call.input.shape[call.dim()]
    taken = range(size)[slice(call["start"], call["end"], step)]
    if step > 1 and taken:
        first, last = taken[0] // step * step, taken[-1] // step * step
        for layer in call.input.layers:
            if layer.shape[dim] > 1:
                labels.tie(split(layer.narrow(dim, first, last - first), dim, (-1, step)), dim + 1)
                labels.tie(layer.narrow(dim, last, min(step, size - last)), dim)
    return execute_on_labels(labels, call)


def expand(labels: Labels, call: Call) -> Layers | list[Layers]:
    """Expand to literal sizes; a size that is new in a dimension is rewritten to fit whatever it meets."""
    sizes = list(call["size"])
    offset = len(sizes) - len(call.input.shape)
    new = [
        dim
        for dim, size in enumerate(sizes)
        if size != -1 and dim in call.literal and (dim < offset or call.input.shape[dim - offset] == 1)
    ]
    return (*execute_on_labels(labels, call), *labels.label_created(call.shape, new))


def expand_as(labels: Labels, call: Call) -> Layers:
    """Expand to the size of another tensor: new dimensions go together with those of the other."""
    x, other = call["self"], call["other"]
    offset = len(call.shape) - len(x.shape)
    new = [dim for dim in range(len(call.shape)) if dim < offset or x.shape[dim - offset] < call.shape[dim]]
    layers = tuple(layer.reshape((1,) * offset + tuple(layer.shape)) for layer in x.layers)
    expanded = Marked(tuple(call.shape), (*layers, *labels.label_created(call.shape, new)))
    return match(labels, [expanded, other], call.shape)


def repeat(labels: Labels, call: Call) -> Layers | list[Layers]:
    """Repeat a literal number of times; a dimension of size 1 that is repeated fits whatever it meets."""
    times = list(call["repeats"])
    offset = len(times) - len(call.input.shape)
    new = [
        dim
        for dim, count in enumerate(times)
        if dim in call.literal and count > 1 and (dim < offset or call.input.shape[dim - offset] == 1)
    ]
    return (*execute_on_labels(labels, call), *labels.label_created(call.shape, new))


def diagonal(labels: Labels, call: Call) -> Layers:
    """The elements ``x[i, i]`` as a new last dimension: row and column ``i`` go together."""
    x = call.input
    one, other = (int(call[name]) % len(x.shape) for name in ("dim1", "dim2"))
    if int(call["offset"]) != 0 or x.shape[one] != x.shape[other]:
        x = Marked(x.shape, make_independent(labels, x.layers, {one, other}, "a diagonal"))
    labels.freeze([layer for layer in x.layers if layer.shape[one] > 1 and layer.shape[other] > 1], "a diagonal")
    sides = []
    for dim, missing in ((one, other), (other, one)):
        layers = [layer.squeeze(missing) for layer in x.layers if layer.shape[missing] == 1]
        moved = tuple(layer.movedim(dim - (missing < dim), -1) for layer in layers)
        sides.append(Marked(tuple(call.shape), moved))
    return match(labels, sides, call.shape)


def diagonal_matrix(labels: Labels, call: Call) -> Layers:
    """Put the last dimension on the diagonal of a matrix: row and column ``i`` go with element ``i``."""
    ndim = len(call.shape)
    dims = [int(call[name]) % ndim for name in ("dim1", "dim2")]
    x = call.input
    if int(call["offset"]) != 0:
        x = Marked(x.shape, make_independent(labels, x.layers, {len(x.shape) - 1}, "a diagonal"))
    rows = [layer.unsqueeze(-1).movedim((-2, -1), dims) for layer in x.layers]
    columns = [layer.unsqueeze(-2).movedim((-2, -1), dims) for layer in x.layers if layer.shape[-1] > 1]
    return (*rows, *columns)


def create(labels: Labels, call: Call) -> Layers:
    """Create a tensor of literal sizes, which are rewritten to fit whatever it meets."""
    return labels.label_created(call.shape, sorted(call.literal))


def create_identity(labels: Labels, call: Call) -> Layers:
    """Create an identity matrix: row and column ``i`` go together, with whatever they meet; its size is rewritten."""
    rows, columns = call.shape
    if rows != columns or call.computed:
        return ()
    return tuple(part for line in labels.label_created(call.shape, [0]) for part in (line, line.T))


def index_at(labels: Labels, call: Call) -> Layers:
    """``x[indices]``: indexed dimensions keep their size, the others pass."""
    x, indices = call["self"], list(call["indices"])
    labels.freeze([layer for index in indices if index is not None for layer in index.layers], LOOKED_UP)
    indexed_dims = {dim for dim, index in enumerate(indices) if index is not None}
    is_contiguous = sorted(indexed_dims) == list(range(min(indexed_dims), max(indexed_dims) + 1))
    position = min(indexed_dims) if is_contiguous else 0
    index_ndim = len(call.shape) - (len(x.shape) - len(indexed_dims))
    result = []
    for layer in make_independent(labels, x.layers, indexed_dims, LOOKED_UP):
        sizes = [size for dim, size in enumerate(layer.shape) if dim not in indexed_dims]
        result.append(layer.reshape([*sizes[:position], *[1] * index_ndim, *sizes[position:]]))
    return tuple(result)


def index_select(labels: Labels, call: Call) -> Layers:
    """``x.index_select(dim, indices)``: labels along ``dim`` must stay."""
    call.freeze_others(labels)
    return make_independent(labels, call.input.layers, {call.dim()}, LOOKED_UP)


def gather(labels: Labels, call: Call) -> Layers:
    """``x[..., index, ...]`` with the index's shape: across ``dim``, both go together."""
    x, index, dim = call["self"], call["index"], call.dim()
    across = Marked(
        tuple(1 if d == dim else size for d, size in enumerate(x.shape)),
        make_independent(labels, x.layers, {dim}, LOOKED_UP),
    )
    return match(labels, [across, index], call.shape)


def roll(labels: Labels, call: Call) -> Layers:
    """Roll by a literal number of positions: labels along it must stay."""
    ndim = len(call.input.shape)
    dims = {int(dim) % ndim for dim in call["dims"]} or set(range(ndim))
    return make_independent(labels, call.input.layers, dims, "rolled by a literal number of positions")


def unfold(labels: Labels, call: Call) -> Layers:
    """Turn each channel into one per window position (im2col); these go together."""
    area = math.prod(call["kernel_size"])
    ndim = len(call.input.shape)
    layers = make_independent(labels, call.input.layers, {ndim - 2, ndim - 1}, FIXED_SIZE)
    return tuple((layer.repeat_interleave(area, -3) if layer.shape[-3] > 1 else layer).squeeze(-1) for layer in layers)


def fold(labels: Labels, call: Call) -> Layers:
    """Merge the positions of a window, which go together, into one channel (col2im)."""
    area = math.prod(call["kernel_size"])
    result = []
    for layer in make_independent(labels, call.input.layers, {len(call.input.shape) - 1}, FIXED_SIZE):
        parts = split(layer, -2, (-1, area)) if layer.shape[-2] > 1 else layer.unsqueeze(-2)
        result.append(labels.tie(parts, parts.ndim - 2))
    return tuple(result)


def cat(labels: Labels, call: Call) -> Layers:
    """Concatenate: layers along ``dim`` are concatenated, layers across it go together."""
    return concatenate_labels(labels, call.operands, int(call["dim"]) % len(call.shape), call.shape)


def stack(labels: Labels, call: Call) -> Layers:
    """Concatenate along a new dimension."""
    dim = int(call["dim"]) % len(call.shape)
    parts = [
        Marked((*part.shape[:dim], 1, *part.shape[dim:]), tuple(layer.unsqueeze(dim) for layer in part.layers))
        for part in call.operands
    ]
    return concatenate_labels(labels, parts, dim, call.shape)


def concatenate_labels(labels: Labels, parts: list[Marked], dim: int, shape: tuple[int, ...]) -> Layers:
    """Concatenate marked values along ``dim``. A part without labels there gets label 0 (always there)."""
    parts = [part for part in parts if len(part.shape) == len(shape)]  # torch allows empty 1-D tensors
    across = [
        Marked(
            tuple(1 if d == dim else size for d, size in enumerate(part.shape)),
            tuple(layer for layer in part.layers if layer.shape[dim] == 1),
        )
        for part in parts
    ]
    result = list(match(labels, across, [1 if d == dim else size for d, size in enumerate(shape)]))
    along = [[layer for layer in part.layers if layer.shape[dim] > 1] for part in parts]
    for level in range(max(map(len, along))):
        pieces = []
        for part, layers in zip(parts, along, strict=True):
            blank = torch.full((1,) * len(shape), ALWAYS)
            piece = layers[level] if level < len(layers) else blank
            pieces.append(piece.expand([part.shape[dim] if d == dim else piece.shape[d] for d in range(len(shape))]))
        common = [max(piece.shape[d] for piece in pieces) for d in range(len(shape))]
        pieces = [
            piece.expand([piece.shape[d] if d == dim else common[d] for d in range(len(shape))]) for piece in pieces
        ]
        result.append(torch.cat(pieces, dim))
    return tuple(result)


def pad_channels(labels: Labels, call: Call) -> Layers:
    """Pad: zeros along channels go with the channels that they meet; padding that copies channels cannot be cut."""
    pad, ndim = list(call["pad"]), len(call.shape)
    x = call.input
    for index in range(0, len(pad), 2):
        dim = ndim - 1 - index // 2
        if not any(pad[index : index + 2]) or not any(layer.shape[dim] > 1 for layer in x.layers):
            continue
        if call.get("mode", "constant") != "constant" or min(pad[index : index + 2]) < 0:
            x = Marked(x.shape, make_independent(labels, x.layers, {dim}, "padding along channels"))
            continue
        sizes = [(*x.shape[:dim], count, *x.shape[dim + 1 :]) for count in pad[index : index + 2]]
        ends = [Marked(size, labels.label_created(size, [dim]) or _always_layers(size, dim)) for size in sizes]
        shape = tuple(size + sum(pad[index : index + 2]) if d == dim else size for d, size in enumerate(x.shape))
        across = tuple(layer for layer in x.layers if layer.shape[dim] == 1)
        along = Marked(x.shape, tuple(layer for layer in x.layers if layer.shape[dim] > 1))
        parts = [part for part in (ends[0], along, ends[1]) if part.shape[dim]]
        x = Marked(shape, (*across, *concatenate_labels(labels, parts, dim, shape)))
    return x.layers


def _always_layers(shape: tuple[int, ...], dim: int) -> Layers:
    return (torch.full([size if d == dim else 1 for d, size in enumerate(shape)], ALWAYS),)


def glu(labels: Labels, call: Call) -> Layers:
    """Multiply the two halves along ``dim``: channel j needs channels j and j + n, which go together."""
    dim = call.dim()
    layers = [layer.chunk(2, dim) if layer.shape[dim] > 1 else (layer, layer) for layer in call.input.layers]
    halves = [Marked(call.shape, half) for half in zip(*layers, strict=True)]
    return match(labels, halves, call.shape)


def channel_shuffle(labels: Labels, call: Call) -> Layers:
    """Transpose (groups, n) in dimension 1. The number of groups stays: the j-th channel goes from every group."""
    groups, result = int(call["groups"]), []
    for layer in call.input.layers:
        if layer.shape[1] == 1:
            result.append(layer)
            continue
        parts = split(layer, 1, (groups, -1))
        labels.tie(parts, 1)
        result.append(parts.transpose(1, 2).reshape(layer.shape))
    return tuple(result)


def pixel_shuffle(labels: Labels, call: Call) -> Layers:
    """Turn channels (n, factor * factor) into positions. The factor stays, so all channels of one n go together."""
    area, result = int(call["upscale_factor"]) ** 2, []
    for layer in make_independent(labels, call.input.layers, _positions(call)):
        parts = layer.reshape(*layer.shape[:-3], -1, area)
        labels.tie(parts, parts.ndim - 1)
        result.append(parts[..., :1, None])
    return tuple(result)


def pixel_unshuffle(labels: Labels, call: Call) -> Layers:
    """Turn each channel into factor * factor channels, which go together."""
    area = int(call["downscale_factor"]) ** 2
    layers = make_independent(labels, call.input.layers, _positions(call))
    return tuple(layer.repeat_interleave(area, -3) if layer.shape[-3] > 1 else layer for layer in layers)


def _positions(call: Call) -> set[int]:
    ndim = len(call.shape)
    return {ndim - 2, ndim - 1}


def read_size(labels: Labels, call: Call) -> Layers:
    """Freeze the labels along a size that is read at run time, because it is not rewritten."""
    dim = call.dim()
    labels.freeze([layer for layer in call.input.layers if layer.shape[dim] > 1], "its size is read")
    return ()


_EXECUTED: tuple[Any, ...] = (
    aten.reshape, aten.flatten, aten.unflatten, aten.permute, aten.transpose, aten.t, aten.numpy_T, aten.mT,
    aten.squeeze, aten.unsqueeze, aten.movedim, aten.swapaxes, aten.chunk, aten.split, aten.split_with_sizes,
    aten.unbind, aten.select, aten.narrow, aten.flip, aten.tile, aten.unsafe_chunk,
    aten.unsafe_split, aten.unsafe_split_with_sizes, aten.adjoint, aten.swapdims, aten.moveaxis,
    aten.ravel, aten.view, aten.rot90,
)  # fmt: skip

RULES: dict[Any, Rule] = {
    **dict.fromkeys(_EXECUTED, execute_on_labels),
    **dict.fromkeys((aten.zeros, aten.ones, aten.full, aten.empty, aten.randn, aten.rand), create),
    **dict.fromkeys((aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty), create),
    **dict.fromkeys((aten.repeat_interleave, aten.tensor_split), take_by_number),
    aten.eye: create_identity,
    aten.expand: expand,
    aten.reshape_as: reshape_as,
    aten.view_as: reshape_as,
    aten.expand_as: expand_as,
    aten.repeat: repeat,
    aten.diagonal: diagonal,
    aten.diag_embed: diagonal_matrix,
    aten.roll: roll,
    aten.index_select: index_select,
    aten.im2col: unfold,
    aten.col2im: fold,
    aten.slice: take_slice,
    aten.cat: cat,
    aten.concat: cat,
    aten.stack: stack,
    aten.pad: pad_channels,
    aten.constant_pad_nd: pad_channels,
    aten.glu: glu,
    **dict.fromkeys((aten.channel_shuffle, aten.native_channel_shuffle), channel_shuffle),
    aten.pixel_shuffle: pixel_shuffle,
    aten.pixel_unshuffle: pixel_unshuffle,
    aten.sym_size: read_size,
}
