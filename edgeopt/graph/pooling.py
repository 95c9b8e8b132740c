"""Writes global average pooling as ``GlobalAveragePool``.

The dynamo exporter writes ``AdaptiveAvgPool2d(1)`` and ``x.mean((2, 3))`` as ``ReduceMean`` over the two spatial axes.
ONNX Runtime computes that in float and in another layout; ``GlobalAveragePool`` keeps the convolutions' layout and
has an int8 kernel.
"""

from __future__ import annotations

import onnx
from onnx import helper

from edgeopt.graph.model import drop_unused_initializers, read_initializers, replace_nodes

_IMAGE_RANK = 4


def write_global_average_pools(model: onnx.ModelProto) -> int:
    """Replace every ``ReduceMean`` over axes 2 and 3 of an image tensor, in place; return their number."""
    graph = model.graph
    ranks = _ranks(model)
    constants = read_initializers(graph)
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in graph.node:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        axes = attributes.get("axes")
        if len(node.input) > 1 and node.input[1] in constants:
            axes = constants[node.input[1]].ravel().tolist()
        is_spatial = axes is not None and sorted(axis % _IMAGE_RANK for axis in axes) == [2, 3]
        if node.op_type != "ReduceMean" or not is_spatial or ranks.get(node.input[0]) != _IMAGE_RANK:
            nodes.append(node)
            continue
        count += 1
        keeps = attributes.get("keepdims", 1) == 1
        pooled = node.output[0] if keeps else f"{node.output[0]}_pooled"
        nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name))
        if not keeps:
            nodes.append(helper.make_node("Flatten", [pooled], [node.output[0]], axis=1))
    if count:
        replace_nodes(graph, nodes)
        drop_unused_initializers(graph)
    return count


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Return the rank of each value whose shape can be inferred."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }
