"""Shape inference without large tensors says what onnx's own says, and leaves their values alone."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.model_files.inferred_shapes import infer_shapes, write_inferred_shapes


def a_model():
    """Return a product with a large matrix, reshaped to sizes from a small tensor."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
        helper.make_node("Reshape", ["h", "sizes"], ["r"], "reshape"),
        helper.make_node("Relu", ["r"], ["y"], "relu"),
    ]
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((64, 96)).astype(np.float32), "w"),
        numpy_helper.from_array(np.array([-1, 8, 12], np.int64), "sizes"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def shapes_of(values):
    return {value.name: str(value.type) for value in values}


@pytest.mark.parametrize("data_prop", [False, True])
def test_shapes_are_those_of_onnx(data_prop):
    model = a_model()
    expected = onnx.shape_inference.infer_shapes(model, data_prop=data_prop).graph
    found = infer_shapes(model, data_prop=data_prop)
    assert shapes_of(found.value_info) == shapes_of(expected.value_info)
    assert shapes_of(found.output) == shapes_of(expected.output)
    assert [tensor.name for tensor in found.initializer] == ["sizes"]


def test_written_shapes_leave_all_else_as_it_was():
    model, before = a_model(), a_model()
    write_inferred_shapes(model)
    assert list(model.graph.value_info)
    assert [dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim][1:] == [8, 12]
    for field in ("node", "input", "initializer"):
        assert list(getattr(model.graph, field)) == list(getattr(before.graph, field))
