"""Convolutions whose weight gradient crashes in PyTorch, computed in another way.

oneDNN 3.12 (torch 2.13) writes out of bounds in the weight gradient of a 1x1 convolution with a stride, no padding and
one group, in channels-last memory, if its input has more than one channel but fewer than a vector register holds
(8 with AVX2, 16 with AVX-512): a segmentation fault, or silently damaged memory. A network that was pruned in front of
a strided shortcut has exactly this layer. With the stride taken out of the convolution (every second value of the
input, then a convolution with stride 1) the result is the same and another kernel computes it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeopt.passes.aten import aten

_REGISTER_CHANNELS = 16
"""32-bit numbers in the widest vector register (AVX-512)."""


def find_layout(module: nn.Module) -> torch.memory_format:
    """Return the memory format to train an untraced module in: channels last, which is fastest, unless that crashes."""
    shortcuts = [one for one in module.modules() if isinstance(one, nn.Conv2d) and set(one.kernel_size) == {1}]
    crashes = any(set(one.stride) != {1} and one.in_channels < _REGISTER_CHANNELS for one in shortcuts)
    return torch.contiguous_format if crashes else torch.channels_last


def take_stride_out(module: nn.Module) -> nn.Module:
    """Return a traced module, over the same tensors, in which no convolution has the gradient that crashes.

    A module that is not a graph is returned as it is.
    """
    if not isinstance(module, fx.GraphModule):
        return module
    graph = copy.deepcopy(module.graph)
    replaced = 0
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _SAFE and _has_stride(node):
            node.target = _SAFE[node.target]
            replaced += 1
    return fx.GraphModule(module, graph) if replaced else module


def _has_stride(node: fx.Node) -> bool:
    """Tell whether a convolution has a stride. Exported graphs have it, like all that precedes it, by position."""
    stride = node.args[3] if len(node.args) > 3 else ()
    return isinstance(stride, Sequence) and any(size != 1 for size in stride)


def _safe(convolution: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a convolution that takes its stride out if it is one of those that crash."""

    def convolve(
        x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], *others: Any, **named: Any
    ) -> Tensor:
        spatial = weight.dim() - 2
        padding = others[0] if others else named.get("padding", 0)
        groups = others[2] if len(others) > 2 else named.get("groups", 1)
        is_pointwise = all(size == 1 for size in weight.shape[2:]) and groups == 1 and _is_zero(padding)
        if is_pointwise and 1 < weight.shape[1] < _REGISTER_CHANNELS and x.dim() == weight.dim():
            steps = list(stride) * spatial if len(stride) == 1 else stride
            x = x[(slice(None), slice(None), *(slice(None, None, step) for step in steps))]
            stride = [1] * spatial
        return convolution(x, weight, bias, stride, *others, **named)

    return convolve


def _is_zero(padding: Any) -> bool:
    if isinstance(padding, str):
        return padding in ("valid", "same")  # of a kernel of one value: none
    return all(size == 0 for size in (padding if isinstance(padding, Sequence) else (padding,)))


_SAFE: dict[Any, Callable[..., Tensor]] = {
    operator: _safe(operator)
    for operator in (
        aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding, aten.conv3d.default,
        aten.conv3d.padding,
    )
}  # fmt: skip
