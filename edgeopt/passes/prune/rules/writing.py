"""Operators that write into a part of a tensor: scatter_values, index_add, index_put, copies into slices.

The result has the labels of the tensor that is written into. What is written goes together with the part that it
replaces; positions that an index refers to must stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edgeopt.passes.aten import aten
from edgeopt.passes.prune.labels import Labels, Marked
from edgeopt.passes.prune.rules.call import Call, Layers, Rule
from edgeopt.passes.prune.rules.elementwise import keep_layers, make_independent, match
from edgeopt.passes.prune.rules.movement import LOOKED_UP, freeze_computed_bounds

_OVERWRITTEN = "written at a fixed position"


def copy_into(labels: Labels, call: Call) -> Layers:
    """``self[...] = src``, broadcast: both go together."""
    return match(labels, [call["self"], call["src"]], call.shape)


def scatter_values(labels: Labels, call: Call) -> Layers:
    """``self[..., index, ...] = src`` with the index's shape: across ``dim``, all three go together.

    In a dimension where the index is smaller than ``self``, only the first positions are written, so all stay.
    """
    written = [call["index"], *(value for name in ("src", "value") if isinstance(value := call.get(name), Marked))]
    return _write_across(labels, call, [part for part in written if part.shape])


def index_write(labels: Labels, call: Call) -> Layers:
    """``self.index_add(dim, index, source)`` and its kind: across ``dim``, ``self`` and ``source`` go together."""
    labels.freeze(call["index"].layers, LOOKED_UP)
    source = call.get("source")
    return _write_across(labels, call, [source] if isinstance(source, Marked) else [])


def _write_across(labels: Labels, call: Call, written: Sequence[Marked]) -> Layers:
    x, dim = call["self"], call.dim()
    fixed = {d for d, size in enumerate(x.shape) if d == dim or any(part.shape[d] != size for part in written)}
    parts = [_without_dims(labels, part, fixed) for part in (x, *written)]
    return match(labels, parts, parts[0].shape)


def _without_dims(labels: Labels, value: Marked, dims: set[int]) -> Marked:
    """Make a value's layers independent of some dimensions, and give these size 1."""
    shape = tuple(1 if dim in dims else size for dim, size in enumerate(value.shape))
    return Marked(shape, make_independent(labels, value.layers, dims, LOOKED_UP))


def index_put(labels: Labels, call: Call) -> Layers:
    """``self[indices] = values``: indexed dimensions stay, the others go together with those of ``values``.

    A mask goes together with the dimensions that it covers if a single value is written.
    """
    x, values = call["self"], call["values"]
    given = {dim: index for dim, index in enumerate(call["indices"]) if index is not None}
    first, index = next(iter(given.items()))
    covered = len(index.shape) if index.shape == x.shape[first : first + len(index.shape)] else 1  # by a mask
    if len(given) == 1 and math.prod(values.shape) == 1:
        after = (1,) * (len(x.shape) - first - len(index.shape))
        mask = tuple(layer.reshape(*layer.shape, *after) for layer in index.layers)
        if covered == len(index.shape):
            return match(labels, [x, Marked((*index.shape, *after), mask)], x.shape)
    labels.freeze([layer for index in given.values() for layer in index.layers], LOOKED_UP)
    indexed = set(range(first, first + covered)) if len(given) == 1 else set(given)
    index_ndim = 1 if covered > 1 else max(len(index.shape) for index in given.values())
    parts = [_without_dims(labels, x, indexed), _values_at(labels, values, len(x.shape), indexed, index_ndim)]
    return match(labels, parts, parts[0].shape)


def _values_at(labels: Labels, values: Marked, ndim: int, indexed: set[int], index_ndim: int) -> Marked:
    """Arrange the values of an ``index_put`` like the tensor, with size 1 in its indexed dimensions."""
    others = [dim for dim in range(ndim) if dim not in indexed]
    together = sorted(indexed) == list(range(min(indexed), max(indexed) + 1))
    position = min(indexed) if together else 0
    missing = index_ndim + len(others) - len(values.shape)
    shape = (1,) * missing + values.shape
    layers = [layer.reshape((1,) * missing + tuple(layer.shape)) for layer in values.layers]
    value = _without_dims(labels, Marked(shape, tuple(layers)), set(range(position, position + index_ndim)))

    def arrange(sizes: Sequence[int]) -> list[int]:
        rest = [*sizes[:position], *sizes[position + index_ndim :]]
        return [1 if dim in indexed else rest[others.index(dim)] for dim in range(ndim)]

    return Marked(tuple(arrange(value.shape)), tuple(layer.reshape(arrange(layer.shape)) for layer in value.layers))


def slice_scatter(labels: Labels, call: Call) -> Layers:
    """``self[..., start:end, ...] = src``: the source goes together with the slice that it replaces."""
    x, src, dim = call.input, call["src"], call.dim()
    if freeze_computed_bounds(labels, call) or int(call["step"]) != 1:
        parts = [_without_dims(labels, part, {dim}) for part in (x, src)]
        return match(labels, parts, parts[0].shape)
    positions = (slice(None),) * dim + (slice(call["start"], call["end"]),)
    replaced = tuple(layer[positions] if layer.shape[dim] > 1 else layer for layer in x.layers)
    match(labels, [Marked(src.shape, replaced), src], src.shape)
    return x.layers


def select_scatter(labels: Labels, call: Call) -> Layers:
    """``self[..., index, ...] = src``: that position stays; across ``dim``, both go together."""
    x, src, dim = call.input, call["src"], call.dim()
    replaced = []
    for layer in x.layers:
        if layer.shape[dim] == 1:
            replaced.append(layer.squeeze(dim))
        elif call.computed & {"index"}:
            labels.freeze(layer, _OVERWRITTEN)
        else:
            labels.freeze(layer.select(dim, call["index"]), _OVERWRITTEN)
    match(labels, [Marked(src.shape, tuple(replaced)), src], src.shape)
    return x.layers


def masked_scatter(labels: Labels, call: Call) -> Layers:
    """``self[mask] = source``, in the order of the elements.

    A mask that is expanded along the last dimension replaces whole rows there, as the embeddings of image patches
    replace those of placeholders in a text: the rows of ``source`` shrink with them. Any other mask freezes all three.
    """
    x, mask, source = call.input, call["mask"], call["source"]
    ndim = len(x.shape)
    along = [layer for layer in mask.layers if layer.shape[-1] > 1]
    takes_rows = mask.shape[-1:] == (1,) or (along and all(map(labels.is_created, along)))
    if not takes_rows or source.shape[-1:] != x.shape[-1:]:
        labels.freeze([layer for operand in call.operands for layer in operand.layers], _OVERWRITTEN)
        return x.layers
    rows = _without_dims(labels, source, set(range(len(source.shape) - 1)))
    columns = tuple(layer.reshape([1] * (ndim - 1) + [-1]) for layer in rows.layers)
    kept = _without_dims(labels, x, set(range(ndim - 1)))
    covered = _without_dims(labels, mask, set(range(len(mask.shape) - 1)))
    return match(labels, [kept, covered, Marked((1,) * (ndim - 1) + x.shape[-1:], columns)], kept.shape)


RULES: dict[Any, Rule] = {
    aten.copy: copy_into,
    aten.copy_: copy_into,
    aten.fill: keep_layers,
    aten.zero: keep_layers,
    aten.index_fill: index_write,
    aten.index_add: index_write,
    aten.index_copy: index_write,
    aten.index_reduce: index_write,
    aten.index_put: index_put,
    aten._index_put_impl: index_put,
    aten.scatter_reduce: scatter_values,
    aten.slice_scatter: slice_scatter,
    aten.select_scatter: select_scatter,
    aten.masked_scatter: masked_scatter,
}
