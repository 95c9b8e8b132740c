"""Operators that move data: they are simply executed, on labels."""

from __future__ import annotations

from typing import Any

import torch

from edgeopt.passes.prune.labels import ALWAYS, Labels, Marked, varying
from edgeopt.passes.prune.rules.call import Call, Layers, Rule
from edgeopt.passes.prune.rules.elementwise import independent_of, match

aten = torch.ops.aten


def moved(labels: Labels, call: Call) -> Layers | list[Layers]:
    """Execute the operator on each layer, expanded without copies to the full shape."""
    call.freeze_others(labels)
    rest = dict(list(call.arguments.items())[1:])
    results = [call.target(layer.expand(call.input.shape), **rest) for layer in call.input.layers]
    if isinstance(call.shape, list):
        return [tuple(result[part] for result in results) for part in range(len(call.shape))]
    return tuple(results)


def sliced(labels: Labels, call: Call) -> Layers | list[Layers]:
    """A slice; with a step above 1 along labels it freezes them, because a literal step cannot be rewritten."""
    dim = call.dim()
    if call["step"] != 1:
        labels.freeze([layer for layer in call.input.layers if layer.shape[dim] > 1], "a slice with a step")
    return moved(labels, call)


def cat(labels: Labels, call: Call) -> Layers:
    """Layers along the concatenated dimension are concatenated; across it they go together."""
    return joined(labels, call.operands, int(call["dim"]) % len(call.shape), call.shape)


def stack(labels: Labels, call: Call) -> Layers:
    """Concatenation along a new dimension."""
    dim = int(call["dim"]) % len(call.shape)
    parts = [
        Marked((*part.shape[:dim], 1, *part.shape[dim:]), tuple(layer.unsqueeze(dim) for layer in part.layers))
        for part in call.operands
    ]
    return joined(labels, parts, dim, call.shape)


def joined(labels: Labels, parts: list[Marked], dim: int, shape: tuple[int, ...]) -> Layers:
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
    """New elements are always there; a padding that copies elements cannot be cut along its dimension."""
    pad, ndim = list(call["pad"]), len(call.shape)
    result = []
    for layer in call.input.layers:
        touched = [ndim - 1 - index // 2 for index, size in enumerate(pad) if size]
        if any(dim in varying(layer) for dim in touched):
            labels.freeze(layer, "padding along channels")
            continue
        result.append(layer)
    return tuple(result)


def channel_shuffle(labels: Labels, call: Call) -> Layers:
    """(groups, n) transposed along dimension 1. The number of groups stays: the j-th channel goes from every group."""
    groups, result = int(call["groups"]), []
    for layer in call.input.layers:
        if layer.shape[1] == 1:
            result.append(layer)
            continue
        split = layer.reshape(layer.shape[0], groups, -1, *layer.shape[2:])
        labels.tie(split, 1)
        result.append(split.transpose(1, 2).reshape(layer.shape))
    return tuple(result)


def pixel_shuffle(labels: Labels, call: Call) -> Layers:
    """Channels (n, factor * factor) become positions; all of one of the n go together, since the factor stays."""
    area, result = int(call["upscale_factor"]) ** 2, []
    for layer in independent_of(labels, call.input.layers, _positions(call)):
        split = layer.reshape(*layer.shape[:-3], -1, area)
        labels.tie(split, split.ndim - 1)
        result.append(split[..., :1, None])
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
    aten.reshape, aten.flatten, aten.unflatten, aten.expand, aten.permute, aten.transpose, aten.t, aten.numpy_T,
    aten.squeeze, aten.unsqueeze, aten.movedim, aten.swapaxes, aten.chunk, aten.split, aten.split_with_sizes,
    aten.unbind, aten.select, aten.narrow, aten.flip, aten.repeat,
)  # fmt: skip

RULES: dict[Any, Rule] = {
    **dict.fromkeys(EXECUTED, moved),
    aten.slice: sliced,
    aten.cat: cat,
    aten.concat: cat,
    aten.stack: stack,
    aten.pad: padded,
    aten.constant_pad_nd: padded,
    aten.channel_shuffle: channel_shuffle,
    aten.pixel_shuffle: pixel_shuffle,
    aten.pixel_unshuffle: pixel_unshuffle,
    aten.sym_size: size_of_labels,
}
