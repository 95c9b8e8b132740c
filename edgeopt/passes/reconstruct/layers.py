"""The layers of a graph whose weights can be fitted, and single rows of what they read and compute."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from edgeopt.passes.aten import aten, read_attribute

_CONVOLUTIONS = {aten.conv1d: 1, aten.conv2d: 2}
"""Operators to their spatial dimensions."""
_DEFAULTS = (None, None, None, (1,), (0,), (1,), 1)
"""Of the arguments of a convolution: input, weight, bias, stride, padding, dilation, groups."""


class FittableLayer(NamedTuple):
    """A convolution over one or two dimensions, or a linear layer, which alone reads its weights."""

    weight_path: str
    """The attribute of the module."""
    weight: Tensor
    bias: Tensor | None
    groups: int
    window: tuple[tuple[int, int], ...] | None
    """Of a convolution: kernel, stride, padding and dilation over two dimensions; None for a linear layer."""

    @property
    def columns(self) -> int:
        """The number of values that each output is computed from."""
        return math.prod(self.weight.shape[1:])


def count_readers(module: fx.GraphModule) -> Counter[str]:
    """Return how many nodes read each attribute."""
    return Counter(
        str(argument.target)
        for node in module.graph.nodes
        for argument in node.all_input_nodes
        if argument.op == "get_attr"
    )


def find_fittable_layers(module: fx.GraphModule) -> dict[str, FittableLayer]:
    """Return the layers by the names of their nodes."""
    readers = count_readers(module)
    found = {}
    for node in module.graph.nodes:
        packet = getattr(node.target, "overloadpacket", None)
        if packet not in (*_CONVOLUTIONS, aten.linear) or node.kwargs:
            continue
        own = [one for one in node.args[1:3] if one is not None]
        if any(one.op != "get_attr" or readers[str(one.target)] != 1 for one in own):
            continue
        weight, *bias = tensors = [read_attribute(module, one) for one in own]
        if not all(isinstance(one, nn.Parameter) for one in tensors):
            continue  # a constant kernel
        window, groups = _read_window(node.args, weight, _CONVOLUTIONS.get(packet, 0))
        if packet is aten.linear or window is not None:
            path = str(own[0].target)
            found[node.name] = FittableLayer(path, weight, bias[0] if bias else None, groups, window)
    return found


def _read_window(
    arguments: Sequence[Any], weight: Tensor, spatial: int
) -> tuple[tuple[tuple[int, int], ...] | None, int]:
    """Return the window and the groups of a convolution; no window if its padding has only a name."""
    if not spatial:
        return None, 1
    stride, padding, dilation, groups = (*arguments, *_DEFAULTS[len(arguments) :])[3:]
    if isinstance(padding, str):
        return None, groups
    pairs = []
    for values, missing in ((weight.shape[2:], 1), (stride, 1), (padding, 0), (dilation, 1)):
        whole = [*values] if len(values) == spatial else [*values] * spatial
        pairs.append((missing, *whole) if spatial == 1 else tuple(whole))
    return tuple(pairs), groups


def output_rows(layer: FittableLayer, output: Tensor) -> Tensor:
    """Return what a layer computes as rows: [positions of all samples, channels]."""
    return output.flatten(0, -2) if layer.window is None else output.flatten(2).transpose(1, 2).flatten(0, 1)


def position_sizes(layer: FittableLayer, x: Tensor) -> tuple[int, ...]:
    """Return the sizes of all dimensions of a layer's output but its channels, given its input."""
    if layer.window is None:
        return tuple(x.shape[:-1])
    spatial = (1, *x.shape[2:])[-2:]
    sizes = (
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, padding, dilation in zip(spatial, *layer.window, strict=True)
    )
    return (x.shape[0], *[*sizes][4 - x.dim() :])


def input_rows(layer: FittableLayer, x: Tensor, output_sizes: Sequence[int], positions: Tensor) -> Tensor:
    """Return what a layer reads for some rows of its output: [groups, positions, columns].

    Args:
        layer: The layer.
        x: Its input.
        output_sizes: Of the spatial dimensions of its output; empty for a linear layer.
        positions: Indices of the rows.
    """
    if layer.window is None:
        return x.flatten(0, -2)[positions].unsqueeze(0)
    kernel, stride, padding, dilation = layer.window
    x = x.unsqueeze(2) if len(output_sizes) == 1 else x
    width, count = output_sizes[-1], math.prod(output_sizes)
    sample, rest = positions // count, positions % count
    rows = (rest // width * stride[0])[:, None] + torch.arange(kernel[0]) * dilation[0]
    columns = (rest % width * stride[1])[:, None] + torch.arange(kernel[1]) * dilation[1]
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    read = padded[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # positions, kernel, channels
    return read.permute(0, 3, 1, 2).reshape(len(positions), layer.groups, -1).transpose(0, 1)
