"""Counts the weights of a network in whatever form a file stores them; scales and zero points are not weights.

Integers are weights if an operator on integers reads them, or if they are dequantized by hand: with a ``Cast``, perhaps
a ``Sub`` of the zero point, and a ``Mul`` by the scale, for whole tensors or for single rows of a table.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeopt.graph.given.values import name_element
from edgeopt.graph.model import inner_graphs, walk_graphs
from edgeopt.graph.weights.matmul_nbits import count_packed_weights
from edgeopt.model_files.tensors import tensor_values

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_SMALL = frozenset(
    number
    for name, number in TensorProto.DataType.items()
    if name.startswith(("INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2", "INT16", "UINT16", "FLOAT8", "FLOAT4"))
)
"""Types of weights in 16 bits or fewer that need a scale."""
_QUANTIZED = (*_SMALL, TensorProto.INT32)
"""The same, and that of biases."""
_CLASSIC_DOMAIN = "ai.onnx.ml"
"""Linear models, trees and the like, with their weights in attributes."""
_ARITHMETIC = (1, 2, 4, 5, 6, 7)
_UNARY = (1, 2, 3, 4)
_SCALE_INPUTS: dict[str, tuple[int, ...]] = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": _ARITHMETIC,
    "QLinearMatMul": _ARITHMETIC,
    "QLinearAdd": _ARITHMETIC,
    "QLinearMul": _ARITHMETIC,
    "QLinearGlobalAveragePool": _UNARY,
    "QLinearAveragePool": _UNARY,
    "QLinearSigmoid": _UNARY,
    "QLinearLeakyRelu": _UNARY,
    "QLinearSoftmax": _UNARY,
    "QLinearReduceMean": (1, 2, 3, 4),
    "QGemm": (1, 2, 4, 5, 7, 8),
    "QAttention": (3, 4, 6, 7),
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
    "DynamicQuantizeMatMul": (2, 3),
    "DynamicQuantizeLSTM": (8, 9, 10, 11),
    "GatherBlockQuantized": (2, 3),
}
"""Inputs that hold scales and zero points."""
_PACKED = ("MatMulNBits", "MatMulBnb4")
"""Operators whose weights have fewer bits than the type that they are stored in."""
_SAME_VALUES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Gather")
"""Operators that only move the values of their first input."""
_PART_VALUES = 2**24
"""Values that are compared at a time."""
INTEGER_OPERATORS = frozenset({*_SCALE_INPUTS, *_PACKED, "QLinearConcat", "QLinearWhere"})
"""Operators on integers, or on weights that are stored as integers."""


class ParameterCount(NamedTuple):
    """The weights of a network."""

    total: int
    nonzero: int
    """For integers: not equal to their zero point."""
    types: Counter[str]
    """Number of weights of each type; ``int4`` for packed ones of 4 bits."""


def count_parameters(model: onnx.ModelProto) -> ParameterCount:
    """Count the weights of a model, each as often as the file stores it; names are different in all its graphs."""
    parts = [_Part(*_of_graph(model.graph))]
    for function in model.functions:
        inner = [graph for node in function.node for graph in inner_graphs(node)]
        nodes, tensors = [*function.node], dict(_constants(function.node))
        for graph in inner:
            more_nodes, more_tensors = _of_graph(graph)
            nodes, tensors = [*nodes, *more_nodes], {**tensors, **more_tensors}
        parts.append(_Part(nodes, tensors))
    counts = [part.count() for part in parts]
    types = sum((count.types for count in counts), Counter[str]())
    sparse = [tensor for graph in walk_graphs(model.graph) for tensor in graph.sparse_initializer]
    for tensor in sparse:
        types[name_element(tensor.values.data_type)] += math.prod(tensor.dims)
    return ParameterCount(
        sum(count.total for count in counts) + sum(math.prod(tensor.dims) for tensor in sparse),
        sum(count.nonzero for count in counts) + sum(math.prod(tensor.values.dims) for tensor in sparse),
        types,
    )


def stored_tensors(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """Return the initializers, and the values of ``Constant`` nodes with more than one element, by name."""
    return _of_graph(graph)[1]


def has_integer_weights(model: onnx.ModelProto) -> bool:
    """Tell whether most weights of a model's graph are integers that it dequantizes by hand."""
    part = _Part(*_of_graph(model.graph))
    scaled = [name for name, scales in part.integers_by_hand().items() if scales]
    if not scaled:  # no need to read all values
        return False
    integers: int = sum(math.prod(part.tensors[name].dims) for name in scaled)
    return 2 * integers > part.count().total


def _of_graph(graph: onnx.GraphProto) -> tuple[list[onnx.NodeProto], dict[str, TensorProto]]:
    """Return the nodes and the stored tensors of a graph and of those in it."""
    tensors = {tensor.name: tensor for inner in walk_graphs(graph) for tensor in inner.initializer}
    nodes = [node for inner in walk_graphs(graph) for node in inner.node]
    return nodes, {**tensors, **dict(_constants(nodes))}


def _constants(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[str, TensorProto]]:
    for node in nodes:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value" and math.prod(attribute.t.dims) > 1:
                yield node.output[0], attribute.t


class _Part:
    """Nodes that read one another's values, with the tensors that they store."""

    def __init__(self, nodes: list[onnx.NodeProto], tensors: dict[str, TensorProto]) -> None:
        self._nodes = nodes
        self.tensors = tensors
        self._producers = {name: node for node in nodes for name in node.output if name}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def count(self) -> ParameterCount:
        """Count the weights."""
        by_hand = self.integers_by_hand()
        integers, scales = set(by_hand), set().union(*by_hand.values())
        zero_points: dict[str, str] = {}
        for node in self._nodes:
            places = _SCALE_INPUTS.get(node.op_type, ())
            scales |= {node.input[place] for place in places if place < len(node.input)}
            if places:
                integers |= {name for place, name in enumerate(node.input) if place not in places}
            if node.op_type == "DequantizeLinear" and len(node.input) > 2:
                zero_points[node.input[0]] = node.input[2]
            if node.op_type == "DynamicQuantizeLinear" and len(node.output) > 1:
                scales |= {name for user in self._readers.get(node.output[1], ()) for name in user.input}
        packed = {node.input[1]: node for node in self._nodes if node.op_type in _PACKED}
        scales |= {name for node in packed.values() for name in node.input[1:5]}
        total = nonzero = 0
        types: Counter[str] = Counter()
        for node in packed.values():
            count, used = count_packed_weights(node, self.tensors)
            total, nonzero = total + count, nonzero + used
            types[f"int{next((one.i for one in node.attribute if one.name == 'bits'), 4)}"] += count
        for name, tensor in self.tensors.items():
            if name in scales or tensor.data_type not in (*_FLOATS, *(_QUANTIZED if name in integers else ())):
                continue
            values_in_one = self._values_in_one(name)
            count, used = _count_values(tensor, self.tensors.get(zero_points.get(name, "")))
            total, nonzero = total + count * values_in_one, nonzero + used * values_in_one
            types[name_element(tensor.data_type) if values_in_one == 1 else "int4"] += count * values_in_one
        attributes = [value for node in self._nodes if node.domain == _CLASSIC_DOMAIN for value in _floats_of(node)]
        types["float32"] += len(attributes)
        return ParameterCount(total + len(attributes), nonzero + int(np.count_nonzero(attributes)), +types)

    def integers_by_hand(self) -> dict[str, set[str]]:
        """Return stored integers that become floats by a ``Cast``, each with their scales and zero points."""
        found: dict[str, set[str]] = {}
        for node in self._nodes:
            if node.op_type != "Cast" or helper.get_node_attr_value(node, "to") not in _FLOATS:
                continue
            source = self._trace(node.input[0])
            if source in self.tensors and self.tensors[source].data_type in _SMALL:
                size = math.prod(self.tensors[source].dims)
                found.setdefault(source, set()).update(self._factors(node.output[0], size))
        return found

    def _factors(self, value: str, size: int) -> Iterator[str]:
        """Yield the stored tensors, smaller than the weight of that size, that its float values meet on their way."""
        for user in self._readers.get(value, ()):
            if user.op_type in _SAME_VALUES and user.input[0] == value:
                yield from self._factors(user.output[0], size)
            elif user.op_type in ("Sub", "Mul", "Div"):
                others = [self._trace(name, casts=True) for name in user.input if name != value]
                yield from (name for name in others if self._is_smaller(name, size))
                if user.op_type == "Sub":
                    yield from self._factors(user.output[0], size)

    def _is_smaller(self, name: str, size: int) -> bool:
        return name in self.tensors and math.prod(self.tensors[name].dims) < max(size, 2)

    def _trace(self, name: str, *, casts: bool = False) -> str:
        """Return the value that a value is part of, as it was before it was moved."""
        while (node := self._producers.get(name)) is not None and (
            node.op_type in _SAME_VALUES or (casts and node.op_type == "Cast")
        ):
            name = node.input[0]
        return name

    def _values_in_one(self, name: str) -> int:
        """Return how many weights an element of a tensor holds: tables in blocks have two in a byte."""
        for user in self._readers.get(name, ()):
            if user.op_type == "GatherBlockQuantized" and self.tensors[name].data_type == TensorProto.UINT8:
                return 8 // next((int(one.i) for one in user.attribute if one.name == "bits"), 4)
        return 1


def _floats_of(node: onnx.NodeProto) -> list[float]:
    """Return the numbers in a node's attributes: coefficients, thresholds, scales."""
    tensors = [attribute.t for attribute in node.attribute if attribute.t.data_type in _FLOATS]
    values = [value for attribute in node.attribute for value in attribute.floats]
    return [*values, *(float(value) for tensor in tensors for value in numpy_helper.to_array(tensor).ravel())]


def _count_values(tensor: TensorProto, zero_point: TensorProto | None) -> tuple[int, int]:
    """Return the number of values, and of those that are not at the zero point."""
    values = np.atleast_1d(tensor_values(tensor))
    point = np.zeros(()) if zero_point is None else tensor_values(zero_point).astype(np.float64)
    if point.ndim == 1:  # one for each slice along axis 0
        point = np.reshape(point, (-1, *[1] * (values.ndim - 1))) if len(point) == values.shape[0] else 0 * point[0]
    elif point.shape != values.shape and point.size > 1:  # in blocks
        point = np.zeros(())
    points = np.broadcast_to(point, values.shape)
    rows = max(1, _PART_VALUES * len(values) // max(1, values.size))
    parts = [slice(start, start + rows) for start in range(0, len(values), rows)]
    return values.size, sum(int(np.count_nonzero(values[one].astype(np.float64) != points[one])) for one in parts)
