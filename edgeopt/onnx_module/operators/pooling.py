"""Pooling over windows, and over all spatial positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeopt.onnx_module.node import Node, Operator
from edgeopt.onnx_module.operators.windows import is_even, pad_ends, read_pads

_MAX: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class _Window:
    """The window of a pooling node over an input."""

    def __init__(self, node: Node, x: Tensor) -> None:
        self.kernel: list[int] = node.get("kernel_shape")
        self.rank = len(self.kernel)
        if self.rank not in _MAX:
            raise node.refuse(f"has {self.rank} spatial dimensions; torch pools over one to three.")
        self.strides: list[int] = node.get("strides") or [1] * self.rank
        self.dilations: list[int] = node.get("dilations") or [1] * self.rank
        self.ceil = bool(node.get("ceil_mode", 0)) and node.get("auto_pad", "NOTSET") == "NOTSET"
        self.begin, self.end = read_pads(node, x.shape[2:], self.kernel, self.strides, self.dilations)

    @property
    def is_native(self) -> bool:
        """Whether torch's operators pad in this way."""
        return is_even(self.begin, self.end) and all(
            pad <= length // 2 for pad, length in zip(self.begin, self.kernel, strict=True)
        )

    def ceil_ends(self, x: Tensor) -> list[Any]:
        """Return the padding at the end that gives exactly the windows of ONNX's size with ``ceil_mode``.

        A window that would begin behind the input and its first padding is left out, as in torch.
        """
        if not self.ceil:
            return self.end
        ends = []
        for size, before, after, length, stride, dilation in zip(
            x.shape[2:], self.begin, self.end, self.kernel, self.strides, self.dilations, strict=True
        ):
            reach = (length - 1) * dilation + 1
            count = -(-(size + before + after - reach) // stride) + 1
            count = count - 1 if (count - 1) * stride >= size + before else count
            ends.append((count - 1) * stride + reach - size - before)
        return ends


def _max_pool(node: Node, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    window = _Window(node, x)
    begin, ceil = window.begin, window.ceil
    if not window.is_native:
        if node.wants(1):
            raise node.refuse("returns indices with a padding that torch has not.")
        lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        x, begin, ceil = pad_ends(x, begin, window.ceil_ends(x), lowest), [0] * window.rank, False
    found = _MAX[window.rank](
        x, window.kernel, window.strides, begin, window.dilations, ceil_mode=ceil, return_indices=node.wants(1)
    )
    return (found[0], _flat_indices(node, x, found[1])) if node.wants(1) else found


def _flat_indices(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    """Turn indices within each channel into indices within the whole tensor, in row-major order."""
    if node.get("storage_order", 0):
        raise node.refuse("returns indices in column-major order, which is not supported.")
    channels = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(x.shape[0], x.shape[1])
    return indices + (channels * math.prod(x.shape[2:])).reshape(*channels.shape, *[1] * (x.dim() - 2))


def _average_pool(node: Node, x: Tensor) -> Tensor:
    window = _Window(node, x)
    if any(dilation != 1 for dilation in window.dilations):
        raise node.refuse("has dilations, which torch's average pooling has not.")
    pool, counts_padding = _AVERAGE[window.rank], bool(node.get("count_include_pad", 0))
    if window.is_native:
        return pool(x, window.kernel, window.strides, window.begin, window.ceil, counts_padding)
    ends = window.ceil_ends(x)
    sums = pool(pad_ends(x, window.begin, ends, 0.0), window.kernel, window.strides)
    if counts_padding and not window.ceil:
        return sums
    ones = x.new_ones(1, 1, *x.shape[2:])
    if counts_padding:  # the given padding counts, what ceil_mode adds does not
        ones = pad_ends(ones, window.begin, window.end, 1.0)
        rest = [after - given for after, given in zip(ends, window.end, strict=True)]
        ones = pad_ends(ones, [0] * window.rank, rest, 0.0)
    else:
        ones = pad_ends(ones, window.begin, ends, 0.0)
    return sums / pool(ones, window.kernel, window.strides)


def _lp_pool(node: Node, x: Tensor) -> Tensor:
    window, order = _Window(node, x), node.get("p", 2)
    if any(dilation != 1 for dilation in window.dilations):
        raise node.refuse("has dilations, which is not supported.")
    padded = pad_ends(x.abs() ** order, window.begin, window.ceil_ends(x), 0.0)
    sums: Tensor = _AVERAGE[window.rank](padded, window.kernel, window.strides) * math.prod(window.kernel)
    return torch.pow(sums, 1 / order)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


TABLE: dict[str, Operator] = {
    "MaxPool": Operator(_max_pool),
    "AveragePool": Operator(_average_pool),
    "LpPool": Operator(_lp_pool),
    "GlobalAveragePool": Operator(lambda _node, x: x.mean(_spatial(x), keepdim=True)),
    "GlobalMaxPool": Operator(lambda _node, x: x.amax(_spatial(x), keepdim=True)),
    "GlobalLpPool": Operator(
        lambda node, x: (x.abs() ** node.get("p", 2)).sum(_spatial(x), keepdim=True) ** (1 / node.get("p", 2))
    ),
}
