"""Weights that several branches or loop bodies hold are stored once, in the top graph."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeopt.graph.compact import compact

WEIGHTS = np.arange(4096, dtype=np.float32).reshape(64, 64) / 4096


def a_branch(name, operator, weights, output=None):
    """A product with weights of its own, then an operator; both branches may use the same names."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node(operator, ["product"], [output or f"{name}_out"]),
    ]
    outputs = [helper.make_tensor_value_info(output or f"{name}_out", TensorProto.FLOAT, [2, 64])]
    return helper.make_graph(nodes, name, [], outputs, [numpy_helper.from_array(weights, "w")])


def a_model(then_weights, else_weights, top_weights=None):
    branches = {
        "then_branch": a_branch("yes", "Relu", then_weights),
        "else_branch": a_branch("no", "Neg", else_weights),
    }
    nodes = [helper.make_node("If", ["is_on"], ["chosen"], **branches)]
    stored = []
    if top_weights is None:
        nodes.append(helper.make_node("Identity", ["chosen"], ["y"]))
    else:
        stored = [numpy_helper.from_array(top_weights, "top")]
        nodes.append(helper.make_node("MatMul", ["chosen", "top"], ["y"]))
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 64]),
        helper.make_tensor_value_info("is_on", TensorProto.BOOL, []),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 64])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def with_typed_values(model):
    """Write the weights of branches in fields of their type, as some exporters do, instead of raw bytes."""
    for attribute in model.graph.node[0].attribute:
        (tensor,) = attribute.g.initializer
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.FLOAT, values.shape, values.ravel().tolist()))
    return model


@pytest.mark.parametrize(
    ("model", "copies"),
    [
        (a_model(WEIGHTS, WEIGHTS), 1),
        (a_model(WEIGHTS, WEIGHTS + 1), 2),  # by one name in both branches
        (a_model(WEIGHTS, WEIGHTS, WEIGHTS), 1),
        (a_model(WEIGHTS, WEIGHTS + 1, WEIGHTS), 2),
        (a_model(WEIGHTS, WEIGHTS.T.copy()), 2),
        (with_typed_values(a_model(WEIGHTS, WEIGHTS + 1)), 2),
        (with_typed_values(a_model(WEIGHTS, WEIGHTS)), 1),
    ],
)
def test_equal_weights_of_branches_are_stored_once(model, copies):
    before = onnx.ModelProto.FromString(model.SerializeToString())
    x = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)
    feeds = [{"x": x, "is_on": np.array(is_on)} for is_on in (True, False)]
    compact(model)
    onnx.checker.check_model(model, full_check=True)
    assert copies * WEIGHTS.nbytes <= model.ByteSize() < (copies + 0.1) * WEIGHTS.nbytes
    for feed in feeds:
        found, expected = (ReferenceEvaluator(one).run(None, feed)[0] for one in (model, before))
        np.testing.assert_array_equal(found, expected)
    again = model.SerializeToString()
    compact(model)
    assert model.SerializeToString() == again
