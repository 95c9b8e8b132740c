"""Operators that compute each element from the elements at the same place: their operands' labels go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from edgeopt.passes.aten import aten
from edgeopt.passes.prune.labels import FIXED_SIZE, Labels, Marked, varying
from edgeopt.passes.prune.rules.call import Call, Layers, Rule

Table = dict[frozenset[int], Tensor]
"""The layers of an operand by the dimensions that they depend on."""


def match(labels: Labels, operands: Sequence[Marked], shape: Sequence[int]) -> Layers:
    """Unite the layers of operands that are broadcast to one shape.

    Layers that depend on the same dimensions go together. An operand of full size without labels there cannot be
    cut, so the others' labels freeze; one of size 1 there is broadcast and does not matter. Where layers share some
    dimensions only (heads, against heads and depth), ``Labels.choose`` leaves it to the end how they shrink.

    Example: (batch, 8, h, w) with one layer (1, 8, 1, 1), times a gate (batch, 8, 1, 1) with its own: both unite.
    Plus a position table (1, 1, h, w) with one layer along h and one along w: those freeze, for the image has none.
    """
    tables = [_by_dims(operand, len(shape)) for operand in operands]
    sizes = [(1,) * (len(shape) - len(operand.shape)) + operand.shape for operand in operands]
    result: list[Tensor] = []
    layer: Tensor | None
    for dims in sorted({dims for table in tables for dims in table}, key=lambda dims: (len(dims), sorted(dims))):
        [layer, *others] = [table[dims] for table in tables if dims in table]
        for other in others:
            labels.unite(layer, other)
        if any(other > dims for table in tables for other in table if dims not in table):
            continue  # the layer of more dimensions stands for this one, which it meets in its own turn
        for table, size in zip(tables, sizes, strict=True):
            met = frozenset(dim for dim in dims if size[dim] > 1)
            if met and dims not in table and layer is not None:
                layer = _meet(labels, layer, table, met)
        if layer is not None:
            result.append(layer)
    return simplest(labels, result)


def simplest(labels: Labels, layers: Sequence[Tensor]) -> Layers:
    """Leave one layer for each set of dimensions, and none whose dimensions another has too: it goes with that one."""
    result: list[Tensor] = []
    for layer in sorted(layers, key=lambda layer: -len(varying(layer))):
        wider = [other for other in result if set(varying(other)) >= set(varying(layer))]
        if not wider:
            result.append(layer)
        elif labels.is_made(layer):
            labels.freeze(layer)
        elif varying(wider[0]) == varying(layer):
            labels.unite(layer, wider[0])
        else:
            labels.choose(layer, wider[0])
    return tuple(result)


def _meet(labels: Labels, layer: Tensor, table: Table, met: frozenset[int]) -> Tensor | None:
    """Let a layer meet an operand of full size along ``met`` that has no layer of the same dimensions.

    Returns:
        The layer, constant along dimensions where the operand has no labels; None where the operand's stand for it.
    """
    met &= set(varying(layer))
    partners = {other & met: (other, partner) for other, partner in table.items() if other & met}
    for dim in met - frozenset().union(*partners):
        if varying(layer) == (dim,):
            labels.freeze(layer)
            return None
        layer = labels.tie(layer, dim)
    for shared, (other, partner) in partners.items():
        line = partner if other == shared else labels.follow([partner], other - shared)
        if set(varying(layer)) == shared:
            labels.unite(layer, line)
            return layer if other == shared else None
        labels.choose(line, layer)
    return layer


def summed(labels: Labels, layers: Layers, dims: set[int]) -> Layers:
    """Sum over ``dims``, to size 1: labels along those end there; of heads and depth, a label a head is left."""
    result = []
    for layer in layers:
        over = dims.intersection(varying(layer))
        if not over:
            result.append(layer)
        elif len(over) < len(varying(layer)):
            result.append(labels.follow([layer], over))
    return tuple(result)


def _by_dims(operand: Marked, ndim: int) -> Table:
    """Sort an operand's layers by the dimensions of the result that they depend on."""
    aligned = [layer.reshape((1,) * (ndim - layer.ndim) + tuple(layer.shape)) for layer in operand.layers]
    return {frozenset(varying(layer)): layer for layer in aligned}


def split(layer: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Split one dimension into several."""
    return layer.reshape(*layer.shape[:dim], *sizes, *layer.shape[dim:][1:])


def independent_of(labels: Labels, layers: Layers, dims: set[int], why: str = FIXED_SIZE) -> Layers:
    """Make layers constant along ``dims``: tie a layer that depends on others too, freeze one that does not.

    Example: after a pixel shuffle labels depend on channels and on positions; a convolution, which mixes positions,
    ties them along the positions, and whole channels go.
    """
    result = []
    for layer in layers:
        crossed = [dim for dim in varying(layer) if dim in dims]
        if len(crossed) == len(varying(layer)):
            labels.freeze(layer, why)
            continue
        tied = layer
        for dim in crossed:
            labels.tie(tied, dim)
            tied = tied.narrow(dim, 0, 1)
        result.append(tied)
    return tuple(result)


def elementwise(labels: Labels, call: Call) -> Layers:
    """Any number of operands, broadcast."""
    return match(labels, call.operands, call.shape)


def unchanged(labels: Labels, call: Call) -> Layers:
    """The same elements: copies, other types, dropout."""
    del labels
    return call.input.layers


_SAME: tuple[Any, ...] = (
    aten.contiguous, aten.clone, aten.alias, aten.detach, aten.to, aten._to_copy, aten.type_as,
    aten.dropout, aten.dropout_, aten.feature_dropout, aten.alpha_dropout, aten.lift_fresh_copy,
    aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.rand_like, aten.randn_like,
)  # fmt: skip
UNTAGGED: tuple[Any, ...] = (aten.hardswish, aten.hardswish_, aten.relu6, aten.selu, aten.selu_, aten.celu, aten.rrelu)
UNTAGGED += (aten.expand_as, aten.where, aten.masked_fill)

RULES: dict[Any, Rule] = {**dict.fromkeys(_SAME, unchanged), **dict.fromkeys(UNTAGGED, elementwise)}
