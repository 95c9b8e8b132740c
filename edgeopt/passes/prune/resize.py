"""``resize``: rewrite the literal sizes of a graph for the channels that are left."""

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
from edgeopt.passes.aten import argument, argument_names, aten, plain_form
from edgeopt.passes.prune.interpret import Marks
from edgeopt.passes.prune.labels import Integers, Marked

CREATORS = (aten.zeros, aten.ones, aten.full, aten.empty, aten.randn, aten.rand)
"""Operators that create a tensor of a literal size, in the default dtype if none is given."""


def kept_indices(value: Marked, alive: Tensor) -> tuple[Integers, ...]:
    """Return the indices of a marked tensor that are left, for each dimension.

    Args:
        value: The tensor's layers.
        alive: For each label, whether it is left.

    Raises:
        StepError: the rest is not a product of indices, or nothing is left.
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
                "prune", f"the rest of a tensor of shape {value.shape} is not a rectangle: keep whole rows."
            )
    kept = tuple(keep.nonzero().reshape(-1).numpy() for keep in keeps)
    if any(not len(indices) and size for indices, size in zip(kept, value.shape, strict=True)):
        raise StepError("prune", f"nothing is left of a tensor of shape {value.shape}: keep a channel in every group.")
    return kept


@dataclass(frozen=True)
class KeptSizes:
    """The sizes and indices left of every node of a graph."""

    marks: Marks
    alive: Tensor

    def kept_indices(self, node: fx.Node) -> tuple[Integers, ...]:
        """Return the indices left of a node's tensor, for each dimension."""
        return kept_indices(self.marks.values[node.name], self.alive)

    def old_shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the shape before the cut."""
        shape: tuple[int, ...] = self.marks.values[node.name].shape
        return shape

    def number(self, entry: int | fx.Node) -> int:
        """Return a literal number, or the example's value of one that is computed at run time."""
        return int(self.marks.values[entry.name]) if isinstance(entry, fx.Node) else entry

    def new_shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the shape after the cut."""
        return tuple(len(indices) for indices in self.kept_indices(node))


def resize(graph: fx.Graph, marks: Marks, alive: Tensor) -> None:
    """Rewrite every literal size of ``graph`` in place; ``marks`` belong to the graph before the cut."""
    sizes = KeptSizes(marks, alive)
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        packet = getattr(node.target, "overloadpacket", None)
        rewrite = RESIZE.get(packet if packet is None or packet in RESIZE else plain_form(packet))
        if rewrite is not None:
            rewrite(node, sizes)


def _set_argument(node: fx.Node, name: str, value: Any) -> None:
    index = argument_names(node).index(name)
    if index < len(node.args):
        node.update_arg(index, value)
    else:
        node.update_kwarg(name, value)


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node), "the first argument of these operators is a tensor"
    return source


def _rescale(node: fx.Node, entry: Any, old: int, new: int) -> Any:
    """Change one entry of a list of sizes from ``old`` to ``new``; a size known only at run time is scaled then."""
    if old == new or entry == -1:
        return entry
    if not isinstance(entry, fx.Node):
        return new
    common = math.gcd(old, new)
    with node.graph.inserting_before(node):
        product = node.graph.call_function(operator.mul, (entry, new // common))
        return node.graph.call_function(operator.floordiv, (product, old // common))


def _sizes(name: str, first_dim: str | None = None) -> Callable[[fx.Node, KeptSizes], None]:
    """Make the rewrite of a list of sizes of the result's dimensions, starting at the dimension in ``first_dim``."""

    def rewrite(node: fx.Node, sizes: KeptSizes) -> None:
        start = argument(node, first_dim) % len(sizes.old_shape(_source(node))) if first_dim else 0
        entries = argument(node, name)
        pairs = list(zip(sizes.old_shape(node), sizes.new_shape(node), strict=True))[start : start + len(entries)]
        changed = [_rescale(node, entry, *pair) for entry, pair in zip(entries, pairs, strict=True)]
        _set_argument(node, name, changed)

    return rewrite


def _repeats(node: fx.Node, sizes: KeptSizes) -> None:
    """Repeat a dimension of size 1 as often as needed for what is left of the result."""
    old, new = sizes.old_shape(node), sizes.new_shape(node)
    times = [
        kept if count == size and isinstance(count, int) else count
        for count, size, kept in zip(argument(node, "repeats"), old, new, strict=True)
    ]
    _set_argument(node, "repeats", times)


def _squeeze(node: fx.Node, sizes: KeptSizes) -> None:
    """Name the dimensions of size 1; without names, a channel dimension with one channel left would be dropped too."""
    if len(node.args) == 1 and not node.kwargs:
        source = _source(node)
        node.target = aten.squeeze.dims
        node.args = (source, [dim for dim, size in enumerate(sizes.old_shape(source)) if size == 1])


def _slice(node: fx.Node, sizes: KeptSizes) -> None:
    """Set ``start`` and ``end`` to where the indices that it takes are among those that are left."""
    source = _source(node)
    dim = argument(node, "dim") % len(sizes.old_shape(source))
    size, kept = sizes.old_shape(source)[dim], sizes.kept_indices(source)[dim]
    if len(kept) == size:
        return
    step = argument(node, "step")
    taken = range(size)[slice(argument(node, "start"), argument(node, "end"), step)]
    places = np.flatnonzero(np.isin(kept, taken))
    if (np.diff(places) != step).any():
        reason = f"a slice in steps of {step} ({node.name}) is left with other steps: keep whole steps."
        raise StepError("prune", reason)
    _set_argument(node, "start", int(places[0]) if len(places) else 0)
    _set_argument(node, "end", int(places[-1]) + 1 if len(places) else 0)


def _select(node: fx.Node, sizes: KeptSizes) -> None:
    source = _source(node)
    dim = argument(node, "dim") % len(sizes.old_shape(source))
    size, kept = sizes.old_shape(source)[dim], sizes.kept_indices(source)[dim]
    if len(kept) < size:
        _set_argument(node, "index", int((kept < argument(node, "index") % size).sum()))


def _narrow(node: fx.Node, sizes: KeptSizes) -> None:
    source = _source(node)
    dim = argument(node, "dim") % len(sizes.old_shape(source))
    size, kept = sizes.old_shape(source)[dim], sizes.kept_indices(source)[dim]
    if len(kept) < size:
        _set_argument(node, "start", int((kept < argument(node, "start") % size).sum()))
        _set_argument(node, "length", sizes.new_shape(node)[dim])


def _split(node: fx.Node, sizes: KeptSizes) -> None:
    """Turn every split into one with a list of sizes, because the parts may keep different numbers."""
    source = _source(node)
    dim = argument(node, "dim") % len(sizes.old_shape(source))
    if sizes.new_shape(source)[dim] < sizes.old_shape(source)[dim]:
        parts = [len(kept_indices(part, sizes.alive)[dim]) for part in sizes.marks.values[node.name]]
        node.target = aten.split_with_sizes.default
        node.args, node.kwargs = (source, parts, dim), {}


def _groups(node: fx.Node, sizes: KeptSizes) -> None:
    """Reduce a convolution's groups to those that have channels left."""
    entry, source = argument(node, "groups"), _source(node)
    groups = sizes.number(entry)
    left = len(np.unique(sizes.kept_indices(source)[1] // (sizes.old_shape(source)[1] // groups)))
    if left < groups:
        _set_argument(node, "groups", _rescale(node, entry, groups, left))


def _norm_groups(node: fx.Node, sizes: KeptSizes) -> None:
    """Keep the number of groups of a group norm, except if each group has one channel."""
    source = _source(node)
    if argument(node, "num_groups") == sizes.old_shape(source)[1] > sizes.new_shape(source)[1]:
        _set_argument(node, "num_groups", sizes.new_shape(source)[1])


def _pad(node: fx.Node, sizes: KeptSizes) -> None:
    """Reduce the zeros padded along channels to those that go with channels left."""
    pad = list(argument(node, "pad"))
    for index in range(0, len(pad), 2):
        dim = len(sizes.old_shape(node)) - 1 - index // 2
        kept, size = sizes.kept_indices(node)[dim], sizes.old_shape(node)[dim]
        if len(kept) < size:
            pad[index] = int((kept < pad[index]).sum())
            pad[index + 1] = int((kept >= size - pad[index + 1]).sum())
    _set_argument(node, "pad", pad)


def _identity(node: fx.Node, sizes: KeptSizes) -> None:
    """Make an identity matrix as large as what is left of it; one that is not square stays."""
    for name, old, new in zip(("n", "m"), sizes.old_shape(node), sizes.new_shape(node), strict=True):
        if new < old and (name == "n" or "m" in node.kwargs or len(node.args) > 1):
            _set_argument(node, name, new)


def _scale(node: fx.Node, sizes: KeptSizes) -> None:
    """Keep an attention's scale: the weights were trained with the scale of the old depth."""
    query = _source(node)
    if sizes.new_shape(query)[-1] < sizes.old_shape(query)[-1] and argument(node, "scale") is None:
        node.update_kwarg("scale", sizes.old_shape(query)[-1] ** -0.5)


def _normalized_shape(node: fx.Node, sizes: KeptSizes) -> None:
    count = len(argument(node, "normalized_shape"))
    _set_argument(node, "normalized_shape", list(sizes.new_shape(node)[-count:]))


RESIZE: dict[Any, Callable[[fx.Node, KeptSizes], None]] = {
    aten.reshape: _sizes("shape"),
    aten.expand: _sizes("size"),
    aten.unflatten: _sizes("sizes", "dim"),
    aten.squeeze: _squeeze,
    aten.view: _sizes("size"),
    aten.repeat: _repeats,
    aten.slice: _slice,
    aten.slice_scatter: _slice,
    aten.select_scatter: _select,
    aten.select: _select,
    aten.narrow: _narrow,
    **dict.fromkeys(CREATORS, _sizes("size")),
    **dict.fromkeys((aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty), _sizes("size")),
    **dict.fromkeys((aten.split, aten.chunk, aten.split_with_sizes, aten.tensor_split), _split),
    **dict.fromkeys((aten.unsafe_split, aten.unsafe_chunk, aten.unsafe_split_with_sizes), _split),
    **dict.fromkeys((aten.pad, aten.constant_pad_nd), _pad),
    aten.eye: _identity,
    aten.scaled_dot_product_attention: _scale,
    aten.group_norm: _norm_groups,
    aten.rms_norm: _normalized_shape,
    **dict.fromkeys((aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution), _groups),
    **dict.fromkeys((aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d), _groups),
    aten.layer_norm: _normalized_shape,
}
"""Operators that hold a size as a literal number, and the function that rewrites it."""


def take_indices(tensor: Tensor, kept: dict[int, Integers]) -> Tensor:
    """Cut a tensor to the given indices along some dimensions; the result is contiguous."""
    for dim, indices in kept.items():
        tensor = tensor.index_select(dim, torch.from_numpy(np.ascontiguousarray(indices)).to(tensor.device))
    return tensor.contiguous()
