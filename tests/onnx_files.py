"""Small given files for tests of their data."""

import numpy as np
import onnx
from onnx import TensorProto, helper

KINDS = {
    "float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8, "int16": TensorProto.INT16,
    "bool": TensorProto.BOOL,
}  # fmt: skip


def value(name, shape, kind="float32"):
    return helper.make_tensor_value_info(name, KINDS[kind], shape)


def save(path, nodes, inputs, outputs, weights=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def mean_model(path, shape, kind="float32", name="x"):
    """Save a model that takes the mean of each sample."""
    axes = list(range(1, len(shape)))
    cast = helper.make_node("Cast", [name], ["f"], to=TensorProto.FLOAT)
    mean = helper.make_node("ReduceMean", ["f"], ["y"], axes=axes, keepdims=0)
    return save(path, [cast, mean], [value(name, shape, kind)], [value("y", shape[:1])])


def accumulator(path):
    """Save a model whose state ``[1, n, 2]`` adds up its inputs ``[n, 2]``, and whose output is the state."""
    axis = onnx.numpy_helper.from_array(np.array([0]), "axis")
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axis"], ["u"]),
        helper.make_node("Add", ["u", "s"], ["next"]),
        helper.make_node("Squeeze", ["next", "axis"], ["y"]),
    ]
    inputs = [value("x", ["n", 2]), value("s", [1, "n", 2])]
    return save(path, nodes, inputs, [value("y", ["n", 2]), value("next", [1, "n", 2])], [axis])
