"""Shape inference without large tensors: onnx's own copies a model several times, with all weights.

Only shapes are read from large tensors, so they take part as inputs.
"""

from __future__ import annotations

import onnx
from onnx import helper

_MAX_KEPT_VALUES = 1024
"""A tensor with as many values may hold sizes or axes."""


def infer_shapes(model: onnx.ModelProto, *, data_prop: bool = False) -> onnx.GraphProto:
    """Return a model's graph with all shapes that ONNX can tell; its large tensors are inputs.

    Args:
        model: Any model.
        data_prop: Whether to follow sizes that the graph computes.

    Raises:
        onnx.shape_inference.InferenceError: the graph contradicts itself.
    """
    graph = model.graph
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(light.graph, field).extend(getattr(graph, field))
    inputs = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if _count_values(tensor) <= _MAX_KEPT_VALUES:
            light.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    inferred: onnx.GraphProto = onnx.shape_inference.infer_shapes(light, data_prop=data_prop).graph
    return inferred


def write_inferred_shapes(model: onnx.ModelProto, *, data_prop: bool = False) -> None:
    """Write the shapes of inner values and of outputs into a model, in place; see ``infer_shapes``."""
    inferred = infer_shapes(model, data_prop=data_prop)
    for field in ("value_info", "output"):
        shapes = getattr(model.graph, field)
        del shapes[:]
        shapes.extend(getattr(inferred, field))


def _count_values(tensor: onnx.TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count
