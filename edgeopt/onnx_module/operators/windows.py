"""Padding of windows that slide over the spatial dimensions: explicit, SAME and VALID."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeopt.onnx_module.node import Node


def read_pads(
    node: Node, sizes: Sequence[Any], kernel: Sequence[Any], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[list[Any], list[Any]]:
    """Return the padding before and after each spatial dimension.

    Args:
        node: With ``pads`` or ``auto_pad``.
        sizes: Of the spatial dimensions.
        kernel: Its sizes.
        strides: In each dimension.
        dilations: In each dimension.
    """
    count, mode = len(sizes), node.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        pads = node.get("pads") or [0] * 2 * count
        return list(pads[:count]), list(pads[count:])
    if mode == "VALID":
        return [0] * count, [0] * count
    totals = [
        _same_total(size, (length - 1) * dilation + 1, stride)
        for size, length, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    halves, rests = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (halves, rests) if mode == "SAME_UPPER" else (rests, halves)


def _same_total(size: Any, reach: Any, stride: int) -> Any:
    """Return how much padding gives ``ceil(size / stride)`` windows."""
    if stride == 1:
        return reach - 1
    return torch.sym_max(  # type: ignore[no-untyped-call]
        (size + stride - 1) // stride * stride - stride + reach - size, 0
    )


def pad_ends(x: Tensor, begin: Sequence[Any], end: Sequence[Any], value: float) -> Tensor:
    """Pad the spatial dimensions; negative padding crops."""
    flat = [pad for pair in zip(reversed(begin), reversed(end), strict=True) for pad in pair]
    if all(isinstance(pad, int) and pad == 0 for pad in flat):
        return x
    return F.pad(x, flat, value=value)


def is_even(begin: Sequence[Any], end: Sequence[Any]) -> bool:
    """Tell whether both ends get the same known padding, which torch's operators can do themselves."""
    return all(isinstance(a, int) and isinstance(b, int) and a == b >= 0 for a, b in zip(begin, end, strict=True))
