"""Labels: who goes with whom.

Every index of every dimension of every parameter and buffer has a label, a positive integer. An activation carries
*layers* of labels instead of numbers; rules unite labels that can only go together and freeze those that must stay.
After the run a class of united labels is one channel.

A layer is an integer tensor with as many dimensions as the activation and size 1 along each dimension on which it does
not depend. Label 0 stands for "always there". An element of an activation is gone when the label that any of its layers
has there is gone.

Example: ``nn.Conv2d(3, 2, 1)`` has the labels 1, 2 (rows of the weight), 3, 4, 5 (its columns) and 6, 7 (its bias). Its
output of shape (batch, 2, h, w) carries one layer of shape (1, 2, 1, 1) with the labels 1 and 2; adding the bias unites
1 with 6 and 2 with 7; the input image carries no layer, so 3, 4 and 5 freeze.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Slot = tuple[str, int]
"""A parameter's name and one of its dimensions."""
Integers = npt.NDArray[np.int64]

ALWAYS = 0
"""The label of what can never go."""


@dataclass(frozen=True)
class Marked:
    """What stands in for a tensor: its shape and its layers."""

    shape: tuple[int, ...]
    layers: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Reason:
    """Why labels are frozen."""

    operator: str
    node: str
    why: str

    def __str__(self) -> str:
        return f"{self.operator} at {self.node}: {self.why}"


NO_RULE = "no rule for this operator"
KERNEL = "the positions of a kernel"
FIXED_SIZE = "meets values of a fixed size"
NOWHERE = Reason("", "", "")


def varying(layer: Tensor) -> tuple[int, ...]:
    """Return the dimensions that a layer depends on."""
    return tuple(dim for dim, size in enumerate(layer.shape) if size > 1)


def compressed(layer: Tensor) -> Tensor:
    """Shrink to size 1 each dimension along which the labels are constant."""
    for dim in range(layer.ndim):
        if layer.shape[dim] > 1:
            first = layer.narrow(dim, 0, 1)
            if layer.stride(dim) == 0 or bool((layer == first).all()):
                layer = first
    return layer


class Labels:
    """The labels of one network: what is united, what is frozen and why.

    ``reason`` names the operator that is being interpreted; the interpreter sets it before each rule.
    """

    def __init__(self) -> None:
        self.slots: dict[Slot, range] = {}
        self.reason = NOWHERE
        self._count = 1
        self._pairs: list[Integers] = []
        self._frozen: list[tuple[Integers, Reason]] = []
        self._rectangles: list[Tensor] = []

    @property
    def count(self) -> int:
        """How many labels there are, with label 0."""
        return self._count

    def of_parameter(self, name: str, shape: Sequence[int]) -> Marked:
        """Give labels to a parameter (the same ones each time): one layer for each dimension above size 1."""
        layers = []
        for dim, size in enumerate(shape):
            if size == 1:
                continue
            if (name, dim) not in self.slots:
                self.slots[name, dim] = range(self._count, self._count + size)
                self._count += size
            owned = self.slots[name, dim]
            line = torch.arange(owned.start, owned.stop)
            layers.append(line.reshape([size if other == dim else 1 for other in range(len(shape))]))
        return Marked(tuple(shape), tuple(layers))

    def unite(self, one: Tensor, other: Tensor) -> None:
        """Let the labels of two layers, broadcast together, go together. Those that meet label 0 freeze."""
        left, right = (side.reshape(-1).numpy() for side in torch.broadcast_tensors(one, other))  # type: ignore[no-untyped-call]
        differs = left != right
        pairs = np.stack([left[differs], right[differs]], axis=1)
        fixed = (pairs == ALWAYS).any(axis=1)
        if fixed.any():
            self._freeze(pairs[fixed].max(axis=1))
            pairs = pairs[~fixed]
        if len(pairs):
            self._pairs.append(_distinct(pairs))

    def tie(self, layer: Tensor, dim: int) -> None:
        """Let all labels along one dimension go together."""
        self.unite(layer, layer.narrow(dim, 0, 1))

    def freeze(self, layers: Sequence[Tensor] | Tensor, why: str = FIXED_SIZE) -> None:
        """Keep the labels of these layers for good."""
        for layer in [layers] if isinstance(layers, Tensor) else layers:
            self._freeze(np.unique(layer.numpy()), why)

    def _freeze(self, labels: Integers, why: str = FIXED_SIZE) -> None:
        self._frozen.append((labels, Reason(self.reason.operator, self.reason.node, why)))

    def rectangle(self, layer: Tensor) -> None:
        """Remember that what is left of this layer must be a product of what is left along each dimension."""
        self._rectangles.append(layer)

    def settle(self) -> tuple[Integers, list[Reason | None]]:
        """Find the classes once the run has ended.

        A layer that still depends on several dimensions (a view that split channels) is tied along all but one, so
        that the most classes survive: this one rule gives channel shuffle, pixel shuffle and packed projections.

        Returns:
            The class of each label (the smallest label in it), and for each label why its class is frozen, or None.
        """
        classes = connect(np.arange(self._count), np.concatenate([np.empty((0, 2), np.int64), *self._pairs]))
        for rectangle in self._rectangles:
            while len(varying(layer := self._canonical(rectangle, classes))) > 1:
                best = max(varying(layer), key=lambda dim: _survivors(layer, dim))
                self._pairs.clear()
                for dim in varying(layer):
                    if dim != best:
                        self.tie(layer, dim)
                if self._pairs:
                    classes = connect(classes, np.concatenate(self._pairs))
        reason_of_class: dict[int, Reason] = {}
        for labels, reason in self._frozen:
            for label in np.unique(classes[labels]).tolist():
                reason_of_class.setdefault(label, reason)
        return classes, [reason_of_class.get(label) for label in classes.tolist()]

    def _canonical(self, layer: Tensor, classes: Integers) -> Tensor:
        """Replace labels by their classes, and frozen ones by label 0."""
        fixed = np.zeros(self._count, dtype=bool)
        fixed[ALWAYS] = True
        for labels, _ in self._frozen:
            fixed[classes[labels]] = True
        return compressed(torch.from_numpy(np.where(fixed[classes], ALWAYS, classes)[layer.numpy()]))


def connect(classes: Integers, pairs: Integers) -> Integers:
    """Merge the classes of each pair; a class is named by its smallest member (connected components).

    >>> connect(np.arange(5), np.array([[1, 2], [4, 2]]))
    array([0, 1, 1, 3, 1])
    """
    classes = classes.copy()
    while True:
        ends = classes[pairs]
        low, high = ends.min(axis=1), ends.max(axis=1)
        if (low == high).all():
            return classes
        np.minimum.at(classes, high, low)
        while not np.array_equal(shorter := classes[classes], classes):
            classes = shorter


def _distinct(pairs: Integers) -> Integers:
    keys = np.unique(pairs[:, 0] << 32 | pairs[:, 1])
    return np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=1)


def _survivors(layer: Tensor, dim: int) -> int:
    """Count the classes that can still go if only ``dim`` remains free."""
    members, index = np.unique(layer.numpy(), return_inverse=True)
    rows = np.moveaxis(index.reshape(layer.shape), dim, 0).reshape(layer.shape[dim], -1)
    pairs = np.stack([rows, np.broadcast_to(rows[:, :1], rows.shape)], axis=-1).reshape(-1, 2)
    classes = connect(np.arange(len(members)), pairs)
    fixed = classes[members == ALWAYS]
    return len(np.setdiff1d(classes, fixed))
