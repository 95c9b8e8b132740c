"""Makes a fixed batch dynamic: in the inputs and outputs of a graph, and in the sizes that it reshapes to.

Whether the graph then computes the same for each sample is for the caller to find out, by running it.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeopt.graph.given.files import GivenModel, with_model
from edgeopt.graph.model import read_batch_axes, unused_name, used_names, walk_graphs
from edgeopt.model_files.tensors import copy_model_proto, tensor_values

_BATCH = "batch"


def with_dynamic_batch(given: GivenModel, wanted: int | None) -> GivenModel:
    """Return a model that takes batches of any size; the same model if it does, or if its fixed size is the wanted one.

    Args:
        given: The model; it is not changed.
        wanted: The batch size to run with; None for whatever the model takes.
    """
    axes = read_batch_axes(given.model.graph)
    dims = {value.name: value.type.tensor_type.shape.dim for value in given.model.graph.input}
    sizes = {dims[name][axis].dim_value for name, axis in axes.items() if axis is not None and axis < len(dims[name])}
    if wanted is None or len(sizes) != 1 or not (sizes - {0, wanted}):
        return given
    (size,) = sizes
    model = copy_model_proto(given.model)
    for value in model.graph.input:
        axis = axes.get(value.name)
        if axis is not None:
            value.type.tensor_type.shape.dim[axis].dim_param = _BATCH
    for value in model.graph.output:
        first = value.type.tensor_type.shape.dim[:1]
        if first and first[0].dim_value == size:
            first[0].dim_param = _BATCH
    _open_reshapes(model.graph, size)
    return with_model(given, model)._replace(opened_batch=size)


def _open_reshapes(graph: onnx.GraphProto, size: int) -> None:
    """Let each ``Reshape`` to a stored shape that begins with the batch take its first size from its input."""
    taken = used_names(graph)
    for inner in walk_graphs(graph):
        del inner.value_info[:]
        stored = {tensor.name: tensor for tensor in inner.initializer}
        stored |= {
            node.output[0]: attribute.t
            for node in inner.node
            for attribute in node.attribute
            if node.op_type == "Constant" and attribute.HasField("t")
        }
        for node in inner.node:
            keeps_zero = any(attribute.name == "allowzero" and attribute.i for attribute in node.attribute)
            if node.op_type != "Reshape" or len(node.input) < 2 or node.input[1] not in stored or keeps_zero:
                continue
            shape = tensor_values(stored[node.input[1]])
            if shape.ndim == 1 and len(shape) and shape[0] == size:
                name = unused_name(f"{node.input[1]}_any_batch", taken)
                inner.initializer.append(numpy_helper.from_array(_with_any_batch(shape), name))
                node.input[1] = name


def _with_any_batch(shape: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a shape whose first size follows from the others, or is the one before if another one follows already."""
    first = 0 if (shape[1:] == -1).any() else -1
    return np.array([first, *shape[1:]], helper.tensor_dtype_to_np_dtype(TensorProto.INT64))
