"""``resolve_couplings``: once the run on labels has ended, decide how layers of several dimensions shrink."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from edgeopt.passes.prune.labels import (
    ALWAYS,
    LAST,
    SPLIT,
    CouplingChoice,
    Integers,
    Labels,
    Reason,
    connect,
    distinct,
    varying,
)

Heads = Literal["most", "whole", "depth"]
"""What goes where heads have a depth: what leaves more to choose from, whole heads, or the same depth of all."""

NEARLY = 0.9
"""Of two ways to shrink, one that frees this share of the indices that the other frees is judged by its channels."""

Pairs = Integers


def resolve_couplings(labels: Labels, heads: Heads = "most") -> tuple[Integers, list[Reason | None]]:
    """Find the classes of labels.

    A layer that depends on several dimensions (a view that split channels) is tied along all but one, so that the
    most survives: this one rule gives channel shuffle, pixel shuffle, packed projections and groups. Where a line of
    heads meets a layer of heads and depth, whole heads go, or the depth of all heads shrinks and the line stays.

    Returns:
        The class of each label (the smallest label in it), and for each label why its class is frozen, or None.
    """
    state = _State(labels)
    for choice in sorted(
        labels.choices, key=lambda choice: choice.line is None
    ):  # lines first: they say what heads are
        state.decide(choice, heads)
    state.keep_the_last()
    return state.classes, [state.reasons.get(label) for label in state.classes.tolist()]


class _State:
    """Classes so far, why each frozen one is frozen, and how many indices of parameters each has."""

    def __init__(self, labels: Labels) -> None:
        self.labels, self.classes = labels, labels.classes
        self.reasons: dict[int, Reason] = {}
        for frozen, reason in labels.frozen:
            for label in np.unique(self.classes[frozen]).tolist():
                self.reasons.setdefault(label, reason)
        self.owned = np.zeros(labels.count, dtype=np.int64)
        for owned in labels.slots.values():
            self.owned[owned.start : owned.stop] = 1
        self._refresh()

    def _refresh(self) -> None:
        self.weights = np.bincount(self.classes, self.owned, len(self.classes))
        fixed = np.zeros(len(self.classes), dtype=bool)
        fixed[[ALWAYS, *self.reasons]] = True
        self.canonical = np.where(fixed[self.classes], ALWAYS, self.classes)

    def decide(self, choice: CouplingChoice, heads: Heads) -> None:
        layer = _classes_in(self.canonical, choice.layer)
        first = None
        if choice.line is None:
            free = [dim for dim in range(layer.ndim) if np.any(layer != layer.take([0], dim))]
            others = [[_tied(layer, dim) for dim in free if dim != kept] for kept in free]
            ways = [np.concatenate(ties) for ties in others if ties]
        else:
            line = _classes_in(self.canonical, choice.line)
            dims = varying(choice.line)
            together = _pairs(line, layer)
            apart = np.concatenate([*(_tied(layer, dim) for dim in dims), _pairs(line, np.zeros_like(line))])
            ways = [together, apart]
            if not self.owned[choice.line.numpy()].any():  # no parameter: a line of heads, or of groups
                ways, first = [apart, together], {"most": None, "whole": 1, "depth": 0}[heads]
        if ways:
            self._apply(self._best(ways, layer, first), choice.reason)

    def _best(self, ways: Sequence[Pairs], layer: Integers, first: int | None) -> Pairs:
        """Choose by the indices of parameters that stay free, and among near equals by the number of classes."""
        free = [self._free(way, layer) for way in ways]
        enough = NEARLY * max(indices for indices, _ in free)
        good = [number for number, (indices, _) in enumerate(free) if indices >= enough]
        if first is not None and free[first][0] > 0:
            return ways[first]
        return ways[max(good, key=lambda number: (free[number][1], -number))]

    def _free(self, pairs: Pairs, layer: Integers) -> tuple[float, int]:
        """Count the indices and the classes that can still go; a class on its own cannot, for nothing would be left."""
        members, index = np.unique(np.concatenate([layer.reshape(-1), pairs.reshape(-1)]), return_inverse=True)
        local = connect(np.arange(len(members)), index[layer.size :].reshape(-1, 2))
        _, place = np.unique(local, return_inverse=True)
        weights = np.bincount(place, self.weights[members])
        weights[place[members == ALWAYS]] = 0
        at_layer = np.unique(place[index[: layer.size]])
        if len(at_layer) == 1:
            weights[at_layer] = 0
        return float(weights.sum()), int((weights > 0).sum())

    def _apply(self, pairs: Pairs, reason: Reason) -> None:
        fixed = (pairs == ALWAYS).any(axis=1)
        for label in np.unique(pairs[fixed]).tolist():
            if label != ALWAYS:
                self.reasons.setdefault(label, Reason(reason.operator, reason.node, SPLIT))
        self.classes = connect(self.classes, pairs[~fixed])
        merged: dict[int, Reason] = {}
        for label, why in self.reasons.items():
            merged.setdefault(int(self.classes[label]), why)
        self.reasons = merged
        self._refresh()

    def keep_the_last(self) -> None:
        """Freeze a class that is all there is along a dimension: without it nothing would be left."""
        for (name, dim), owned in self.labels.slots.items():
            line = self.classes[owned.start : owned.stop]
            if (line == line[0]).all():
                self.reasons.setdefault(int(line[0]), Reason("dimension", f"{name}:{dim}", LAST))


def _classes_in(classes: Integers, layer: Tensor) -> Integers:
    found: Integers = classes[layer.numpy()]
    return found


def _pairs(one: Integers, other: Integers) -> Pairs:
    left, right = np.broadcast_arrays(one, other)
    pairs = np.stack([left.reshape(-1), right.reshape(-1)], axis=1)
    return distinct(pairs[pairs[:, 0] != pairs[:, 1]])


def _tied(layer: Integers, dim: int) -> Pairs:
    return _pairs(layer, layer.take([0], dim))
