"""Rewrites the literal sizes of a graph for the channels that are left."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from edgeopt.errors import StepError
from edgeopt.passes.aten import aten
from edgeopt.passes.prune.interpret import Marks
from edgeopt.passes.prune.labels import Integers, Marked

CREATORS = (aten.zeros, aten.ones, aten.full, aten.empty, aten.randn, aten.rand)
"""Operators that make a tensor of a literal size out of nothing, in the default type where none is given."""


def kept_of(value: Marked, alive: Tensor) -> tuple[Integers, ...]:
    """Return the indices of a marked tensor that are left, for each dimension.

    Args:
        value: The tensor's layers.
        alive: For each label whether it is left.

    Raises:
        StepError: what is left is no product of indices, or nothing is left.
    """
    keeps = [torch.ones(size, dtype=torch.bool) for size in value.shape]
    for layer in value.layers:
        mask = alive[layer]
        if bool(mask.all()):
            continue
        product = 1
        for dim, size in enumerate(layer.shape):
            others = [d for d in range(layer.ndim) if d != dim]
            line = mask.amax(others) if others else mask
            product *= int(line.sum())
            if size > 1:
                keeps[dim] &= line
        if product != int(mask.sum()):
            raise StepError(
                "prune", f"what is left of a tensor of shape {value.shape} is no rectangle: keep whole rows"
            )
    kept = tuple(keep.nonzero().reshape(-1).numpy() for keep in keeps)
    if any(not len(indices) and size for indices, size in zip(kept, value.shape, strict=True)):
        raise StepError("prune", f"nothing is left of a tensor of shape {value.shape}: keep a channel in every group")
    return kept


@dataclass(frozen=True)
class KeptSizes:
    """What is left of every node of a graph."""

    marks: Marks
    alive: Tensor

    def kept(self, node: fx.Node) -> tuple[Integers, ...]:
        """Indices left of a node's tensor, for each dimension."""
        return kept_of(self.marks.values[node.name], self.alive)

    def old(self, node: fx.Node) -> tuple[int, ...]:
        """The shape before."""
        shape: tuple[int, ...] = self.marks.values[node.name].shape
        return shape

    def new(self, node: fx.Node) -> tuple[int, ...]:
        """The shape after."""
        return tuple(len(indices) for indices in self.kept(node))


def resize(graph: fx.Graph, marks: Marks, alive: Tensor) -> None:
    """Rewrite every literal size of ``graph`` in place; ``marks`` are those of the graph as it is."""
    sizes = KeptSizes(marks, alive)
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        rewrite = RESIZE.get(getattr(node.target, "overloadpacket", None))
        if rewrite is not None:
            rewrite(node, sizes)


def _argument(node: fx.Node, name: str) -> Any:
    """Read an argument by its name in the schema, or its default."""
    for index, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name == name:
            return node.args[index] if index < len(node.args) else node.kwargs.get(name, argument.default_value)
    raise KeyError(name)


def _set_argument(node: fx.Node, name: str, value: Any) -> None:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    index = names.index(name)
    if index < len(node.args):
        node.update_arg(index, value)
    else:
        node.update_kwarg(name, value)


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node), "the first argument of these operators is a tensor"
    return source


def _scaled(node: fx.Node, entry: Any, old: int, new: int) -> Any:
    """Turn one entry of a list of sizes from ``old`` to ``new``; a number known at run time is scaled at run time."""
    if old == new or entry == -1:
        return entry
    if not isinstance(entry, fx.Node):
        return new
    common = math.gcd(old, new)
    with node.graph.inserting_before(node):
        product = node.graph.call_function(operator.mul, (entry, new // common))
        return node.graph.call_function(operator.floordiv, (product, old // common))


def _sizes(name: str, first_dim: str | None = None) -> Callable[[fx.Node, KeptSizes], None]:
    """Rewrite a list of sizes that describes the result's dimensions (from that in ``first_dim`` on)."""

    def rewrite(node: fx.Node, sizes: KeptSizes) -> None:
        start = _argument(node, first_dim) % len(sizes.old(_source(node))) if first_dim else 0
        entries = _argument(node, name)
        pairs = list(zip(sizes.old(node), sizes.new(node), strict=True))[start : start + len(entries)]
        changed = [_scaled(node, entry, *pair) for entry, pair in zip(entries, pairs, strict=True)]
        _set_argument(node, name, changed)

    return rewrite


def _squeeze(node: fx.Node, sizes: KeptSizes) -> None:
    """Without a dimension it would also drop channels of which one is left, so it gets those that are 1 now."""
    if len(node.args) == 1 and not node.kwargs:
        source = _source(node)
        node.target = aten.squeeze.dims
        node.args = (source, [dim for dim, size in enumerate(sizes.old(source)) if size == 1])


def _slice(node: fx.Node, sizes: KeptSizes) -> None:
    """``start`` and ``end`` count what is left before them."""
    source = _source(node)
    dim = _argument(node, "dim") % len(sizes.old(source))
    size, kept = sizes.old(source)[dim], sizes.kept(source)[dim]
    if len(kept) == size:
        return
    start, end, _ = slice(_argument(node, "start"), _argument(node, "end")).indices(size)
    _set_argument(node, "start", int((kept < start).sum()))
    _set_argument(node, "end", int((kept < end).sum()))


def _select(node: fx.Node, sizes: KeptSizes) -> None:
    source = _source(node)
    dim = _argument(node, "dim") % len(sizes.old(source))
    size, kept = sizes.old(source)[dim], sizes.kept(source)[dim]
    if len(kept) < size:
        _set_argument(node, "index", int((kept < _argument(node, "index") % size).sum()))


def _narrow(node: fx.Node, sizes: KeptSizes) -> None:
    source = _source(node)
    dim = _argument(node, "dim") % len(sizes.old(source))
    size, kept = sizes.old(source)[dim], sizes.kept(source)[dim]
    if len(kept) < size:
        _set_argument(node, "start", int((kept < _argument(node, "start") % size).sum()))
        _set_argument(node, "length", sizes.new(node)[dim])


def _split(node: fx.Node, sizes: KeptSizes) -> None:
    """Parts may keep different numbers, so every split becomes one with a list of sizes."""
    source = _source(node)
    dim = _argument(node, "dim") % len(sizes.old(source))
    if sizes.new(source)[dim] < sizes.old(source)[dim]:
        parts = [len(kept_of(part, sizes.alive)[dim]) for part in sizes.marks.values[node.name]]
        node.target = aten.split_with_sizes.default
        node.args, node.kwargs = (source, parts, dim), {}


def _groups(node: fx.Node, sizes: KeptSizes) -> None:
    """A convolution's groups are those that have channels left."""
    groups, source = _argument(node, "groups"), _source(node)
    left = len(np.unique(sizes.kept(source)[1] // (sizes.old(source)[1] // groups)))
    if left < groups:
        _set_argument(node, "groups", left)


def _norm_groups(node: fx.Node, sizes: KeptSizes) -> None:
    """A group norm keeps the number of its groups, but where they have one channel."""
    source = _source(node)
    if _argument(node, "num_groups") == sizes.old(source)[1] > sizes.new(source)[1]:
        _set_argument(node, "num_groups", sizes.new(source)[1])


def _pad(node: fx.Node, sizes: KeptSizes) -> None:
    """Of padded zeros along channels, those are left that go with channels left."""
    pad = list(_argument(node, "pad"))
    for index in range(0, len(pad), 2):
        dim = len(sizes.old(node)) - 1 - index // 2
        kept, size = sizes.kept(node)[dim], sizes.old(node)[dim]
        if len(kept) < size:
            pad[index] = int((kept < pad[index]).sum())
            pad[index + 1] = int((kept >= size - pad[index + 1]).sum())
    _set_argument(node, "pad", pad)


def _scale(node: fx.Node, sizes: KeptSizes) -> None:
    """An attention's scale is that of the depth before, which its weights were trained with."""
    query = _source(node)
    if sizes.new(query)[-1] < sizes.old(query)[-1] and _argument(node, "scale") is None:
        node.update_kwarg("scale", sizes.old(query)[-1] ** -0.5)


def _normalized_shape(node: fx.Node, sizes: KeptSizes) -> None:
    count = len(_argument(node, "normalized_shape"))
    _set_argument(node, "normalized_shape", list(sizes.new(node)[-count:]))


RESIZE: dict[Any, Callable[[fx.Node, KeptSizes], None]] = {
    aten.reshape: _sizes("shape"),
    aten.expand: _sizes("size"),
    aten.unflatten: _sizes("sizes", "dim"),
    aten.squeeze: _squeeze,
    aten.slice: _slice,
    aten.select: _select,
    aten.narrow: _narrow,
    **dict.fromkeys(CREATORS, _sizes("size")),
    **dict.fromkeys((aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty), _sizes("size")),
    **dict.fromkeys((aten.split, aten.chunk, aten.split_with_sizes, aten.tensor_split), _split),
    **dict.fromkeys((aten.unsafe_split, aten.unsafe_chunk), _split),
    **dict.fromkeys((aten.pad, aten.constant_pad_nd), _pad),
    aten.scaled_dot_product_attention: _scale,
    aten.group_norm: _norm_groups,
    aten.rms_norm: _normalized_shape,
    **dict.fromkeys((aten.conv1d, aten.conv2d, aten.conv3d), _groups),
    **dict.fromkeys((aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d), _groups),
    aten.layer_norm: _normalized_shape,
}
"""Operators that hold a size as a literal number, and how it is rewritten."""


def kept_part(tensor: Tensor, kept: dict[int, Integers]) -> Tensor:
    """Cut a tensor to the indices kept along some dimensions, contiguous."""
    for dim, indices in kept.items():
        tensor = tensor.index_select(dim, torch.from_numpy(np.ascontiguousarray(indices)).to(tensor.device))
    return tensor.contiguous()
