"""Operators that move data: they are simply executed, on labels."""

from __future__ import annotations

import math
from typing import Any

import torch

from edgeopt.passes.aten import aten
from edgeopt.passes.prune.labels import ALWAYS, FIXED_SIZE, Labels, Marked
from edgeopt.passes.prune.rules.call import Call, Layers, Rule
from edgeopt.passes.prune.rules.elementwise import independent_of, match, split

LOOKED_UP = "places named by numbers"


def moved(labels: Labels, call: Call) -> Layers | list[Layers]:
    """Execute the operator on each layer, expanded without copies to the full shape."""
    call.freeze_others(labels)
    rest = dict(list(call.arguments.items())[1:])
    results = [call.target(layer.expand(call.input.shape), **rest) for layer in call.input.layers]
    if isinstance(call.shape, list):
        return [tuple(result[part] for result in results) for part in range(len(call.shape))]
    return tuple(results)


def sliced(labels: Labels, call: Call) -> Layers | list[Layers]:
    """A slice; one with a step keeps its step, so along labels whole steps go."""
    dim, step = call.dim(), int(call["step"])
    if step == 1:
        return moved(labels, call)
    size = call.input.shape[dim]
    start, stop, _ = slice(call["start"], call["end"]).indices(size)
    for layer in call.input.layers:
        if layer.shape[dim] > 1:
            if start < step and stop == size and size % step == 0:
                labels.tie(split(layer, dim, (-1, step)), dim + 1)
            else:
                labels.freeze(layer, "a slice with a step")
    return moved(labels, call)


def expanded(labels: Labels, call: Call) -> Layers | list[Layers]:
    """A literal size that is new along a dimension is rewritten for whatever it meets."""
    sizes = list(call["size"])
    offset = len(sizes) - len(call.input.shape)
    new = [
        dim
        for dim, size in enumerate(sizes)
        if size != -1 and dim in call.literal and (dim < offset or call.input.shape[dim - offset] == 1)
    ]
    return (*moved(labels, call), *labels.made(call.shape, new))


def made(labels: Labels, call: Call) -> Layers:
    """A new tensor of literal sizes: they are rewritten for whatever it meets."""
    return labels.made(call.shape, sorted(call.literal))


def at_indices(labels: Labels, call: Call) -> Layers:
    """``x[indices]``: dimensions that are looked up keep their size, the others pass."""
    x, indices = call["self"], list(call["indices"])
    labels.freeze([layer for index in indices if index is not None for layer in index.layers], LOOKED_UP)
    where = {dim for dim, index in enumerate(indices) if index is not None}
    together = sorted(where) == list(range(min(where), max(where) + 1))
    at = min(where) if together else 0
    new = len(call.shape) - (len(x.shape) - len(where))
    result = []
    for layer in independent_of(labels, x.layers, where, LOOKED_UP):
        sizes = [size for dim, size in enumerate(layer.shape) if dim not in where]
        result.append(layer.reshape([*sizes[:at], *[1] * new, *sizes[at:]]))
    return tuple(result)


def along_indices(labels: Labels, call: Call) -> Layers:
    """``x.index_select(dim, indices)``: labels along ``dim`` keep their places."""
    call.freeze_others(labels)
    return independent_of(labels, call.input.layers, {call.dim()}, LOOKED_UP)


def gathered(labels: Labels, call: Call) -> Layers:
    """``x[..., index, ...]`` of the index's shape: across ``dim`` both go together."""
    x, index, dim = call["self"], call["index"], call.dim()
    across = Marked(
        tuple(1 if d == dim else size for d, size in enumerate(x.shape)),
        independent_of(labels, x.layers, {dim}, LOOKED_UP),
    )
    return match(labels, [across, index], call.shape)


def rolled(labels: Labels, call: Call) -> Layers:
    """A roll by literal places: labels along it keep their places."""
    ndim = len(call.input.shape)
    dims = {int(dim) % ndim for dim in call["dims"]} or set(range(ndim))
    return independent_of(labels, call.input.layers, dims, "rolled by a literal number of places")


def unfolded(labels: Labels, call: Call) -> Layers:
    """Each channel becomes as many as a window has positions, which go together."""
    area = math.prod(call["kernel_size"])
    ndim = len(call.input.shape)
    layers = independent_of(labels, call.input.layers, {ndim - 2, ndim - 1}, FIXED_SIZE)
    return tuple((layer.repeat_interleave(area, -3) if layer.shape[-3] > 1 else layer).squeeze(-1) for layer in layers)


def folded(labels: Labels, call: Call) -> Layers:
    """All positions of a window go together, and become one channel."""
    area = math.prod(call["kernel_size"])
    result = []
    for layer in independent_of(labels, call.input.layers, {len(call.input.shape) - 1}, FIXED_SIZE):
        parts = split(layer, -2, (-1, area)) if layer.shape[-2] > 1 else layer.unsqueeze(-2)
        result.append(labels.tie(parts, parts.ndim - 2))
    return tuple(result)


def cat(labels: Labels, call: Call) -> Layers:
    """Layers along the concatenated dimension are concatenated; across it they go together."""
    return joined_labels(labels, call.operands, int(call["dim"]) % len(call.shape), call.shape)


def stack(labels: Labels, call: Call) -> Layers:
    """Concatenation along a new dimension."""
    dim = int(call["dim"]) % len(call.shape)
    parts = [
        Marked((*part.shape[:dim], 1, *part.shape[dim:]), tuple(layer.unsqueeze(dim) for layer in part.layers))
        for part in call.operands
    ]
    return joined_labels(labels, parts, dim, call.shape)


def joined_labels(labels: Labels, parts: list[Marked], dim: int, shape: tuple[int, ...]) -> Layers:
    """Concatenate marked values along ``dim``. A part without labels there gets label 0: always there."""
    parts = [part for part in parts if len(part.shape) == len(shape)]  # torch allows an empty tensor of one dimension
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


def padded(labels: Labels, call: Call) -> Layers:
    """Zeros along channels go with what they meet; a padding that copies channels cannot be cut."""
    pad, ndim = list(call["pad"]), len(call.shape)
    x = call.input
    for index in range(0, len(pad), 2):
        dim = ndim - 1 - index // 2
        if not any(pad[index : index + 2]) or not any(layer.shape[dim] > 1 for layer in x.layers):
            continue
        if call.get("mode", "constant") != "constant" or min(pad[index : index + 2]) < 0:
            x = Marked(x.shape, independent_of(labels, x.layers, {dim}, "padding along channels"))
            continue
        sizes = [(*x.shape[:dim], count, *x.shape[dim + 1 :]) for count in pad[index : index + 2]]
        ends = [Marked(size, labels.made(size, [dim]) or _always(size, dim)) for size in sizes]
        shape = tuple(size + sum(pad[index : index + 2]) if d == dim else size for d, size in enumerate(x.shape))
        across = tuple(layer for layer in x.layers if layer.shape[dim] == 1)
        along = Marked(x.shape, tuple(layer for layer in x.layers if layer.shape[dim] > 1))
        parts = [part for part in (ends[0], along, ends[1]) if part.shape[dim]]
        x = Marked(shape, (*across, *joined_labels(labels, parts, dim, shape)))
    return x.layers


def _always(shape: tuple[int, ...], dim: int) -> Layers:
    return (torch.full([size if d == dim else 1 for d, size in enumerate(shape)], ALWAYS),)


def glu(labels: Labels, call: Call) -> Layers:
    """The two halves along ``dim`` are multiplied: channel j needs channels j and j + n, which go together."""
    dim = call.dim()
    layers = [layer.chunk(2, dim) if layer.shape[dim] > 1 else (layer, layer) for layer in call.input.layers]
    halves = [Marked(call.shape, half) for half in zip(*layers, strict=True)]
    return match(labels, halves, call.shape)


def channel_shuffle(labels: Labels, call: Call) -> Layers:
    """(groups, n) transposed along dimension 1. The number of groups stays: the j-th channel goes from every group."""
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
    """Channels (n, factor * factor) become positions; all of one of the n go together, since the factor stays."""
    area, result = int(call["upscale_factor"]) ** 2, []
    for layer in independent_of(labels, call.input.layers, _positions(call)):
        parts = layer.reshape(*layer.shape[:-3], -1, area)
        labels.tie(parts, parts.ndim - 1)
        result.append(parts[..., :1, None])
    return tuple(result)


def pixel_unshuffle(labels: Labels, call: Call) -> Layers:
    """Each channel becomes factor * factor channels, which go together."""
    area = int(call["downscale_factor"]) ** 2
    layers = independent_of(labels, call.input.layers, _positions(call))
    return tuple(layer.repeat_interleave(area, -3) if layer.shape[-3] > 1 else layer for layer in layers)


def _positions(call: Call) -> set[int]:
    ndim = len(call.shape)
    return {ndim - 2, ndim - 1}


def size_of_labels(labels: Labels, call: Call) -> Layers:
    """A size that is read at run time is not rewritten: its labels freeze."""
    dim = call.dim()
    labels.freeze([layer for layer in call.input.layers if layer.shape[dim] > 1], "its size is read")
    return ()


EXECUTED: tuple[Any, ...] = (
    aten.reshape, aten.flatten, aten.unflatten, aten.permute, aten.transpose, aten.t, aten.numpy_T, aten.mT,
    aten.squeeze, aten.unsqueeze, aten.movedim, aten.swapaxes, aten.chunk, aten.split, aten.split_with_sizes,
    aten.unbind, aten.select, aten.narrow, aten.flip, aten.repeat, aten.tile, aten.repeat_interleave, aten.unsafe_chunk,
    aten.unsafe_split, aten.tensor_split, aten.adjoint, aten.swapdims, aten.moveaxis, aten.ravel,
)  # fmt: skip

RULES: dict[Any, Rule] = {
    **dict.fromkeys(EXECUTED, moved),
    **dict.fromkeys((aten.zeros, aten.ones, aten.full, aten.empty, aten.randn, aten.rand), made),
    **dict.fromkeys((aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty), made),
    aten.expand: expanded,
    aten.roll: rolled,
    aten.index: at_indices,
    aten.index_select: along_indices,
    aten.gather: gathered,
    aten.im2col: unfolded,
    aten.col2im: folded,
    aten.slice: sliced,
    aten.cat: cat,
    aten.concat: cat,
    aten.stack: stack,
    aten.pad: padded,
    aten.constant_pad_nd: padded,
    aten.glu: glu,
    aten.channel_shuffle: channel_shuffle,
    aten.pixel_shuffle: pixel_shuffle,
    aten.pixel_unshuffle: pixel_unshuffle,
    aten.sym_size: size_of_labels,
}
