"""Float16: weights and activations in half precision. Runs in a subprocess (``edgeopt.graph.jobs``)."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16, convert_np_to_float16

from edgeopt.errors import StepError
from edgeopt.graph.model import lift_constants, name_nodes, read_initializers, sort_nodes, walk_graphs
from edgeopt.graph.small_constants import find_small_constant_nodes
from edgeopt.model_files.tensors import inputs_as_weights, weights_as_inputs

_LARGEST = 65504.0


def convert_to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in float16. Inputs, outputs and nodes around constants too small for it stay float32.

    Raises:
        StepError: a weight is outside float16's range, and would be clamped.
    """
    lift_constants(model.graph)
    stored = [item for graph in walk_graphs(model.graph) for item in read_initializers(graph).items()]
    for name, values in stored:
        largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0)) if values.dtype == np.float32 else 0.0
        if largest > _LARGEST:
            raise StepError(
                "float16", f"'{name}' holds {largest:g}, which is beyond the largest number of float16, {_LARGEST:g}."
            )
    name_nodes(model.graph)
    kept = find_small_constant_nodes(model.graph)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one per clamped value
        converted = _convert(model, kept)
    _join_float32(converted.graph, set(kept))
    sort_nodes(converted.graph)  # the new casts come last
    return converted


def _convert(model: onnx.ModelProto, kept: list[str]) -> onnx.ModelProto:
    """Convert with ONNX Runtime's tool; the large tensors of a pair, which it cannot read, are converted after it."""
    graph = weights_as_inputs(model)
    ends: bool | list[str] = True
    if graph is not model:
        ends = [value.name for value in (*model.graph.input, *model.graph.output)]
    converted: onnx.ModelProto = convert_float_to_float16(graph, keep_io_types=ends, node_block_list=kept)
    return converted if graph is model else inputs_as_weights(converted, model, convert_np_to_float16)


def _join_float32(graph: onnx.GraphProto, kept: set[str]) -> None:
    """Let nodes that stay float32 read one another's values directly; the converter rounds them to float16 between."""
    producers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.name not in kept:
            continue
        for index, name in enumerate(node.input):
            widened = producers.get(name)
            rounded = producers.get(widened.input[0]) if widened is not None and widened.op_type == "Cast" else None
            source = producers.get(rounded.input[0]) if rounded is not None and rounded.op_type == "Cast" else None
            if rounded is not None and source is not None and source.name in kept:
                node.input[index] = rounded.input[0]
    visible = {value.name for value in graph.output}
    read = {name for node in graph.node for name in node.input}
    while unused := [node for node in graph.node if node.op_type == "Cast" and not (read | visible) & set(node.output)]:
        for node in unused:
            graph.node.remove(node)
        read = {name for node in graph.node for name in node.input}
