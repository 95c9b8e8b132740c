"""Operators that compute each element from the operands' elements at the same position: their labels go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from edgeopt.passes.aten import aten
from edgeopt.passes.prune.labels import FIXED_SIZE, Labels, Marked, varying_dims
from edgeopt.passes.prune.rules.call import Call, Layers, Rule

LayersByDims = dict[frozenset[int], Tensor]
"""The layers of an operand, by the dimensions that they depend on."""


def match(labels: Labels, operands: Sequence[Marked], shape: Sequence[int]) -> Layers:
    """Unite the layers of operands that are broadcast to one shape.

    Layers that depend on the same dimensions go together. If an operand has full size in a dimension but no labels
    there, it cannot be cut and the others' labels freeze; an operand of size 1 is broadcast and has no effect. If
    layers share only some dimensions (heads, against heads and depth), ``Labels.choose`` defers how they shrink.

    Example: (batch, 8, h, w) with a layer (1, 8, 1, 1), times a gate (batch, 8, 1, 1) with its own layer: both unite.
    Plus a position table (1, 1, h, w) with a layer along h and one along w: these freeze, as the image has none.
    """
    tables = [_sort_by_dims(operand, len(shape)) for operand in operands]
    sizes = [(1,) * (len(shape) - len(operand.shape)) + operand.shape for operand in operands]
    result: list[Tensor] = []
    layer: Tensor | None
    for dims in sorted({dims for table in tables for dims in table}, key=lambda dims: (len(dims), sorted(dims))):
        [layer, *others] = [table[dims] for table in tables if dims in table]
        for other in others:
            labels.unite(layer, other)
        if any(other > dims for table in tables for other in table if dims not in table):
            continue  # the layer with more dimensions replaces this one, and meets it later in this loop
        for table, size in zip(tables, sizes, strict=True):
            met = frozenset(dim for dim in dims if size[dim] > 1)
            if met and dims not in table and layer is not None:
                layer = _meet(labels, layer, table, met)
        if layer is not None:
            result.append(layer)
    return simplify_layers(labels, result)


def simplify_layers(labels: Labels, layers: Sequence[Tensor]) -> Layers:
    """Drop each layer whose dimensions another layer has too; its labels go with those of the wider layer."""
    result: list[Tensor] = []
    for layer in sorted(layers, key=lambda layer: -len(varying_dims(layer))):
        wider = [other for other in result if set(varying_dims(other)) >= set(varying_dims(layer))]
        if not wider:
            result.append(layer)
        elif labels.is_created(layer):
            labels.freeze(layer)
        elif varying_dims(wider[0]) == varying_dims(layer):
            labels.unite(layer, wider[0])
        else:
            labels.choose(layer, wider[0])
    return tuple(result)


def _meet(labels: Labels, layer: Tensor, table: LayersByDims, met: frozenset[int]) -> Tensor | None:
    """Let a layer meet an operand that has full size along ``met`` but no layer of the same dimensions.

    Returns:
        The layer, constant along dimensions without labels of the operand; None if the operand's layer replaces it.
    """
    met &= set(varying_dims(layer))
    partners = {dims & met: (dims, other_layer) for dims, other_layer in table.items() if dims & met}
    for dim in met - frozenset().union(*partners):
        if varying_dims(layer) == (dim,):
            labels.freeze(layer)
            return None
        layer = labels.tie(layer, dim)
    for shared, (other_dims, other_layer) in partners.items():
        line = other_layer if other_dims == shared else labels.follow([other_layer], other_dims - shared)
        if set(varying_dims(layer)) == shared:
            labels.unite(layer, line)
            return layer if other_dims == shared else None
        labels.choose(line, layer)
    return layer


def sum_over(labels: Labels, layers: Layers, dims: set[int]) -> Layers:
    """Sum over ``dims``, to size 1: labels along them end. A layer of heads and depth leaves one label per head."""
    result = []
    for layer in layers:
        over = dims.intersection(varying_dims(layer))
        if not over:
            result.append(layer)
        elif len(over) < len(varying_dims(layer)):
            result.append(labels.follow([layer], over))
    return tuple(result)


def _sort_by_dims(operand: Marked, ndim: int) -> LayersByDims:
    """Sort an operand's layers by the dimensions of the result that they depend on."""
    aligned = [layer.reshape((1,) * (ndim - layer.ndim) + tuple(layer.shape)) for layer in operand.layers]
    return {frozenset(varying_dims(layer)): layer for layer in aligned}


def split(layer: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Split one dimension into several."""
    return layer.reshape(*layer.shape[:dim], *sizes, *layer.shape[dim:][1:])


def make_independent(labels: Labels, layers: Layers, dims: set[int], why: str = FIXED_SIZE) -> Layers:
    """Make layers constant along ``dims``: tie a layer that also depends on other dimensions, freeze one that does not.

    Example: after a pixel shuffle, labels depend on channels and positions. A convolution mixes positions, so it ties
    them along the positions, and whole channels go.
    """
    result = []
    for layer in layers:
        tied_dims = [dim for dim in varying_dims(layer) if dim in dims]
        if len(tied_dims) == len(varying_dims(layer)):
            labels.freeze(layer, why)
            continue
        tied = layer
        for dim in tied_dims:
            labels.tie(tied, dim)
            tied = tied.narrow(dim, 0, 1)
        result.append(tied)
    return tuple(result)


def elementwise(labels: Labels, call: Call) -> Layers:
    """Match any number of operands, broadcast; several results have the same labels."""
    return match(labels, call.operands, call.shape[0] if isinstance(call.shape, list) else call.shape)


def compare_with_table(labels: Labels, call: Call) -> Layers:
    """Compare each element with all numbers of a table, which stay: ``bucketize``, ``isin``."""
    call.freeze_others(labels)
    return call.input.layers if call.input.shape == call.shape else ()


def keep_layers(labels: Labels, call: Call) -> Layers:
    """Keep the layers: copies, casts, dropout."""
    del labels
    return call.input.layers


_KEEPING: tuple[Any, ...] = (
    aten.contiguous, aten.clone, aten.alias, aten.detach, aten.to, aten._to_copy, aten.type_as,
    aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.feature_alpha_dropout, aten.native_dropout,
    aten.lift, aten.lift_fresh, aten.resolve_conj, aten.resolve_neg, aten._neg_view, aten.randint_like, aten.zeros_like,
    aten.ones_like, aten.full_like, aten.empty_like, aten.rand_like, aten.randn_like,
)  # fmt: skip
_UNTAGGED: tuple[Any, ...] = (
    aten.hardswish, aten.relu6, aten.selu, aten.celu, aten.rrelu, aten.where, aten.masked_fill,
    aten.__and__, aten.__or__, aten.__xor__, aten.rsub, aten.log_sigmoid, aten.floor_divide,
    aten.isclose, aten.fake_quantize_per_tensor_affine,
    aten.bernoulli, aten.normal, aten.normal_functional, aten.log_normal, aten.uniform, aten.exponential, aten.cauchy,
    aten.geometric, aten.poisson,
)  # fmt: skip

RULES: dict[Any, Rule] = {
    **dict.fromkeys(_KEEPING, keep_layers),
    **dict.fromkeys(_UNTAGGED, elementwise),
    **dict.fromkeys((aten.bucketize, aten.isin), compare_with_table),
}
