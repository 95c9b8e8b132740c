"""Writes global average pooling as ``GlobalAveragePool``.

The dynamo exporter writes ``AdaptiveAvgPool2d(1)`` and ``x.mean((2, 3))`` as ``ReduceMean`` over the two spatial axes.
ONNX Runtime computes that in float and in another layout; ``GlobalAveragePool`` keeps the convolutions' layout and
has an int8 kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

from edgeopt.graph.model import Arrays, drop_unused_initializers, read_initializers, replace_nodes
from edgeopt.model_files.inferred_shapes import infer_shapes

_IMAGE_RANK = 4
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def write_global_average_pools(model: onnx.ModelProto) -> int:
    """Replace every ``ReduceMean`` over axes 2 and 3 of an image tensor, in place; return their number."""
    graph = model.graph
    if all(node.op_type != "ReduceMean" for node in graph.node):
        return 0
    ranks = _ranks(model)
    constants = read_initializers(graph)
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in graph.node:
        is_image = node.op_type == "ReduceMean" and ranks.get(node.input[0]) == _IMAGE_RANK
        if not is_image or sorted(axis % _IMAGE_RANK for axis in _axes(node, constants)) != [2, 3]:
            nodes.append(node)
            continue
        count += 1
        keeps = all(one.i == 1 for one in node.attribute if one.name == "keepdims")
        pooled = node.output[0] if keeps else f"{node.output[0]}_pooled"
        nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name))
        if not keeps:
            nodes.append(helper.make_node("Flatten", [pooled], [node.output[0]], axis=1))
    if count:
        replace_nodes(graph, nodes)
        drop_unused_initializers(graph)
    return count


def _axes(node: onnx.NodeProto, constants: Arrays) -> Sequence[int]:
    """Return the constant axes of a reduction: an input since operator set 18; none if unknown, or all are reduced."""
    if len(node.input) > 1 and node.input[1] in constants:
        return [int(axis) for axis in constants[node.input[1]].ravel()]
    return next((one.ints for one in node.attribute if one.name == "axes"), ())


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Return the rank of each float value whose shape can be inferred; only those have a kernel for pooling."""
    try:
        graph = infer_shapes(model)
    except onnx.shape_inference.InferenceError:  # a declared shape contradicts the graph
        return {}
    values = (*graph.input, *graph.value_info, *graph.output)
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape") and value.type.tensor_type.elem_type in _FLOATS
    }
