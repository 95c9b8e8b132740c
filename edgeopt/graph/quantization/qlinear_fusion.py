"""Fuse: replaces quantize-dequantize pairs with the integer operators that ONNX Runtime makes of them on loading.

    x ─ DequantizeLinear ─┐
    w ─ DequantizeLinear ─┼─ Conv ─ QuantizeLinear ─ y     becomes     x, w, b ─ QLinearConv ─ y
    b ─ DequantizeLinear ─┘

The outputs are bit for bit those of the pairs under ONNX Runtime. The file has fewer nodes, no scales and zero points
of biases, and loads in half the time. This is for the CPU provider only: other providers need the pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeopt.graph.model import (
    MICROSOFT_DOMAIN,
    Arrays,
    drop_unused_initializers,
    find_consumers,
    read_initializers,
    read_names,
    replace_nodes,
)

_SCALE_KEEPING_OPERATORS = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "MaxPool")
"""Operators that only move values, and so also work on quantized ones if scale and zero point stay the same."""


class QuantizedTensor(NamedTuple):
    """A tensor with its scale and zero point, by name."""

    values: str
    scale: str
    zero_point: str

    @property
    def names(self) -> list[str]:
        """The three names, in the order of the operators' inputs."""
        return [self.values, self.scale, self.zero_point]


class _Graph:
    """A graph with the look-ups that the rules need."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants: Arrays = read_initializers(graph)
        self._dequantized = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
        self._readers = find_consumers(graph)
        self._outputs = {value.name for value in graph.output}

    def find_source(self, name: str) -> QuantizedTensor | None:
        """Return the tensor that a value is dequantized from; None if it is not dequantized."""
        node = self._dequantized.get(name)
        return None if node is None else self._read_quantized(node.input[0], node)

    def find_target(self, node: onnx.NodeProto) -> tuple[QuantizedTensor, onnx.NodeProto] | None:
        """Return the quantized form of a node's output and its quantize node; None if other nodes read the output."""
        readers = self._readers.get(node.output[0], [])
        if len(readers) != 1 or len(node.output) != 1 or node.output[0] in self._outputs:
            return None
        reader = readers[0][0]
        return (self._read_quantized(reader.output[0], reader), reader) if reader.op_type == "QuantizeLinear" else None

    def _read_quantized(self, values: str, node: onnx.NodeProto) -> QuantizedTensor:
        """Return a tensor with the scale and zero point of a quantize or dequantize node."""
        if len(node.input) > 2 and node.input[2]:
            return QuantizedTensor(values, node.input[1], node.input[2])
        dtype = self.constants[values].dtype if values in self.constants else np.dtype(np.uint8)
        return QuantizedTensor(values, node.input[1], self._store_zero(dtype))

    def _store_zero(self, dtype: np.dtype) -> str:
        """Return the name of a stored zero of this type, which is the default zero point."""
        name = f"zero_{dtype.name}"
        if name not in self.constants:
            self.constants[name] = np.zeros((), dtype)
            self.graph.initializer.append(numpy_helper.from_array(self.constants[name], name))
        return name

    def find_bias(self, node: onnx.NodeProto, data: QuantizedTensor, weight: QuantizedTensor) -> str | None:
        """Return the name of the int32 bias: empty if there is none, None if its scale is not that of the products."""
        if len(node.input) < 3 or not node.input[2]:
            return ""
        bias = self.find_source(node.input[2])
        scales = [] if bias is None else [self.constants.get(tensor.scale) for tensor in (bias, data, weight)]
        if bias is None or any(scale is None for scale in scales) or bias.values not in self.constants:
            return None
        bias_scale, data_scale, weight_scale = (np.asarray(scale) for scale in scales)
        fits = np.array_equal(np.broadcast_to(data_scale * weight_scale, bias_scale.shape), bias_scale)
        return bias.values if fits and self.constants[bias.values].dtype == np.int32 else None


def fuse_qlinear(model: onnx.ModelProto) -> int:
    """Fuse the nodes that can be fused, in place; return their number. The others keep their pairs."""
    graph = _Graph(model.graph)
    fused_nodes: dict[str, onnx.NodeProto] = {}
    replaced: set[str] = set()
    for node in model.graph.node:
        rule = _RULES.get(node.op_type)
        fused = rule(node, graph) if rule is not None else None
        if fused is not None:
            fused_nodes[node.output[0]] = fused
            replaced |= set(fused.output)
    nodes = []
    for node in model.graph.node:
        if node.output[0] in fused_nodes:
            nodes.append(fused_nodes[node.output[0]])
        elif not (node.op_type == "QuantizeLinear" and node.output[0] in replaced):
            nodes.append(node)
    used = {name for node in nodes for name in read_names(node)} | {value.name for value in model.graph.output}
    nodes = [node for node in nodes if node.op_type != "DequantizeLinear" or node.output[0] in used]
    replace_nodes(model.graph, nodes)
    drop_unused_initializers(model.graph)
    if fused_nodes and all(entry.domain != MICROSOFT_DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT_DOMAIN, 1))
    return len(fused_nodes)


def _fuse_convolution(node: onnx.NodeProto, graph: _Graph) -> onnx.NodeProto | None:
    data, weight, target = graph.find_source(node.input[0]), graph.find_source(node.input[1]), graph.find_target(node)
    if data is None or weight is None or target is None or weight.values not in graph.constants:
        return None
    bias = graph.find_bias(node, data, weight)
    if bias is None:
        return None
    result = target[0]
    inputs = [*data.names, *weight.names, result.scale, result.zero_point, *([bias] if bias else [])]
    return _make_node("QLinearConv", inputs, result.values, node, domain="")


def _fuse_sum(node: onnx.NodeProto, graph: _Graph) -> onnx.NodeProto | None:
    first, second, target = graph.find_source(node.input[0]), graph.find_source(node.input[1]), graph.find_target(node)
    if first is None or second is None or target is None:
        return None
    result = target[0]
    inputs = [*first.names, *second.names, result.scale, result.zero_point]
    return _make_node(f"QLinear{node.op_type}", inputs, result.values, node)


def _fuse_pool(node: onnx.NodeProto, graph: _Graph) -> onnx.NodeProto | None:
    data, target = graph.find_source(node.input[0]), graph.find_target(node)
    if data is None or target is None:
        return None
    result = target[0]
    inputs = [*data.names, result.scale, result.zero_point]
    return _make_node("QLinearGlobalAveragePool", inputs, result.values, node)


def _fuse_look_up(node: onnx.NodeProto, graph: _Graph) -> onnx.NodeProto | None:
    """Write a function of one value as a look-up of 256 results."""
    data, target = graph.find_source(node.input[0]), graph.find_target(node)
    if data is None or target is None:
        return None
    result = target[0]
    return _make_node(f"QLinear{node.op_type}", [*data.names, result.scale, result.zero_point], result.values, node)


def _fuse_rescaling(node: onnx.NodeProto, graph: _Graph) -> onnx.NodeProto | None:
    """Write a change of scale as a look-up too: a leaky ReLU of slope 1 is the identity."""
    data = graph.find_source(node.input[0])
    if data is None or len(node.input) < 3:
        return None
    fused = _make_node("QLinearLeakyRelu", [*data.names, *node.input[1:3]], node.output[0], node)
    fused.attribute.append(helper.make_attribute("alpha", 1.0))
    return fused


def _fuse_product(node: onnx.NodeProto, graph: _Graph) -> onnx.NodeProto | None:
    data, weight = graph.find_source(node.input[0]), graph.find_source(node.input[1])
    beta = next((attribute.f for attribute in node.attribute if attribute.name == "beta"), 1.0)
    if data is None or weight is None or weight.values not in graph.constants or beta != 1.0:
        return None
    bias = graph.find_bias(node, data, weight)
    if bias is None:
        return None
    shapes = (graph.constants[name].shape for name in (weight.scale, weight.zero_point))
    if len(set(shapes)) > 1:  # ONNX Runtime 1.17 needs them equal
        return None
    target = graph.find_target(node)
    inputs = [*data.names, *weight.names, bias]
    if target is None:
        return _make_node("QGemm", inputs if bias else inputs[:-1], node.output[0], node)
    result = target[0]
    return _make_node("QGemm", [*inputs, result.scale, result.zero_point], result.values, node)


def _fuse_movement(node: onnx.NodeProto, graph: _Graph) -> onnx.NodeProto | None:
    data, target = graph.find_source(node.input[0]), graph.find_target(node)
    if data is None or target is None or data[1:] != target[0][1:]:
        return None
    return _make_node(node.op_type, [data.values, *node.input[1:]], target[0].values, node, domain="")


def _make_node(
    op_type: str, inputs: list[str], output: str, like: onnx.NodeProto, *, domain: str = MICROSOFT_DOMAIN
) -> onnx.NodeProto:
    """Return a node with the attributes and the name of ``like``."""
    node = helper.make_node(op_type, inputs, [output], name=like.name, domain=domain)
    node.attribute.extend(attribute for attribute in like.attribute if attribute.name != "beta")
    return node


_RULES: dict[str, Callable[[onnx.NodeProto, _Graph], onnx.NodeProto | None]] = {
    "Conv": _fuse_convolution,
    "Add": _fuse_sum,
    "Mul": _fuse_sum,
    "GlobalAveragePool": _fuse_pool,
    "Sigmoid": _fuse_look_up,
    "LeakyRelu": _fuse_look_up,
    "QuantizeLinear": _fuse_rescaling,
    "Gemm": _fuse_product,
    **dict.fromkeys(_SCALE_KEEPING_OPERATORS, _fuse_movement),
}
