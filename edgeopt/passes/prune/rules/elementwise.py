"""Operators that compute each element from the elements at the same place: their operands' labels go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgeopt.passes.prune.labels import FIXED_SIZE, Labels, Marked, varying
from edgeopt.passes.prune.rules.call import Call, Layers, Rule

aten = torch.ops.aten


def match(labels: Labels, operands: Sequence[Marked], shape: Sequence[int]) -> Layers:
    """Unite the layers of operands that are broadcast to one shape.

    Layers that depend on the same dimensions go together. An operand of full size without labels there cannot be
    cut, so the others' labels freeze; one of size 1 there is broadcast and does not matter.

    Example: (batch, 8, h, w) with one layer (1, 8, 1, 1), times a gate (batch, 8, 1, 1) with its own: both unite.
    Plus a position table (1, 1, h, w) with one layer along h and one along w: those freeze, for the image has none.
    """
    tables = [_by_dims(operand, len(shape)) for operand in operands]
    sizes = [(1,) * (len(shape) - len(operand.shape)) + operand.shape for operand in operands]
    result: list[Tensor] = []
    for dims in sorted({dims for table in tables for dims in table}, key=lambda dims: (len(dims), sorted(dims))):
        first = next(table[dims] for table in tables if dims in table)
        absorbed = False
        for table, size in zip(tables, sizes, strict=True):
            own = table.get(dims)
            comparable = [other for other in table if other < dims or other > dims]
            if own is not None:
                for one, other in zip(first, own, strict=False):
                    labels.unite(one, other)
                shortest = min(len(first), len(own))
                labels.freeze([*first[shortest:], *own[shortest:]])
            elif all(size[dim] == 1 for dim in dims):
                continue
            elif comparable:
                absorbed |= comparable[0] < dims
                labels.unite(first[0], table[comparable[0]][0])
            else:
                labels.freeze(first)
        if not absorbed:
            result.extend(first)
    return tuple(result)


def _by_dims(operand: Marked, ndim: int) -> dict[frozenset[int], list[Tensor]]:
    """Sort an operand's layers by the dimensions of the result that they depend on."""
    table: dict[frozenset[int], list[Tensor]] = {}
    for layer in operand.layers:
        aligned = layer.reshape((1,) * (ndim - layer.ndim) + tuple(layer.shape))
        table.setdefault(frozenset(varying(aligned)), []).append(aligned)
    return table


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


SAME: tuple[Any, ...] = (
    aten.contiguous, aten.clone, aten.alias, aten.detach, aten.to, aten._to_copy, aten.type_as,
    aten.dropout, aten.dropout_, aten.feature_dropout,
)  # fmt: skip
UNTAGGED: tuple[Any, ...] = (aten.hardswish, aten.hardswish_, aten.relu6, aten.selu, aten.selu_, aten.celu, aten.rrelu)

RULES: dict[Any, Rule] = {**dict.fromkeys(SAME, unchanged), **dict.fromkeys(UNTAGGED, elementwise)}
