"""Makes a graph in 16 bits compute in float32, as quantization needs it; inputs and outputs keep their types."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeopt.graph.model import walk_graphs
from edgeopt.model_files.tensors import tensor_values

_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_TYPE_ATTRIBUTES = ("to", "dtype")


def has_half_borders(graph: onnx.GraphProto) -> bool:
    """Tell whether a graph takes or returns values in 16 bits."""
    return any(value.type.tensor_type.elem_type in _HALVES for value in (*graph.input, *graph.output))


def widen_halves(model: onnx.ModelProto) -> bool:
    """Make a model with weights in 16 bits compute in float32, in place; return whether anything had to be changed."""
    changed = False
    for graph in walk_graphs(model.graph):
        tensors = [*graph.initializer]
        for node in graph.node:
            for attribute in node.attribute:
                tensors += [attribute.t] if attribute.HasField("t") else []
                if attribute.name in _TYPE_ATTRIBUTES and attribute.i in _HALVES:
                    attribute.i = TensorProto.FLOAT
                    changed = True
        for tensor in tensors:
            if tensor.data_type in _HALVES:
                values = tensor_values(tensor).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
                changed = True
        del graph.value_info[:]
        if graph is not model.graph:  # of branches and loop bodies: they are inner values
            for value in (*graph.input, *graph.output):
                if value.type.tensor_type.elem_type in _HALVES:
                    value.type.tensor_type.elem_type = TensorProto.FLOAT
    return _cast_borders(model.graph) or changed


def _cast_borders(graph: onnx.GraphProto) -> bool:
    """Add casts behind inputs and in front of outputs in 16 bits; return whether there are any."""
    inputs = [value for value in graph.input if value.type.tensor_type.elem_type in _HALVES]
    outputs = [value for value in graph.output if value.type.tensor_type.elem_type in _HALVES]
    wide = {value.name: f"{value.name}/float32" for value in (*inputs, *outputs)}
    for inner in walk_graphs(graph):
        for node in inner.node:
            node.input[:] = [wide.get(name, name) for name in node.input]
            if inner is graph:
                node.output[:] = [wide.get(name, name) for name in node.output]
    for value in inputs:
        graph.node.insert(0, helper.make_node("Cast", [value.name], [wide[value.name]], to=TensorProto.FLOAT))
    for value in outputs:
        kind = value.type.tensor_type.elem_type
        graph.node.append(helper.make_node("Cast", [wide[value.name]], [value.name], to=kind))
    return bool(inputs or outputs)
