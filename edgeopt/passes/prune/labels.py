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

import math
from collections.abc import Iterable, Mapping, Sequence
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
SPLIT = "a view splits it, and its other part goes"
LAST = "all that one dimension of a tensor has"
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


@dataclass(frozen=True)
class Follower:
    """Labels that belong to no parameter: one is there while, along ``dims``, any place has all of ``sources``."""

    layer: Tensor
    sources: tuple[Tensor, ...]
    dims: tuple[int, ...]


@dataclass(frozen=True)
class CouplingChoice:
    """What is left of ``layer`` must be a product of what is left along each dimension; ``settle`` decides how.

    With a ``line``, which depends on some of the layer's dimensions only, either both go together along the line, or
    the line stays and the layer goes across it. Example: a line of heads, a layer of (heads, depth).
    """

    layer: Tensor
    line: Tensor | None
    reason: Reason


class Labels:
    """The labels of one network: what is united, what is frozen and why.

    ``reason`` names the operator that is being interpreted; the interpreter sets it before each rule.
    """

    def __init__(self) -> None:
        self.slots: dict[Slot, range] = {}
        self.reason = NOWHERE
        self.frozen: list[tuple[Integers, Reason]] = []
        self.choices: list[CouplingChoice] = []
        self._count = 1
        self._pairs: list[Integers] = []
        self._seen: set[bytes] = set()
        self._followers: list[Follower] = []
        self._made: list[range] = []
        self._classes: Integers | None = None

    @property
    def count(self) -> int:
        """How many labels there are, with label 0."""
        return self._count

    @property
    def classes(self) -> Integers:
        """The class of each label by what was united, before any choice."""
        if self._classes is None:
            self._classes = connect(np.arange(self._count), np.concatenate([np.empty((0, 2), np.int64), *self._pairs]))
        return self._classes

    def of_parameter(self, name: str, shape: Sequence[int]) -> Marked:
        """Give labels to a parameter (the same ones each time): one layer for each dimension above size 1."""
        layers = []
        for dim, size in enumerate(shape):
            if size == 1:
                continue
            if (name, dim) not in self.slots:
                self.slots[name, dim] = self._more(size)
            layers.append(_line(self.slots[name, dim], dim, len(shape)))
        return Marked(tuple(shape), tuple(layers))

    def made(self, shape: Sequence[int], dims: Sequence[int]) -> tuple[Tensor, ...]:
        """Give labels to dimensions of a tensor that the graph itself makes: they go with whatever they meet."""
        layers = []
        for dim in dims:
            if shape[dim] > 1:
                self._made.append(self._more(shape[dim]))
                layers.append(_line(self._made[-1], dim, len(shape)))
        return tuple(layers)

    def is_made(self, layer: Tensor) -> bool:
        """Tell whether a layer has labels of a tensor that the graph itself makes."""
        return any(int(layer.reshape(-1)[0]) in made for made in self._made)

    def follow(self, sources: Sequence[Tensor], dims: Iterable[int]) -> Tensor:
        """Return a layer of new labels, constant along ``dims``: gone where, all along ``dims``, one of ``sources`` is.

        Example: of a layer (heads, depth), along depth: one label a head, which goes when all of the head is gone.
        """
        dims = tuple(dims)
        shape = [max(source.shape[dim] for source in sources) for dim in range(sources[0].ndim)]
        kept = [1 if dim in dims else size for dim, size in enumerate(shape)]
        numbers = self._more(math.prod(kept))
        layer = torch.arange(numbers.start, numbers.stop).reshape(kept)
        self._followers.append(Follower(layer, tuple(sources), dims))
        for source in sources:
            if varying(layer) == varying(source):
                self.unite(layer, source)
            elif dims:
                self.choose(layer, source)
            else:
                self.choose(source, layer)
        return layer

    def _more(self, size: int) -> range:
        self._count += size
        return range(self._count - size, self._count)

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
            self._pairs.append(distinct(pairs))

    def tie(self, layer: Tensor, dim: int) -> Tensor:
        """Let all labels along one dimension go together; return the layer without it."""
        first = layer.narrow(dim, 0, 1)
        self.unite(layer, first)
        return first

    def choose(self, line: Tensor | None, layer: Tensor) -> None:
        """Leave it to ``settle`` which dimensions of ``layer`` stay free, and whether ``line`` goes with it."""
        parts = [layer] if line is None else [layer, line]
        key = b"".join(repr(tuple(part.shape)).encode() + part.numpy().tobytes() for part in parts)
        if key not in self._seen:
            self._seen.add(key)
            self.choices.append(CouplingChoice(layer, line, self.reason))

    def freeze(self, layers: Sequence[Tensor] | Tensor, why: str = FIXED_SIZE) -> None:
        """Keep the labels of these layers for good."""
        for layer in [layers] if isinstance(layers, Tensor) else layers:
            self._freeze(np.unique(layer.numpy()), why)

    def _freeze(self, labels: Integers, why: str = FIXED_SIZE) -> None:
        self.frozen.append((labels, Reason(self.reason.operator, self.reason.node, why)))

    def alive(self, kept: Mapping[Slot, Integers]) -> Tensor:
        """Tell for each label whether it is left, from the indices kept of slots; those not named keep all."""
        alive = torch.ones(self._count, dtype=torch.bool)
        for slot, indices in kept.items():
            owned = self.slots[slot]
            alive[owned.start : owned.stop] = False
            alive[owned.start + torch.from_numpy(indices)] = True
        gone = np.zeros(self._count, dtype=bool)
        gone[self.classes[~alive.numpy()]] = True
        for made in self._made:
            alive[made.start : made.stop] = torch.from_numpy(~gone[self.classes[made.start : made.stop]])
        for follower in self._followers:
            there = torch.stack([alive[part] for part in torch.broadcast_tensors(*follower.sources)]).all(0)  # type: ignore[no-untyped-call]
            alive[follower.layer] = there.amax(follower.dims, keepdim=True) if follower.dims else there
        return alive


def _line(labels: range, dim: int, ndim: int) -> Tensor:
    return torch.arange(labels.start, labels.stop).reshape([-1 if other == dim else 1 for other in range(ndim)])


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


def distinct(pairs: Integers) -> Integers:
    """Drop pairs that occur again."""
    keys = np.unique(pairs[:, 0] << 32 | pairs[:, 1])
    return np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=1)
