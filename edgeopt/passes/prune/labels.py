"""Labels: which channels go together.

Every index of every dimension of every parameter and buffer has a label, a positive integer. An activation carries
*layers* of labels instead of numbers. Rules unite labels that can only go together and freeze labels that must stay.
After the run, each class of united labels is one channel.

A layer is an integer tensor with as many dimensions as the activation, and size 1 along each dimension on which it does
not depend. Label 0 means "always there". An element of an activation is gone if any of its layers has a label there
that is gone.

Example: ``nn.Conv2d(3, 2, 1)`` has the labels 1, 2 (rows of the weight), 3, 4, 5 (its columns) and 6, 7 (its bias). Its
output of shape (batch, 2, h, w) carries one layer of shape (1, 2, 1, 1) with the labels 1 and 2. Adding the bias unites
1 with 6 and 2 with 7. The input image carries no layer, so 3, 4 and 5 freeze.
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
"""The label of elements that can never go."""


@dataclass(frozen=True)
class Marked:
    """Stands for a tensor during the run: its shape and its layers."""

    shape: tuple[int, ...]
    layers: tuple[Tensor, ...] = ()
    places: Tensor | None = None
    """If its values are positions in a line of labels, as those of the best experts: these labels, of one dimension."""


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
LAST = "the only channel of a dimension"
FIXED_SIZE = "meets values of a fixed size"
_NOWHERE = Reason("", "", "")


def varying_dims(layer: Tensor) -> tuple[int, ...]:
    """Return the dimensions that a layer depends on."""
    return tuple(dim for dim, size in enumerate(layer.shape) if size > 1)


def compress(layer: Tensor) -> Tensor:
    """Reduce each dimension along which the labels are constant to size 1."""
    for dim in range(layer.ndim):
        if layer.shape[dim] > 1:
            first = layer.narrow(dim, 0, 1)
            if layer.stride(dim) == 0 or bool((layer == first).all()):
                layer = first
    return layer


@dataclass(frozen=True)
class Follower:
    """Labels that belong to no parameter: one is there as long as any position along ``dims`` has all ``sources``."""

    layer: Tensor
    sources: tuple[Tensor, ...]
    dims: tuple[int, ...]


@dataclass(frozen=True)
class CouplingChoice:
    """The rest of ``layer`` must be a product of indices along each dimension; ``resolve_couplings`` decides which.

    A ``line`` depends on only some of the layer's dimensions. Either both go together along the line, or the line
    stays and the layer shrinks across it. Example: a line of heads and a layer of (heads, depth).
    """

    layer: Tensor
    line: Tensor | None
    reason: Reason


class Labels:
    """The labels of one network: which are united, which are frozen and why.

    ``reason`` names the operator that is being interpreted; the interpreter sets it before each rule.
    """

    def __init__(self) -> None:
        self.slots: dict[Slot, range] = {}
        self.reason = _NOWHERE
        self.frozen: list[tuple[Integers, Reason]] = []
        self.choices: list[CouplingChoice] = []
        self.picked: list[tuple[Tensor, int]] = []
        """Lines of labels of which an operator picks that many, so that no fewer can be left."""
        self._count = 1
        self._pairs: list[Integers] = []
        self._seen: set[bytes] = set()
        self._followers: list[Follower] = []
        self._merged: list[tuple[Follower, Reason]] = []
        self._created: list[range] = []
        self._created_lines: list[tuple[Tensor, Tensor]] = []
        self._classes: Integers | None = None

    @property
    def count(self) -> int:
        """Number of labels, including label 0."""
        return self._count

    @property
    def classes(self) -> Integers:
        """The class of each label after uniting, before any choice is resolved."""
        if self._classes is None:
            self._classes = connect(np.arange(self._count), np.concatenate([np.empty((0, 2), np.int64), *self._pairs]))
        return self._classes

    def label_parameter(self, name: str, shape: Sequence[int]) -> Marked:
        """Label a parameter (with the same labels each time): one layer for each dimension larger than 1."""
        layers = []
        for dim, size in enumerate(shape):
            if size == 1:
                continue
            if (name, dim) not in self.slots:
                self.slots[name, dim] = self._new_labels(size)
            layers.append(_line(self.slots[name, dim], dim, len(shape)))
        return Marked(tuple(shape), tuple(layers))

    def label_created(self, shape: Sequence[int], dims: Sequence[int]) -> tuple[Tensor, ...]:
        """Label dimensions of a tensor that the graph itself creates: they go with whatever they meet."""
        layers = []
        for dim in dims:
            if shape[dim] > 1:
                self._created.append(self._new_labels(shape[dim]))
                layers.append(_line(self._created[-1], dim, len(shape)))
        return tuple(layers)

    def is_created(self, layer: Tensor) -> bool:
        """Tell whether a layer has labels of a tensor that the graph itself creates."""
        return any(int(layer.reshape(-1)[0]) in created for created in self._created)

    def follow(self, sources: Sequence[Tensor], dims: Iterable[int]) -> Tensor:
        """Return a layer of new labels, constant along ``dims``, that follow ``sources``.

        A label goes when, at every position along ``dims``, at least one source is gone. Example: following a layer
        (heads, depth) along depth gives one label per head, which goes when the whole head is gone.
        """
        dims = tuple(dims)
        shape = [max(source.shape[dim] for source in sources) for dim in range(sources[0].ndim)]
        kept = [1 if dim in dims else size for dim, size in enumerate(shape)]
        labels = self._new_labels(math.prod(kept))
        layer = torch.arange(labels.start, labels.stop).reshape(kept)
        self._followers.append(Follower(layer, tuple(sources), dims))
        for source in sources:
            if varying_dims(layer) == varying_dims(source):
                self.unite(layer, source)
            elif dims:
                self.choose(layer, source)
            else:
                self.choose(source, layer)
        return layer

    def merge(self, layers: Sequence[Tensor]) -> Tensor:
        """Return one layer of new labels for layers that a view puts along one dimension.

        A label goes when any of the layers is gone there. Only if one meets another label does a choice have to be
        made, as for any layer of several dimensions: see ``merged_choices``.
        """
        shape = [max(layer.shape[dim] for layer in layers) for dim in range(layers[0].ndim)]
        labels = self._new_labels(math.prod(shape))
        merged = Follower(torch.arange(labels.start, labels.stop).reshape(shape), tuple(layers), ())
        self._followers.append(merged)
        self._merged.append((merged, self.reason))
        return merged.layer

    def unmerge(self, layer: Tensor) -> tuple[Tensor, ...]:
        """Return the layers that were merged into this one, if a view put them along dimensions of their own again."""
        low, high = int(layer.min()), int(layer.max())
        for merged, _ in self._merged:
            start = int(merged.layer.reshape(-1)[0])
            if start <= low and high < start + merged.layer.numel():
                parts = [
                    compress(source.expand(merged.layer.shape).reshape(-1)[layer - start]) for source in merged.sources
                ]
                dims = [dim for part in parts for dim in varying_dims(part)]
                if len(set(dims)) == len(dims):
                    return tuple(one for part in parts if varying_dims(part) for one in self.unmerge(part))
        return (layer,)

    def merged_choices(self) -> list[CouplingChoice]:
        """Return the choices for merged layers that met other labels: which of the layers in them stays free."""
        met = np.zeros(self._count, dtype=bool)
        for part in (*self._pairs, *(labels for labels, _ in self.frozen)):
            met[part] = True
        for layer in (part for choice in self.choices for part in (choice.layer, choice.line) if part is not None):
            met[layer.numpy()] = True
        for follower in self._followers:
            for source in follower.sources:
                met[source.numpy()] = True
        return [
            CouplingChoice(merged.layer, source, reason)
            for merged, reason in self._merged
            if met[merged.layer.numpy()].any()
            for source in merged.sources
        ]

    def _new_labels(self, size: int) -> range:
        self._count += size
        return range(self._count - size, self._count)

    def unite(self, one: Tensor, other: Tensor) -> None:
        """Broadcast two layers and let the labels that meet go together. Labels that meet label 0 freeze."""
        left, right = (side.reshape(-1).numpy() for side in torch.broadcast_tensors(one, other))  # type: ignore[no-untyped-call]
        differs = left != right
        pairs = np.stack([left[differs], right[differs]], axis=1)
        meets_always = (pairs == ALWAYS).any(axis=1)
        if meets_always.any():
            self._freeze(pairs[meets_always].max(axis=1))
            pairs = pairs[~meets_always]
        if len(pairs):
            self._pairs.append(drop_duplicates(pairs))

    def tie(self, layer: Tensor, dim: int) -> Tensor:
        """Let all labels along one dimension go together; return the layer reduced along it."""
        first = layer.narrow(dim, 0, 1)
        self.unite(layer, first)
        return first

    def choose(self, line: Tensor | None, layer: Tensor) -> None:
        """Let ``resolve_couplings`` choose which dimensions of ``layer`` stay free, and whether ``line`` shrinks."""
        parts = [layer] if line is None else [layer, line]
        key = b"".join(repr(tuple(part.shape)).encode() + part.numpy().tobytes() for part in parts)
        if key not in self._seen:
            self._seen.add(key)
            self.choices.append(CouplingChoice(layer, line, self.reason))
            if line is not None and (self.is_created(line) or self.is_created(layer)):
                self._created_lines.append((line, layer))

    def freeze(self, layers: Sequence[Tensor] | Tensor, why: str = FIXED_SIZE) -> None:
        """Keep the labels of these layers: they can no longer go."""
        for layer in [layers] if isinstance(layers, Tensor) else layers:
            self._freeze(np.unique(layer.numpy()), why)

    def _freeze(self, labels: Integers, why: str = FIXED_SIZE) -> None:
        self.frozen.append((labels, Reason(self.reason.operator, self.reason.node, why)))

    def alive(self, kept: Mapping[Slot, Integers]) -> Tensor:
        """Return, for each label, whether it is left if slots keep these indices; slots not named keep all."""
        alive = torch.ones(self._count, dtype=torch.bool)
        for slot, indices in kept.items():
            owned = self.slots[slot]
            alive[owned.start : owned.stop] = False
            alive[owned.start + torch.from_numpy(indices)] = True
        # a created size goes with whatever it meets, also with a follower of a size that was created before
        while True:
            before = alive.clone()
            for follower in self._followers:
                has_sources = torch.stack([alive[part] for part in torch.broadcast_tensors(*follower.sources)]).all(0)  # type: ignore[no-untyped-call]
                alive[follower.layer] = has_sources.amax(follower.dims, keepdim=True) if follower.dims else has_sources
            gone = np.zeros(self._count, dtype=bool)
            gone[self.classes[~alive.numpy()]] = True
            for created in self._created:
                alive[created.start : created.stop] &= torch.from_numpy(
                    ~gone[self.classes[created.start : created.stop]]
                )
            for line, layer in self._created_lines:
                if self.is_created(layer):
                    alive[layer] &= alive[line]
                else:
                    across = [dim for dim in varying_dims(layer) if line.shape[dim] == 1]
                    alive[line] &= alive[layer].amax(across, keepdim=True)
            if torch.equal(alive, before):
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


def drop_duplicates(pairs: Integers) -> Integers:
    """Drop duplicate pairs."""
    keys = np.unique(pairs[:, 0] << 32 | pairs[:, 1])
    return np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=1)
