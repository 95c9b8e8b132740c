"""What a part of a graph computes, if that is a convolution of one of its values: ``Affine``.

In: a node. Out: the convolution that equals it in evaluation mode, and the nodes that it stands for. Everything here is
in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from edgeopt.passes.aten import argument, aten, read_attribute
from edgeopt.passes.prune.interpret import Shapes

_CONVOLUTIONS = (aten.conv1d, aten.conv2d, aten.conv3d)
_SIGNS = {aten.add: 1.0, aten.add_: 1.0, aten.sub: -1.0, aten.sub_: -1.0}
_PRODUCTS = (aten.mul, aten.mul_)


@dataclass(frozen=True, eq=False)
class Affine:
    """A convolution of ``source``, plus a bias.

    The position of a kernel's tap ``i`` is ``first + i * dilation``, counted from ``stride`` times the position of the
    output; outside of its source, a convolution reads zeros.
    """

    source: fx.Node
    weight: Tensor
    """(out, in / groups, *kernel), in float64."""
    bias: Tensor
    """(out,), in float64."""
    first: tuple[int, ...]
    dilation: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int
    nodes: frozenset[fx.Node]
    """What it stands for; empty for the source itself."""
    conv: fx.Node | None = None
    """The convolution that the kernel is from."""
    norms: tuple[fx.Node, ...] = ()
    """The batch norms among ``nodes``, that of ``conv`` first."""
    terms: int = 1
    """Branches that were added up."""

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel's size."""
        return tuple(self.weight.shape[2:])

    @property
    def reach(self) -> tuple[tuple[int, int], ...]:
        """For each dimension, the positions of the first and the last tap."""
        sizes = zip(self.first, self.kernel, self.dilation, strict=True)
        return tuple((first, first + (size - 1) * step) for first, size, step in sizes)

    def scaled(self, factor: Tensor | float, shift: Tensor | float, node: fx.Node) -> Affine:
        """Return what ``node`` computes: this times a factor, plus a shift, a number for each channel or one for all.

        The node is added to those that the result stands for.
        """
        factors = torch.as_tensor(factor, dtype=torch.float64).expand(len(self.bias))
        weight = self.weight * factors.reshape(-1, *[1] * (self.weight.ndim - 1))
        return replace(self, weight=weight, bias=self.bias * factors + shift, nodes=self.nodes | {node})

    def plus(self, other: Affine, node: fx.Node) -> Affine | None:
        """Return the sum that ``node`` computes, or None if neither kernel covers the other."""
        for main, branch in ((self, other), (other, self)):
            weight = fit_kernel(branch, main) if main.conv is not None else None
            if weight is not None:
                return replace(
                    main,
                    weight=main.weight + weight,
                    bias=main.bias + branch.bias,
                    nodes=main.nodes | branch.nodes | {node},
                    norms=main.norms + branch.norms,
                    terms=main.terms + branch.terms,
                )
        return None


def fit_kernel(branch: Affine, main: Affine) -> Tensor | None:
    """Return a branch's weight in the shape of another one's, or None if it reaches outside or mixes more channels.

    Both outputs have the same size at every size of the source if their first and last taps add up to the same.
    """
    same = branch.source is main.source and branch.stride == main.stride and len(branch.bias) == len(main.bias)
    if (
        not same
        or branch.groups % main.groups
        or [sum(ends) for ends in branch.reach] != [sum(ends) for ends in main.reach]
    ):
        return None
    taps = []
    for dim, size in enumerate(branch.kernel):
        distances = [branch.first[dim] + index * branch.dilation[dim] - main.first[dim] for index in range(size)]
        if any(distance % main.dilation[dim] for distance in distances):
            return None
        taps.append([distance // main.dilation[dim] for distance in distances])
        if min(taps[-1]) < 0 or max(taps[-1]) >= main.kernel[dim]:
            return None
    fitted = torch.zeros_like(main.weight)
    rows, columns = len(branch.bias) // branch.groups, branch.weight.shape[1]
    for group in range(branch.groups):
        start = group * columns % main.weight.shape[1]
        index = torch.meshgrid(
            torch.arange(group * rows, (group + 1) * rows),
            torch.arange(start, start + columns),
            *map(torch.tensor, taps),
            indexing="ij",
        )
        fitted[index] = branch.weight[group * rows : (group + 1) * rows]
    return fitted


class Outline(NamedTuple):
    """What may be a convolution, seen without its numbers."""

    source: fx.Node
    terms: int
    """Branches that are added up."""


class AffineReader:
    """Reads the nodes of a graph in evaluation mode.

    Args:
        module: The graph.
        shapes: Of its values.
    """

    def __init__(self, module: fx.GraphModule, shapes: Shapes) -> None:
        self.module = module
        self.shapes = shapes
        self.constants: set[fx.Node] = set()
        self.outlines: dict[fx.Node, Outline] = {}
        for node in module.graph.nodes:
            if _is_constant(node, self.constants):
                self.constants.add(node)
            elif (outline := self._outline(node)) is not None:
                self.outlines[node] = outline

    def _outline(self, node: fx.Node) -> Outline | None:
        packet = getattr(node.target, "overloadpacket", None)
        if packet in _CONVOLUTIONS:
            return Outline(argument(node, "input"), 1)
        if packet is aten.batch_norm:
            return self._operand_outline(argument(node, "input"))
        if packet not in (*_SIGNS, *_PRODUCTS, aten.sum):
            return None
        given = stacked_values(node) if packet is aten.sum else node.args[:2]
        operands = [one for one in given if isinstance(one, fx.Node) and one not in self.constants]
        parts = [self._operand_outline(one) for one in operands]
        if len(parts) > 1 and (packet in _PRODUCTS or any(part.source is not parts[0].source for part in parts)):
            return None
        return Outline(parts[0].source, sum(part.terms for part in parts)) if parts else None

    def _operand_outline(self, node: fx.Node) -> Outline:
        found = self.outlines.get(node) if len(node.users) == 1 else None
        return found or Outline(node, 1)

    def read(self, node: fx.Node) -> Affine | None:
        """Return what a node computes, if that is a convolution."""
        if node not in self.outlines:
            return None
        packet = getattr(node.target, "overloadpacket", None)
        if packet in _CONVOLUTIONS:
            return self._convolution(node)
        if packet is aten.batch_norm:
            return self._batch_norm(node)
        if packet in _SIGNS:
            return self._sum(node, _SIGNS[packet])
        return self._product(node) if packet in _PRODUCTS else self._sum_of_stack(node)

    def operand(self, node: Any) -> Affine | None:
        """Return a node as a convolution: of its source if only one node reads it, otherwise of itself."""
        if not isinstance(node, fx.Node):
            return None
        found = self.read(node) if len(node.users) == 1 else None
        return found or self._identity(node)

    def _identity(self, node: fx.Node) -> Affine | None:
        """Return a value as a convolution of itself with one tap; None if it has no channels and positions."""
        shape = self.shapes[node.name]
        if not isinstance(shape, tuple) or not 3 <= len(shape) <= 5 or self.constant(node) is not None:
            return None
        channels, spatial = shape[1], len(shape) - 2
        weight = torch.ones((channels, 1, *[1] * spatial), dtype=torch.float64)
        bias = torch.zeros(channels, dtype=torch.float64)
        zeros, ones = (0,) * spatial, (1,) * spatial
        return Affine(node, weight, bias, zeros, ones, ones, channels, frozenset())

    def _convolution(self, node: fx.Node) -> Affine | None:
        source, weight = argument(node, "input"), self.constant(argument(node, "weight"))
        if weight is None or len(self.shapes[node.name]) != weight.ndim:
            return None
        bias = self.constant(argument(node, "bias"))
        dilation = _sizes(argument(node, "dilation"), weight.ndim - 2)
        first = _first_taps(argument(node, "padding"), dilation, tuple(weight.shape[2:]))
        if first is None:
            return None
        return Affine(
            source=source,
            weight=weight,
            bias=torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias,
            first=first,
            dilation=dilation,
            stride=_sizes(argument(node, "stride"), weight.ndim - 2),
            groups=argument(node, "groups"),
            nodes=frozenset([node]),
            conv=node,
        )

    def _batch_norm(self, node: fx.Node) -> Affine | None:
        of = self.operand(argument(node, "input"))
        mean, var = (self.constant(argument(node, name)) for name in ("running_mean", "running_var"))
        if of is None or mean is None or var is None or argument(node, "training"):
            return None
        scale = (var + argument(node, "eps")).rsqrt()
        weight, bias = self.constant(argument(node, "weight")), self.constant(argument(node, "bias"))
        scale = scale if weight is None else scale * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        return replace(of.scaled(scale, shift, node), norms=(*of.norms, node))

    def _sum(self, node: fx.Node, sign: float) -> Affine | None:
        left, right = node.args[:2]
        factor = sign * argument(node, "alpha")
        if not isinstance(right, fx.Node):
            of = self.operand(left)
            return None if of is None or not isinstance(right, int | float) else of.scaled(1.0, factor * right, node)
        if not isinstance(left, fx.Node) or self.shapes[left.name] != self.shapes[right.name]:
            return None
        first, second = self.operand(left), self.operand(right)
        return None if first is None or second is None else first.plus(second.scaled(factor, 0.0, node), node)

    def _sum_of_stack(self, node: fx.Node) -> Affine | None:
        total, *others = [self.operand(value) for value in stacked_values(node)]
        for other in others:
            total = None if total is None or other is None else total.plus(other, node)
        return None if total is None else replace(total, nodes=total.nodes | {node, *node.all_input_nodes})

    def _product(self, node: fx.Node) -> Affine | None:
        for one, other in (node.args[:2], node.args[1::-1]):
            factor = self._channel_factor(other, self.shapes[node.name])
            of = self.operand(one) if factor is not None else None
            if of is not None and factor is not None and len(of.bias) == self.shapes[node.name][1]:
                return of.scaled(factor, 0.0, node)
        return None

    def _channel_factor(self, value: Any, shape: tuple[int, ...]) -> Tensor | float | None:
        """Return a factor that is the same at all positions; None for any other value."""
        if isinstance(value, int | float):
            return float(value)
        factor = self.constant(value)
        if factor is None or factor.ndim > len(shape) or len(shape) < 3:
            return None
        aligned = factor.reshape(*[1] * (len(shape) - factor.ndim), *factor.shape)
        if aligned.shape[1] != aligned.numel() or aligned.numel() not in (1, shape[1]):
            return None
        return aligned.reshape(-1)

    def constant(self, node: Any) -> Tensor | None:
        """Return a value that depends only on parameters and buffers, in float64; None for any other value."""
        if node not in self.constants:
            return None
        if node.op == "get_attr":
            value = read_attribute(self.module, node)
            return value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else None
        value = node.target(*fx.map_arg(node.args, self.constant), **fx.map_arg(node.kwargs, self.constant))
        return value if isinstance(value, Tensor) and value.is_floating_point() else None


def _is_constant(node: fx.Node, constants: set[fx.Node]) -> bool:
    """Tell whether a node's value depends only on parameters and buffers, and nothing is written into it."""
    if node.op == "get_attr":
        return True
    schema, inputs = getattr(node.target, "_schema", None), node.all_input_nodes
    steady = schema is not None and not schema.is_mutable and torch.Tag.nondeterministic_seeded not in node.target.tags  # type: ignore[union-attr]
    return node.op == "call_function" and steady and bool(inputs) and constants.issuperset(inputs)


def stacked_values(node: fx.Node) -> Sequence[Any]:
    """Return what a sum of a stack adds up; nothing for any other sum."""
    stack: Any = node.args[0]
    if getattr(getattr(stack, "target", None), "overloadpacket", None) is not aten.stack or len(stack.users) > 1:
        return ()
    values, dims = stack.args[0], (*node.args, None, None)[1]
    if not isinstance(dims, list | tuple) or list(dims) != [argument(stack, "dim")] or argument(node, "keepdim"):
        return ()
    return tuple(values)


def _sizes(given: Any, count: int) -> tuple[int, ...]:
    return tuple(given) * (count if len(given) == 1 else 1)


def _first_taps(padding: Any, dilation: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the position of the first tap for each dimension; None if more is padded at one end than at the other."""
    spans = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    if padding == "valid":
        return (0,) * len(kernel)
    if padding == "same":
        return None if any(span % 2 for span in spans) else tuple(-span // 2 for span in spans)
    return tuple(-size for size in _sizes(padding, len(kernel)))
