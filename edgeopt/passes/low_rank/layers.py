"""Which layers can be factorized into two, and the graph with the pairs in place.

    linear      (out, in)          ->  (rank, in)          then  (out, rank)
    pointwise   (out, in, K, K)    ->  (rank, in, K, K)    then  (out, rank, 1, 1)      Zhang et al., 2016
    separable   (out, in, K, K)    ->  (rank, in, K, 1)    then  (out, rank, 1, K)      Jaderberg et al., 2014

The first layer has no bias, so padding the second one with zeros is the same as padding the layer that they replace.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from edgeopt.passes.aten import aten
from edgeopt.passes.prune.interpret import tensor_names
from edgeopt.records.low_rank import Factorization, FactorizationForm

_CONVOLUTIONS: dict[Any, int] = {aten.conv1d.default: 1, aten.conv2d.default: 2}
"""Operator to its number of spatial dimensions. Left out: transposed convolutions, and those with padding as a word."""


class FactorizableLayer(NamedTuple):
    """A linear or convolution layer of a graph."""

    node: fx.Node
    weight: str
    """Name of its weight, which no other node reads."""
    shape: tuple[int, ...]

    @property
    def spatial(self) -> int:
        """Return the number of spatial dimensions; 0 for a linear layer."""
        return len(self.shape) - 2

    @property
    def kernel(self) -> tuple[int, ...]:
        """Return the kernel's size."""
        return self.shape[2:]

    @property
    def geometry(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Return stride, padding and dilation of a convolution, one number per spatial dimension."""
        given: list[Any] = [*self.node.args[3:6], *((1,), (0,), (1,))[len(self.node.args[3:6]) :]]
        stride, padding, dilation = (tuple(value) * (self.spatial if len(value) == 1 else 1) for value in given)
        return stride, padding, dilation

    @property
    def forms(self) -> tuple[FactorizationForm, ...]:
        """Return the forms of factorization that the layer allows."""
        square = self.spatial == 2 and all(size > 1 for size in self.kernel)
        return ("pointwise", "separable") if square else ("pointwise",)


def factorizable_layers(module: fx.GraphModule) -> dict[str, FactorizableLayer]:
    """Return the layers that can be factorized, by the name of their weight.

    Left out are grouped convolutions, whose channels do not mix, and weights that are computed, tied or used twice.
    """
    names = tensor_names(module)
    uses = Counter(names[str(node.target)] for node in module.graph.nodes if node.op == "get_attr" for _ in node.users)
    layers = {}
    for node in module.graph.nodes:
        dims = 0 if node.target is aten.linear.default else _CONVOLUTIONS.get(node.target)
        if dims is None or getattr(node.args[1], "op", "") != "get_attr" or node.kwargs:
            continue
        name = names[str(node.args[1].target)]
        tensor = operator.attrgetter(name)(module)
        grouped = dims > 0 and len(node.args) > 6 and node.args[6] != 1
        if isinstance(tensor, nn.Parameter) and tensor.requires_grad and uses[name] == 1 and not grouped:
            layers[name] = FactorizableLayer(node, name, tuple(tensor.shape))
    return layers


def pair_names(weight: str) -> tuple[str, str]:
    """Return the names of the two weights that replace one: ``fc.weight`` becomes ``fc.0.weight``, ``fc.1.weight``."""
    base = weight.removesuffix(".weight")
    return f"{base}.0.weight", f"{base}.1.weight"


def as_matrix(weight: Tensor, form: FactorizationForm) -> Tensor:
    """Return a weight as the matrix to factorize: the first layer reads its rows, the second one writes its columns."""
    if form == "separable":
        channels_out, channels_in, height, width = weight.shape
        return weight.permute(1, 2, 0, 3).reshape(channels_in * height, channels_out * width)
    return weight.flatten(1).T


def as_pair(first: Tensor, second: Tensor, layer: FactorizableLayer, form: FactorizationForm) -> tuple[Tensor, Tensor]:
    """Return the matrices ``(rows, rank)`` and ``(rank, columns)`` as the weights of the two layers."""
    rank, (channels_out, channels_in) = first.shape[1], layer.shape[:2]
    if form == "separable":
        height, width = layer.kernel
        across = second.reshape(rank, channels_out, 1, width).transpose(0, 1)
        return first.T.reshape(rank, channels_in, height, 1), across
    ones = (1,) * layer.spatial
    return first.T.reshape(rank, channels_in, *layer.kernel), second.T.reshape(channels_out, rank, *ones)


def pair_shapes(shape: tuple[int, ...], factorization: Factorization) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of the two weights that replace a weight of ``shape``."""
    channels_out, channels_in, *kernel = shape
    if factorization.form == "separable":
        return (factorization.rank, channels_in, kernel[0], 1), (channels_out, factorization.rank, 1, kernel[1])
    return (factorization.rank, channels_in, *kernel), (channels_out, factorization.rank, *(1 for _ in kernel))


def pair_geometry(layer: FactorizableLayer, form: FactorizationForm) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return stride, padding and dilation of the first and the second convolution."""
    geometry = layer.geometry
    if form == "separable":
        down = tuple([value[0], neutral] for value, neutral in zip(geometry, (1, 0, 1), strict=True))
        across = tuple([neutral, value[1]] for value, neutral in zip(geometry, (1, 0, 1), strict=True))
        return down, across
    neutral_all = tuple([neutral] * layer.spatial for neutral in (1, 0, 1))
    return tuple(list(value) for value in geometry), neutral_all


def factorize_graph(
    module: fx.GraphModule, factorizations: Mapping[str, Factorization], pairs: Mapping[str, tuple[Tensor, Tensor]]
) -> fx.GraphModule:
    """Return a copy of a graph with each named layer replaced by two; all other nodes and all names are unchanged.

    The second layer is the original node, with another weight and with the first layer as its input.

    Args:
        module: The graph.
        factorizations: Rank and form for each layer, by the name of its weight.
        pairs: The weights of the two layers, by the name of the weight that they replace.
    """
    layers = factorizable_layers(module)
    graph = copy.deepcopy(module.graph)
    nodes = {node.name: node for node in graph.nodes}
    names = tensor_names(module)
    tensors: dict[str, Tensor] = {
        name: _copy_tensor(operator.attrgetter(name)(module)) for name in names.values() if name not in factorizations
    }
    in_order = list(layers)
    for weight in sorted(factorizations, key=in_order.index):  # new nodes are named in the order of the graph
        factorization, layer, node = factorizations[weight], layers[weight], nodes[layers[weight].node.name]
        old, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
        with graph.inserting_before(node):
            first, second = (graph.get_attr(name) for name in pair_names(weight))
            inner: tuple[Any, ...] = (node.args[0], first, None)
            outer: tuple[Any, ...] = (second, bias)
            if layer.spatial:
                before, after = pair_geometry(layer, factorization.form)
                inner, outer = (*inner, *before, 1), (*outer, *after, 1)
            node.args = (graph.call_function(node.target, inner), *outer)
        graph.erase_node(old)
        tensors |= {name: nn.Parameter(value) for name, value in zip(pair_names(weight), pairs[weight], strict=True)}
    targets = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    return fx.GraphModule({target: tensors[names.get(target, target)] for target in targets}, graph)


def _copy_tensor(tensor: Tensor) -> Tensor:
    copied = tensor.detach().clone()
    return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
