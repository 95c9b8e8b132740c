"""``resolve_couplings``: after the run on labels, decide how layers of several dimensions shrink."""

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
    drop_duplicates,
    varying_dims,
)

Heads = Literal["most", "whole", "depth"]
"""How attention shrinks: by whole heads, by the same depth of all heads, or by whichever leaves more to choose from."""

_NEAR_BEST_RATIO = 0.9
"""Options that free at least this share of the indices that the best one frees are compared by their channels."""
_CLEARLY_MORE_RATIO = 1.1
"""Another way to decide has to free this many times as many indices, so that small differences change no groups."""
_OTHER_WAYS = ((True, _NEAR_BEST_RATIO), (False, 1.0), (True, 1.0))
"""Whether the heaviest lines are decided first, and the share of indices from which options are compared."""

_Pairs = Integers


def resolve_couplings(labels: Labels, heads: Heads = "most") -> tuple[Integers, list[Reason | None]]:
    """Find the classes of labels.

    A layer that depends on several dimensions (a view that split channels) is tied along all but one, the one that
    leaves most to choose from. This rule covers channel shuffle, pixel shuffle, packed projections and groups. If a
    line of heads meets a layer of heads and depth, either whole heads go, or all heads lose depth and the line stays.

    Each choice is made by itself, so an early one may leave nothing to a later one. If indices of parameters freeze
    because of that, other ways to decide are tried too.

    Returns:
        The class of each label (its smallest label), and for each label the reason why its class is frozen, or None.
    """
    best = _decide_all(labels, heads)
    if best.has_lost_splits:
        others = [_decide_all(labels, heads, heaviest_first=first, near_best=share) for first, share in _OTHER_WAYS]
        other = max(others, key=lambda state: state.free_indices)
        if other.free_indices > _CLEARLY_MORE_RATIO * best.free_indices:
            best = other
    return best.classes, [best.reasons.get(label) for label in best.classes.tolist()]


def _decide_all(
    labels: Labels, heads: Heads, heaviest_first: bool = False, near_best: float = _NEAR_BEST_RATIO
) -> _ClassState:
    state = _ClassState(labels, near_best)
    for choice in sorted(labels.merged_choices(), key=lambda choice: -state.weigh(choice.line)):
        state.decide(choice, heads)
    weights = [-state.weigh(choice.line) if heaviest_first else 0.0 for choice in labels.choices]
    order = sorted(range(len(weights)), key=lambda at: (labels.choices[at].line is None, weights[at]))
    for at in order:  # lines first: they define heads
        state.decide(labels.choices[at], heads)
    state.freeze_last_channels()
    return state


class _ClassState:
    """The classes so far, the reason for each frozen one, and the number of parameter indices in each."""

    def __init__(self, labels: Labels, near_best: float) -> None:
        self.labels, self.classes, self.near_best = labels, labels.classes, near_best
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
        frozen = np.zeros(len(self.classes), dtype=bool)
        frozen[[ALWAYS, *self.reasons]] = True
        self.canonical = np.where(frozen[self.classes], ALWAYS, self.classes)

    @property
    def free_indices(self) -> int:
        """The number of parameter indices that can go."""
        return int(self.owned[~np.isin(self.classes, list(self.reasons))].sum())

    @property
    def has_lost_splits(self) -> bool:
        """Whether parameter indices are frozen because the other part of a view goes."""
        lost = [label for label, reason in self.reasons.items() if reason.why == SPLIT]
        return bool(self.owned[np.isin(self.classes, lost)].any())

    def weigh(self, line: Tensor | None) -> float:
        """Return the number of parameter indices that go with a line's labels; 0 for those that are frozen."""
        if line is None:
            return 0.0
        return float(self.weights[np.setdiff1d(_classes_in(self.canonical, line), [ALWAYS])].sum())

    def decide(self, choice: CouplingChoice, heads: Heads) -> None:
        layer = _classes_in(self.canonical, choice.layer)
        preferred = None
        if choice.line is None:
            free = [dim for dim in range(layer.ndim) if np.any(layer != layer.take([0], dim))]
            others = [[_pairs_along(layer, dim) for dim in free if dim != kept] for kept in free]
            options = [np.concatenate(ties) for ties in others if ties]
        else:
            line = _classes_in(self.canonical, choice.line)
            dims = varying_dims(choice.line)
            together = _pairs(line, layer)
            apart = np.concatenate([*(_pairs_along(layer, dim) for dim in dims), _pairs(line, np.zeros_like(line))])
            options = [together, apart]
            if not self.owned[choice.line.numpy()].any():  # belongs to no parameter: a line of heads or groups
                options, preferred = [apart, together], {"most": None, "whole": 1, "depth": 0}[heads]
        if options:
            self._apply(self._choose_best(options, layer, preferred), choice.reason)

    def _choose_best(self, options: Sequence[_Pairs], layer: Integers, preferred: int | None) -> _Pairs:
        """Choose the option that leaves most parameter indices free; among near-best options, most classes."""
        free = [self._count_free(option, layer) for option in options]
        threshold = self.near_best * max(indices for indices, _ in free)
        candidates = [number for number, (indices, _) in enumerate(free) if indices >= threshold]
        if preferred is not None and free[preferred][0] > 0:
            return options[preferred]
        return options[max(candidates, key=lambda number: (free[number][1], -number))]

    def _count_free(self, pairs: _Pairs, layer: Integers) -> tuple[float, int]:
        """Count the indices and the classes that can still go; a single class cannot, because nothing would be left."""
        members, index = np.unique(np.concatenate([layer.reshape(-1), pairs.reshape(-1)]), return_inverse=True)
        local_classes = connect(np.arange(len(members)), index[layer.size :].reshape(-1, 2))
        _, position = np.unique(local_classes, return_inverse=True)
        weights = np.bincount(position, self.weights[members])
        weights[position[members == ALWAYS]] = 0
        at_layer = np.unique(position[index[: layer.size]])
        if len(at_layer) == 1:
            weights[at_layer] = 0
        return float(weights.sum()), int((weights > 0).sum())

    def _apply(self, pairs: _Pairs, reason: Reason) -> None:
        frozen = (pairs == ALWAYS).any(axis=1)
        for label in np.unique(pairs[frozen]).tolist():
            if label != ALWAYS:
                self.reasons.setdefault(label, Reason(reason.operator, reason.node, SPLIT))
        self.classes = connect(self.classes, pairs[~frozen])
        merged: dict[int, Reason] = {}
        for label, why in self.reasons.items():
            merged.setdefault(int(self.classes[label]), why)
        self.reasons = merged
        self._refresh()

    def freeze_last_channels(self) -> None:
        """Freeze every class that covers a whole dimension: without it nothing would be left."""
        for (name, dim), owned in self.labels.slots.items():
            line = self.classes[owned.start : owned.stop]
            if len(line) and (line == line[0]).all():
                self.reasons.setdefault(int(line[0]), Reason("dimension", f"{name}:{dim}", LAST))


def _classes_in(classes: Integers, layer: Tensor) -> Integers:
    layer_classes: Integers = classes[layer.numpy()]
    return layer_classes


def _pairs(one: Integers, other: Integers) -> _Pairs:
    left, right = np.broadcast_arrays(one, other)
    pairs = np.stack([left.reshape(-1), right.reshape(-1)], axis=1)
    return drop_duplicates(pairs[pairs[:, 0] != pairs[:, 1]])


def _pairs_along(layer: Integers, dim: int) -> _Pairs:
    return _pairs(layer, layer.take([0], dim))
