"""Fuse: quantize-dequantize pairs become the integer operators that ONNX Runtime makes of them on loading.

    x ─ DequantizeLinear ─┐
    w ─ DequantizeLinear ─┼─ Conv ─ QuantizeLinear ─ y     becomes     x, w, b ─ QLinearConv ─ y
    b ─ DequantizeLinear ─┘

The outputs are bit for bit those of the pairs under ONNX Runtime. The file loses the nodes, the scales and zero points
of the biases, and half of its time to load. Other providers want the pairs: this is for the CPU provider alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeopt.graph.model import MICROSOFT, Arrays, arrays, consumers, drop_unused_initializers, replace_nodes

MOVES = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "MaxPool")
"""Operators that move values about and so work on quantized ones, where scale and zero point stay."""


class Quantized(NamedTuple):
    """A tensor with its scale and zero point, by name."""

    values: str
    scale: str
    zero_point: str

    @property
    def names(self) -> list[str]:
        """The three names, in the order of the operators' inputs."""
        return [self.values, self.scale, self.zero_point]


class _Graph:
    """What the rules ask about a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants: Arrays = arrays(graph)
        self._dequantized = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
        self._readers = consumers(graph)
        self._outputs = {value.name for value in graph.output}

    def source(self, name: str) -> Quantized | None:
        """Return what a value is dequantized from, or None where it is not."""
        node = self._dequantized.get(name)
        return None if node is None else self._quantized(node.input[0], node)

    def target(self, node: onnx.NodeProto) -> tuple[Quantized, onnx.NodeProto] | None:
        """Return what a node's output is quantized to and by which node, where nothing else reads it."""
        readers = self._readers.get(node.output[0], [])
        if len(readers) != 1 or len(node.output) != 1 or node.output[0] in self._outputs:
            return None
        reader = readers[0][0]
        return (self._quantized(reader.output[0], reader), reader) if reader.op_type == "QuantizeLinear" else None

    def _quantized(self, values: str, node: onnx.NodeProto) -> Quantized:
        """Return a tensor by the scale and zero point of a quantize or dequantize node."""
        if len(node.input) > 2 and node.input[2]:
            return Quantized(values, node.input[1], node.input[2])
        kind = self.constants[values].dtype if values in self.constants else np.dtype(np.uint8)
        return Quantized(values, node.input[1], self._zero(kind))

    def _zero(self, kind: np.dtype) -> str:
        """Return the name of a zero of that kind, which is the default zero point."""
        name = f"zero_{kind.name}"
        if name not in self.constants:
            self.constants[name] = np.zeros((), kind)
            self.graph.initializer.append(numpy_helper.from_array(self.constants[name], name))
        return name

    def bias(self, node: onnx.NodeProto, data: Quantized, weight: Quantized) -> str | None:
        """Return the bias in integers: empty where there is none, None where it is not in the products' scale."""
        if len(node.input) < 3 or not node.input[2]:
            return ""
        bias = self.source(node.input[2])
        parts = [] if bias is None else [self.constants.get(one.scale) for one in (bias, data, weight)]
        if bias is None or any(part is None for part in parts) or bias.values not in self.constants:
            return None
        found, of_data, of_weight = (np.asarray(part) for part in parts)
        same = np.array_equal(np.broadcast_to(of_data * of_weight, found.shape), found)
        return bias.values if same and self.constants[bias.values].dtype == np.int32 else None


def fuse_qlinear(model: onnx.ModelProto) -> int:
    """Fuse what can be, in place; return how many nodes became integer operators. The rest keeps its pairs."""
    graph = _Graph(model.graph)
    made: dict[str, onnx.NodeProto] = {}
    replaced: set[str] = set()
    for node in model.graph.node:
        rule = _RULES.get(node.op_type)
        fused = rule(node, graph) if rule is not None else None
        if fused is not None:
            made[node.output[0]] = fused
            replaced |= set(fused.output)
    nodes = []
    for node in model.graph.node:
        if node.output[0] in made:
            nodes.append(made[node.output[0]])
        elif not (node.op_type == "QuantizeLinear" and node.output[0] in replaced):
            nodes.append(node)
    used = {name for node in nodes for name in node.input} | {value.name for value in model.graph.output}
    nodes = [node for node in nodes if node.op_type != "DequantizeLinear" or node.output[0] in used]
    replace_nodes(model.graph, nodes)
    drop_unused_initializers(model.graph)
    if made and all(entry.domain != MICROSOFT for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return len(made)


def _convolution(node: onnx.NodeProto, graph: _Graph) -> onnx.NodeProto | None:
    data, weight, target = graph.source(node.input[0]), graph.source(node.input[1]), graph.target(node)
    if data is None or weight is None or target is None or weight.values not in graph.constants:
        return None
    bias = graph.bias(node, data, weight)
    if bias is None:
        return None
    result = target[0]
    inputs = [*data.names, *weight.names, result.scale, result.zero_point, *([bias] if bias else [])]
    return _node("QLinearConv", inputs, result.values, node, domain="")


def _sum(node: onnx.NodeProto, graph: _Graph) -> onnx.NodeProto | None:
    first, second, target = graph.source(node.input[0]), graph.source(node.input[1]), graph.target(node)
    if first is None or second is None or target is None:
        return None
    result = target[0]
    inputs = [*first.names, *second.names, result.scale, result.zero_point]
    return _node(f"QLinear{node.op_type}", inputs, result.values, node)


def _pool(node: onnx.NodeProto, graph: _Graph) -> onnx.NodeProto | None:
    data, target = graph.source(node.input[0]), graph.target(node)
    if data is None or target is None:
        return None
    result = target[0]
    inputs = [*data.names, result.scale, result.zero_point]
    return _node("QLinearGlobalAveragePool", inputs, result.values, node)


def _table(node: onnx.NodeProto, graph: _Graph) -> onnx.NodeProto | None:
    """Write a function of one value as a look-up of 256 results."""
    data, target = graph.source(node.input[0]), graph.target(node)
    if data is None or target is None:
        return None
    result = target[0]
    return _node(f"QLinear{node.op_type}", [*data.names, result.scale, result.zero_point], result.values, node)


def _rescale(node: onnx.NodeProto, graph: _Graph) -> onnx.NodeProto | None:
    """Write a quantized tensor with another scale as a look-up too: a leaky ReLU of slope 1 is the identity."""
    data = graph.source(node.input[0])
    if data is None or len(node.input) < 3:
        return None
    fused = _node("QLinearLeakyRelu", [*data.names, *node.input[1:3]], node.output[0], node)
    fused.attribute.append(helper.make_attribute("alpha", 1.0))
    return fused


def _product(node: onnx.NodeProto, graph: _Graph) -> onnx.NodeProto | None:
    data, weight = graph.source(node.input[0]), graph.source(node.input[1])
    beta = next((one.f for one in node.attribute if one.name == "beta"), 1.0)
    if data is None or weight is None or weight.values not in graph.constants or beta != 1.0:
        return None
    bias = graph.bias(node, data, weight)
    if bias is None:
        return None
    shared = (graph.constants[name].shape for name in (weight.scale, weight.zero_point))
    if len(set(shared)) > 1:  # ONNX Runtime 1.17 wants them alike
        return None
    target = graph.target(node)
    inputs = [*data.names, *weight.names, bias]
    if target is None:
        return _node("QGemm", inputs if bias else inputs[:-1], node.output[0], node)
    result = target[0]
    return _node("QGemm", [*inputs, result.scale, result.zero_point], result.values, node)


def _move(node: onnx.NodeProto, graph: _Graph) -> onnx.NodeProto | None:
    data, target = graph.source(node.input[0]), graph.target(node)
    if data is None or target is None or data[1:] != target[0][1:]:
        return None
    return _node(node.op_type, [data.values, *node.input[1:]], target[0].values, node, domain="")


def _node(
    kind: str, inputs: list[str], output: str, like: onnx.NodeProto, *, domain: str = MICROSOFT
) -> onnx.NodeProto:
    """Return a node with the attributes and the name of ``like``."""
    node = helper.make_node(kind, inputs, [output], name=like.name, domain=domain)
    node.attribute.extend(attribute for attribute in like.attribute if attribute.name != "beta")
    return node


_RULES: dict[str, Callable[[onnx.NodeProto, _Graph], onnx.NodeProto | None]] = {
    "Conv": _convolution,
    "Add": _sum,
    "Mul": _sum,
    "GlobalAveragePool": _pool,
    "Sigmoid": _table,
    "LeakyRelu": _table,
    "QuantizeLinear": _rescale,
    "Gemm": _product,
    **dict.fromkeys(MOVES, _move),
}
