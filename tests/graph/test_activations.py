"""Inner values are read in small batches, whichever dimension of an input is its batch."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeopt.graph.quantization import activations
from edgeopt.graph.quantization.activations import read_activations

FLOAT = TensorProto.FLOAT


def test_states_are_split_along_their_batch_and_shared_inputs_stay_whole():
    nodes = [
        helper.make_node("ReduceSum", ["s", "first"], ["r"], keepdims=0),
        helper.make_node("Mul", ["x", "scale"], ["m"]),
        helper.make_node("MatMul", ["m", "shared"], ["p"]),
        helper.make_node("Add", ["p", "r"], ["y"]),
    ]
    shapes = {"scale": [], "x": ["n", 3], "s": [2, "n", 3], "shared": [3, 3]}
    first = helper.make_tensor("first", TensorProto.INT64, [1], [0])
    inputs = [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in shapes.items()]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", FLOAT, ["n", 3])], [first])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rng = np.random.default_rng(0)
    sizes = {"scale": (), "x": (20, 3), "s": (2, 20, 3), "shared": (3, 3)}
    batch = {name: np.asarray(rng.standard_normal(size), np.float32) for name, size in sizes.items()}
    found = list(read_activations(model, ["p", "y", "x"], [batch]))
    expected = batch["x"] * batch["scale"] @ batch["shared"]
    assert [len(values["x"]) for values in found] == [1, 16, 3]
    np.testing.assert_allclose(np.concatenate([values["p"] for values in found]), expected, atol=1e-5)
    np.testing.assert_allclose(
        np.concatenate([values["y"] for values in found]), expected + batch["s"].sum(0), atol=1e-5
    )


@pytest.mark.parametrize(("limit", "sizes"), [(1e9, [1, 7]), (3 * 4000, [1, 3, 3, 1]), (1, [1] * 8)])
def test_large_values_are_read_few_samples_at_a_time(monkeypatch, limit, sizes):
    monkeypatch.setattr(activations, "_MAX_RUN_BYTES", limit)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 1000])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 1000])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = list(read_activations(model, ["y"], [{"x": np.ones((8, 1000), np.float32)}]))
    assert [len(values["y"]) for values in found] == sizes
