"""Operators that move elements: shapes, order of dimensions, joining, splitting, padding, repeating."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeopt.onnx_module.node import Node, Operator
from edgeopt.onnx_module.values import Numbers, Value, as_list


def _reshape(node: Node, x: Tensor, sizes: Numbers | None = None) -> Tensor:
    wanted = node.get("shape") if sizes is None else as_list(sizes)
    if not node.get("allowzero", 0):
        wanted = [x.shape[dim] if isinstance(size, int) and size == 0 else size for dim, size in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 1 and x.dim() > 1:
        return x.flatten(1)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _axes(node: Node, axes: Numbers | None) -> list[int] | None:
    given = node.get("axes") if axes is None else as_list(axes)
    return None if given is None else [int(axis) for axis in given]


def _squeeze(node: Node, x: Tensor, axes: Numbers | None = None) -> Tensor:
    chosen = _axes(node, axes)
    return x.squeeze() if chosen is None else x.squeeze(chosen)


def _unsqueeze(node: Node, x: Tensor, axes: Numbers | None = None) -> Tensor:
    chosen = _axes(node, axes) or []
    for axis in sorted(axis % (x.dim() + len(chosen)) for axis in chosen):
        x = x.unsqueeze(axis)
    return x


def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.get("perm") or list(reversed(range(x.dim()))))


def _concat(node: Node, *parts: Tensor) -> Tensor:
    return torch.cat(parts, node.get("axis", 1))


def _split(node: Node, x: Tensor, lengths: Numbers | None = None) -> tuple[Tensor, ...]:
    axis, given = node.get("axis", 0), node.get("split") if lengths is None else as_list(lengths)
    if given is None:
        count = node.get("num_outputs") or len(node.outputs)
        return torch.split(x, -(-x.shape[axis] // count), axis)
    return torch.split(x, given, axis)


def _slice(node: Node, x: Tensor, *given: Numbers | None) -> Tensor:
    values = [None if value is None else as_list(value) for value in given] + [None] * (4 - len(given))
    starts, ends = values[0] or node.get("starts"), values[1] or node.get("ends")
    axes = values[2] or node.get("axes") or list(range(len(starts)))
    steps = values[3] or [1] * len(axes)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        dim = int(axis) % x.dim()
        if step < 0:
            x, start, end = x.flip(dim), *_flipped(start, end, x.shape[dim])  # noqa: PLW2901
        x = x[(*[slice(None)] * dim, slice(start, end, abs(step)))]
    return x


def _flipped(start: int, end: int, size: Any) -> tuple[Any, Any]:
    """Return where a slice backwards begins and ends in the reversed dimension."""
    first = start + size if start < 0 else (size - 1 if start >= size else start)
    last = end + size if -size <= end < 0 else (-1 if end < 0 else end)
    return size - 1 - first, size - 1 - last


def _pad(
    node: Node, x: Tensor, pads: Numbers | None = None, value: Numbers | None = None, axes: Numbers | None = None
) -> Tensor:
    given = node.get("pads") or node.get("paddings") if pads is None else as_list(pads)
    fill = node.get("value", 0.0) if value is None or not value.size else as_list(value)[0]
    dims = [int(axis) % x.dim() for axis in as_list(axes)] if axes is not None else list(range(x.dim()))
    ends: dict[int, tuple[Any, Any]] = dict.fromkeys(range(x.dim()), (0, 0))
    ends |= {dim: (given[place], given[place + len(dims)]) for place, dim in enumerate(dims)}
    mode = node.get("mode", "constant")
    if mode == "constant":
        first = min((dim for dim, both in ends.items() if any(pad != 0 for pad in both)), default=x.dim())
        flat = [pad for dim in reversed(range(first, x.dim())) for pad in ends[dim]]
        return F.pad(x, flat, value=fill) if flat else x
    for dim, both in ends.items():
        x = _pad_with_own(node, x, dim, both, mode) if any(pad != 0 for pad in both) else x
    return x


_MODES = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def _pad_with_own(node: Node, x: Tensor, dim: int, both: tuple[Any, Any], mode: str) -> Tensor:
    """Pad one dimension with elements of the tensor."""
    before, after = both
    if mode not in _MODES:
        raise node.refuse(f"pads in the mode '{mode}', which is not known.")
    if dim == x.dim() - 1 and x.dim() in (2, 3) and x.is_floating_point() and mode != "wrap" and min(both) >= 0:
        return F.pad(x, (before, after), mode={"reflect": "reflect", "edge": "replicate"}[mode])
    cropped = np.arange(x.shape[dim])[max(-before, 0) : x.shape[dim] - max(-after, 0)]
    index = np.pad(cropped, (max(before, 0), max(after, 0)), mode=_MODES[mode])  # type: ignore[call-overload]
    return x.index_select(dim, torch.tensor(index, device=x.device))


def _tile(_node: Node, x: Tensor, repeats: Numbers) -> Tensor:
    return x.repeat(as_list(repeats))


def _expand(_node: Node, x: Tensor, sizes: Numbers) -> Tensor:
    """Broadcast both ways: a size of 1 keeps that of the input."""
    wanted = as_list(sizes)
    rank = max(x.dim(), len(wanted))
    old = [1] * (rank - x.dim()) + list(x.shape)
    new = [1] * (rank - len(wanted)) + wanted
    return x.expand(
        [size if isinstance(goal, int) and goal == 1 else goal for size, goal in zip(old, new, strict=True)]
    )


def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    size = node.get("blocksize")
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, size)
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, size, size, channels // size**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(batch, channels // size**2, height * size, width * size)


def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    size = node.get("blocksize")
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_unshuffle(x, size)
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // size, size, width // size, size).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(batch, channels * size**2, height // size, width // size)


def _dropout(node: Node, x: Tensor, _ratio: Value | None = None, training: Value | None = None) -> Any:
    trains = training is not None and (isinstance(training, Tensor) or bool(as_list(training)[0]))
    if trains:
        raise node.refuse("is in training mode: export the model in inference mode.")
    return (x, torch.ones_like(x, dtype=torch.bool)) if node.wants(1) else x


def _center_crop_pad(node: Node, x: Tensor, sizes: Numbers) -> Tensor:
    axes: Sequence[int] = node.get("axes") or range(x.dim())
    for axis, wanted in zip(axes, as_list(sizes), strict=True):
        size = x.shape[axis]
        if wanted < size:
            x = x.narrow(axis, (size - wanted) // 2, wanted)
        elif wanted > size:
            before = (wanted - size) // 2
            flat = [0, 0] * (x.dim() - 1 - axis % x.dim()) + [before, wanted - size - before]
            x = F.pad(x, flat)
    return x


TABLE: dict[str, Operator] = {
    "Identity": Operator(lambda _node, x: x),
    "Dropout": Operator(_dropout, either=(1, 2)),
    "Reshape": Operator(_reshape, numbers=(1,)),
    "Flatten": Operator(_flatten),
    "Squeeze": Operator(_squeeze, numbers=(1,)),
    "Unsqueeze": Operator(_unsqueeze, numbers=(1,)),
    "Transpose": Operator(_transpose),
    "Concat": Operator(_concat),
    "Split": Operator(_split, numbers=(1,)),
    "Slice": Operator(_slice, numbers=(1, 2, 3, 4)),
    "Pad": Operator(_pad, numbers=(1, 2, 3)),
    "Tile": Operator(_tile, numbers=(1,)),
    "Expand": Operator(_expand, numbers=(1,)),
    "DepthToSpace": Operator(_depth_to_space),
    "SpaceToDepth": Operator(_space_to_depth),
    "CenterCropPad": Operator(_center_crop_pad, numbers=(1,)),
}
