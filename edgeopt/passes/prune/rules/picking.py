"""Operators that weigh or pick channels: a softmax over them, and the best of them (a router of experts).

A channel that is lost has a logit of minus infinity: a softmax is one over the channels that are left, and the best are
the best of these. ``topk`` returns positions along a line of labels (``Marked.places``), which are other numbers once
some are lost. They may be moved, and used to read or write along that line; anything else keeps the line as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from edgeopt.passes.aten import aten, plain_form
from edgeopt.passes.prune.labels import Labels, Marked, varying_dims
from edgeopt.passes.prune.rules.call import Call, Layers, Rule
from edgeopt.passes.prune.rules.elementwise import make_independent, match
from edgeopt.passes.prune.rules.movement import gather, index_at
from edgeopt.passes.prune.rules.writing import scatter_values

_COMPUTES = "computes over these channels"
_MOVING: tuple[Any, ...] = (
    aten.view, aten.reshape, aten._unsafe_view, aten.unsqueeze, aten.squeeze, aten.transpose, aten.permute, aten.t,
    aten.flatten, aten.unflatten, aten.expand, aten.slice, aten.select, aten.contiguous, aten.clone, aten.alias,
    aten.detach, aten.to, aten._to_copy, aten.lift_fresh,
)  # fmt: skip
"""Operators that move positions, but keep their values."""
_READERS: dict[Any, str] = {aten.scatter: "index", aten.scatter_add: "index", aten.gather: "index"}
"""Operators that use positions along a line of labels, and the argument that these are."""
_READ = "positions of these channels are computed with"


def softmax(labels: Labels, call: Call) -> Layers:
    """Labels along ``dim`` pass: the softmax is one over the channels that are left, as a norm."""
    line, others = _split_line(call.input, call.dim())
    return (*line, *make_independent(labels, others, {call.dim()}, _COMPUTES))


def topk(labels: Labels, call: Call) -> list[Layers]:
    """The values, and the positions along ``dim``, of the best ``k`` channels that are left; at least ``k`` stay."""
    line, others = _split_line(call.input, call.dim())
    labels.picked += [(one.reshape(-1), int(call["k"])) for one in line]
    return [make_independent(labels, others, {call.dim()}, _COMPUTES)] * 2


def scatter_at(labels: Labels, call: Call) -> Layers:
    """``self[..., index, ...] = src`` at positions along labels: those of ``self`` there go with the positions."""
    x, line = call["self"], _line_of(call["index"], call.dim(), len(call.shape))
    along, others = _split_line(x, call.dim())
    if line is None or not along:
        _freeze_places(labels, call.operands)
        return scatter_values(labels, call)
    _freeze_places(labels, [value for value in call.operands if value is not call["index"]])
    across = scatter_values(labels, call.with_input(others))
    return match(labels, [Marked(x.shape, (*along, *across)), Marked(x.shape, (line,))], x.shape)


def gather_at(labels: Labels, call: Call) -> Layers:
    """``x[..., index, ...]`` at positions along labels: those of ``x`` there go with the positions."""
    x, line = call["self"], _line_of(call["index"], call.dim(), len(call.shape))
    along, others = _split_line(x, call.dim())
    if line is None or not along:
        _freeze_places(labels, call.operands)
        return gather(labels, call)
    _freeze_places(labels, [x])
    labels.unite(along[0], line)
    return gather(labels, call.with_input(others))


def index_at_places(labels: Labels, call: Call) -> Layers:
    """``x[index]`` at positions along labels of the first dimension of ``x``, as the weights of the best experts."""
    x, indices = call["self"], list(call["indices"])
    first = indices[0] if indices else None
    along, others = _split_line(x, 0)
    if first is None or len([one for one in indices if one is not None]) > 1 or first.places is None or not along:
        _freeze_places(labels, call.operands)
        return index_at(labels, call)
    _freeze_places(labels, [x])
    labels.unite(along[0].reshape(-1), first.places)
    return index_at(labels, call.with_input(others))


def find_places(labels: Labels, call: Call) -> dict[int, Tensor]:
    """Return the line of labels that results are positions in, by the result's number; freeze lines used otherwise."""
    packet = plain_form(call.target.overloadpacket)
    if packet is aten.topk:
        line, _ = _split_line(call.input, call.dim())
        return {1: line[0].reshape(-1)} if line else {}
    if packet in _MOVING:
        return {} if call.input.places is None else {0: call.input.places}
    if packet not in _READERS and packet is not aten.index:
        _freeze_places(labels, call.operands)
    return {}


def _freeze_places(labels: Labels, operands: Sequence[Marked]) -> None:
    labels.freeze([value.places for value in operands if value.places is not None], _READ)


def _split_line(value: Marked, dim: int) -> tuple[Layers, Layers]:
    """Return the layer that depends on only that dimension, if there is one, and the others."""
    return (
        tuple(layer for layer in value.layers if varying_dims(layer) == (dim,)),
        tuple(layer for layer in value.layers if varying_dims(layer) != (dim,)),
    )


def _line_of(index: Marked, dim: int, ndim: int) -> Tensor | None:
    """Return the labels that an index refers to, along a dimension; None if it refers to none."""
    return None if index.places is None else index.places.reshape([-1 if d == dim else 1 for d in range(ndim)])


RULES: dict[Any, Rule] = {
    aten.softmax: softmax,
    aten._softmax: softmax,
    aten.topk: topk,
    aten.scatter: scatter_at,
    aten.scatter_add: scatter_at,
    aten.gather: gather_at,
    aten.index: index_at_places,
}
