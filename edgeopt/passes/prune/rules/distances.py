"""Distances and similarities of vectors: both operands go together along the dimension that is summed, which ends."""

from __future__ import annotations

from typing import Any

from edgeopt.passes.aten import aten
from edgeopt.passes.prune.labels import FIXED_SIZE, Labels, Marked
from edgeopt.passes.prune.rules.call import Call, Layers, Rule
from edgeopt.passes.prune.rules.contraction import contract
from edgeopt.passes.prune.rules.elementwise import make_independent, match, sum_over


def pairs_of_rows(labels: Labels, call: Call) -> Layers:
    """Distance of each row of ``x1[..., p, k]`` from each row of ``x2[..., r, k]``, as ``[..., p, r]``."""
    one, other = call.operands
    outer = list(range(len(call.shape) - 2))

    def names(value: Marked, row: str) -> list[Any]:
        return [*outer[len(outer) - len(value.shape) + 2 :], row, "k"]

    return contract(labels, [one, other], [names(one, "p"), names(other, "r")], [*outer, "p", "r"])


def pairs_within(labels: Labels, call: Call) -> Layers:
    """Distance of every two rows of a matrix: rows stay, columns end."""
    sum_over(labels, make_independent(labels, call.input.layers, {0}, FIXED_SIZE), {1})
    return ()


def cosine(labels: Labels, call: Call) -> Layers:
    """Cosine of ``x1`` and ``x2`` along ``dim``, which ends."""
    one, other = call["x1"], call["x2"]
    ndim = max(len(one.shape), len(other.shape))
    dim = int(call["dim"]) % ndim
    padded = [(1,) * (ndim - len(part.shape)) + part.shape for part in (one, other)]
    shape = [max(sizes) for sizes in zip(*padded, strict=True)]
    if any(part[dim] != shape[dim] for part in padded):  # one that is broadcast counts for each element
        labels.freeze([*one.layers, *other.layers])
        return ()
    layers = sum_over(labels, match(labels, [one, other], shape), {dim})
    return tuple(layer.squeeze(dim) for layer in layers)


def distance(labels: Labels, call: Call) -> Layers:
    """Norm of the difference of two tensors, over everything; one that is broadcast counts for each element."""
    one, other = call.operands
    if one.shape != other.shape:
        labels.freeze([*one.layers, *other.layers])
        return ()
    sum_over(labels, match(labels, call.operands, one.shape), set(range(len(one.shape))))
    return ()


def cross(labels: Labels, call: Call) -> Layers:
    """Cross product of vectors of three numbers along ``dim``, which stay."""
    dim = int(call["dim"]) % len(call.shape)
    parts = []
    for part in call.operands:
        along = dim - len(call.shape) + len(part.shape)
        shape = tuple(1 if d == along else size for d, size in enumerate(part.shape))
        parts.append(Marked(shape, make_independent(labels, part.layers, {along}, FIXED_SIZE)))
    return match(labels, parts, [1 if d == dim else size for d, size in enumerate(call.shape)])


RULES: dict[Any, Rule] = {
    **dict.fromkeys((aten._cdist_forward, aten._euclidean_dist), pairs_of_rows),
    **dict.fromkeys((aten.pdist, aten._pdist_forward), pairs_within),
    aten.cosine_similarity: cosine,
    aten.dist: distance,
    aten.linalg_cross: cross,
}
