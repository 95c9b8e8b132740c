"""Convolutions and transposed convolutions over one to three spatial dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from edgeopt.onnx_module.node import Node, Operator
from edgeopt.onnx_module.operators.windows import is_even, pad_ends, read_pads

_CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def _check_rank(node: Node, weight: Tensor) -> int:
    rank = weight.dim() - 2
    if rank not in _CONVOLVE:
        raise node.refuse(f"has {rank} spatial dimensions; torch has convolutions over one to three.")
    return rank


def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = _check_rank(node, weight)
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    begin, end = read_pads(node, x.shape[2:], weight.shape[2:], strides, dilations)
    if not is_even(begin, end):
        x, begin = pad_ends(x, begin, end, 0.0), [0] * rank
    return _CONVOLVE[rank](x, weight, bias, strides, begin, dilations, node.get("group", 1))


def _conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = _check_rank(node, weight)
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    extra, group = node.get("output_padding", [0] * rank), node.get("group", 1)
    begin, end = _transposed_pads(node, x, weight, strides, dilations, extra)
    fits = all(
        0 <= more < max(stride, dilation) for more, stride, dilation in zip(extra, strides, dilations, strict=True)
    )
    if is_even(begin, end) and fits:
        return _TRANSPOSED[rank](x, weight, bias, strides, begin, extra, group, dilations)
    full = _TRANSPOSED[rank](x, weight, None, strides, 0, 0, group, dilations)
    cut = pad_ends(full, [-pad for pad in begin], [more - pad for more, pad in zip(extra, end, strict=True)], 0.0)
    return cut if bias is None else cut + bias.reshape(-1, *[1] * rank)


def _transposed_pads(
    node: Node, x: Tensor, weight: Tensor, strides: list[int], dilations: list[int], extra: list[int]
) -> tuple[list[Any], list[Any]]:
    """Return what is cropped before and after each dimension, from ``pads``, ``output_shape`` or ``auto_pad``."""
    mode, asked = node.get("auto_pad", "NOTSET"), node.get("output_shape")
    rank = len(strides)
    if asked is None and mode not in ("SAME_UPPER", "SAME_LOWER"):
        pads = node.get("pads") or [0] * 2 * rank
        return (pads[:rank], pads[rank:]) if mode != "VALID" else ([0] * rank, [0] * rank)
    sizes = list(x.shape[2:])
    wanted = list(asked[-rank:]) if asked else [size * stride for size, stride in zip(sizes, strides, strict=True)]
    totals = [
        stride * (size - 1) + more + (length - 1) * dilation + 1 - goal
        for size, stride, more, length, dilation, goal in zip(
            sizes, strides, extra, weight.shape[2:], dilations, wanted, strict=True
        )
    ]
    halves, rests = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (halves, rests) if mode == "SAME_UPPER" else (rests, halves)


TABLE: dict[str, Operator] = {
    "Conv": Operator(_conv, weights=(1, 2)),
    "ConvTranspose": Operator(_conv_transpose, weights=(1, 2)),
}
