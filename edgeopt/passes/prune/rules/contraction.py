"""Operators that mix channels: convolutions, linear layers, matrix products.

All are one thing: broadcast two operands to a common shape, multiply, and sum over one dimension. Labels of both
operands along that dimension go together and end there; the others pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgeopt.passes.prune.labels import FIXED_SIZE, KERNEL, NO_RULE, Labels, Marked, varying
from edgeopt.passes.prune.rules.call import Call, Layers, Rule
from edgeopt.passes.prune.rules.elementwise import independent_of, match

aten = torch.ops.aten


def contract(labels: Labels, one: Marked, other: Marked, shape: tuple[int, ...], dim: int) -> Layers:
    """Multiply two operands broadcast to ``shape`` and sum over ``dim`` (its size becomes 1).

    A layer that depends on ``dim`` and on more (heads and their depth) is tied along ``dim``: whole heads go.
    """
    result: list[Tensor] = []
    for layer in match(labels, [one, other], shape):
        if layer.shape[dim] > 1:
            if len(varying(layer)) == 1:
                continue
            labels.tie(layer, dim)
        result.append(layer.narrow(dim, 0, 1))
    return tuple(result)


def linear(labels: Labels, call: Call) -> Layers:
    """``x[..., k] weight[n, k] + bias[n]``."""
    x, weight, bias = call["input"], call["weight"], call["bias"]
    shape = (*x.shape[:-1], *weight.shape)
    lifted = Marked((*x.shape[:-1], 1, x.shape[-1]), tuple(layer.unsqueeze(-2) for layer in x.layers))
    result = tuple(layer.squeeze(-1) for layer in contract(labels, lifted, weight, shape, len(shape) - 1))
    return _plus(labels, call, result, bias)


def matmul(labels: Labels, call: Call) -> Layers:
    """``one[..., m, k] other[..., k, n]``; vectors have no rule and freeze."""
    one, other = call.operands[-2:]
    if min(len(one.shape), len(other.shape)) < 2:
        labels.freeze([*one.layers, *other.layers], NO_RULE)
        return ()
    left = Marked((*one.shape[:-1], 1, one.shape[-1]), tuple(layer.unsqueeze(-2) for layer in one.layers))
    right = Marked(
        (*other.shape[:-2], 1, other.shape[-1], other.shape[-2]),
        tuple(layer.transpose(-1, -2).unsqueeze(-3) for layer in other.layers),
    )
    shape = (*call.shape, one.shape[-1])
    return tuple(layer.squeeze(-1) for layer in contract(labels, left, right, shape, len(shape) - 1))


def addmm(labels: Labels, call: Call) -> Layers:
    """``bias + one[m, k] other[k, n]``."""
    return _plus(labels, call, matmul(labels, call), call["self"])


def _plus(labels: Labels, call: Call, layers: Layers, bias: Marked | None) -> Layers:
    return match(labels, [Marked(call.shape, layers)] + ([bias] if bias is not None else []), call.shape)


def convolution(labels: Labels, call: Call) -> Layers:
    """A convolution of any rank, ``weight[out, in / groups, *kernel]``."""
    return _convolve(labels, call, transposed=False)


def transposed_convolution(labels: Labels, call: Call) -> Layers:
    """A transposed convolution, ``weight[in, out / groups, *kernel]``."""
    return _convolve(labels, call, transposed=True)


def _convolve(labels: Labels, call: Call, transposed: bool) -> Layers:
    x, bias, groups = call["input"], call["bias"], int(call["groups"])
    if len(x.shape) != len(call["weight"].shape):
        labels.freeze([layer for value in call.operands for layer in value.layers], "a convolution without batch")
        return ()
    kernel = len(x.shape) - 2
    weight = _channels_only(labels, call["weight"], kernel, KERNEL)
    x = _channels_only(labels, x, kernel, FIXED_SIZE)
    if groups > 1:
        line = _grouped(labels, x, weight, groups, transposed)
        layers: Layers = () if line is None else (line.reshape(1, -1),)
    else:
        rows = weight.shape[::-1] if transposed else weight.shape
        turned = Marked(rows, tuple(layer.t() if transposed else layer for layer in weight.layers))
        lifted = Marked((x.shape[0], 1, x.shape[1]), tuple(layer.unsqueeze(1) for layer in x.layers))
        layers = tuple(layer.squeeze(-1) for layer in contract(labels, lifted, turned, (x.shape[0], *rows), 2))
    layers = tuple(layer.reshape(*layer.shape, *[1] * kernel) for layer in layers)
    if bias is not None:
        bias = Marked((*bias.shape, *[1] * kernel), tuple(layer.reshape(-1, *[1] * kernel) for layer in bias.layers))
    return _plus(labels, call, layers, bias)


def _channels_only(labels: Labels, value: Marked, kernel: int, why: str) -> Marked:
    """Let nothing depend on the last ``kernel`` dimensions, and drop them."""
    positions = set(range(2, len(value.shape)))
    kept = tuple(layer.reshape(layer.shape[:2]) for layer in independent_of(labels, value.layers, positions, why))
    return Marked(value.shape[: len(value.shape) - kernel], kept)


def _grouped(labels: Labels, x: Marked, weight: Marked, groups: int, transposed: bool) -> Tensor | None:
    """Handle a convolution in groups; return the label of each output channel, or None where it has none.

    Where a group has one input or one output channel (depthwise), whole groups go. Else the number of groups stays,
    and the j-th channel goes from every group at once.
    """
    source = line_along(labels, x, 1)
    rows, columns = line_along(labels, weight, 0), line_along(labels, weight, 1)
    inputs = x.shape[1] // groups
    outputs = weight.shape[1] if transposed else weight.shape[0] // groups
    if source is None or rows is None:
        labels.freeze([line for line in (source, rows, columns) if line is not None])
        return None
    if inputs == 1 or outputs == 1:
        if columns is not None:
            labels.freeze(columns, "whole groups of a convolution go")
        group = source.reshape(groups, -1)[:, :1]
        labels.unite(source.reshape(groups, -1), group)
        labels.unite(rows.reshape(groups, -1), group)
        return group.expand(groups, outputs).reshape(-1)
    assert columns is not None, "a dimension above 1 of a parameter that is no activation"
    if transposed:
        labels.unite(source, rows)
        labels.unite(source.reshape(groups, -1), source.reshape(groups, -1)[:1])
        return columns.repeat(groups)
    labels.unite(source.reshape(groups, -1), columns.reshape(1, -1))
    labels.unite(rows.reshape(groups, -1), rows.reshape(groups, -1)[:1])
    return rows


def line_along(labels: Labels, value: Marked, dim: int) -> Tensor | None:
    """Return the labels along one dimension as a vector; further layers along it freeze."""
    along = [layer for layer in value.layers if layer.shape[dim] > 1]
    lines = [layer for layer in along if len(varying(layer)) == 1]
    labels.freeze([layer for layer in along if not lines or layer is not lines[0]])
    return lines[0].reshape(-1) if lines else None


RULES: dict[Any, Rule] = {
    aten.linear: linear,
    aten.matmul: matmul,
    aten.mm: matmul,
    aten.bmm: matmul,
    aten.addmm: addmm,
    **dict.fromkeys((aten.conv1d, aten.conv2d, aten.conv3d), convolution),
    **dict.fromkeys((aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d), transposed_convolution),
}
