"""Dynamic int8 of products whose weight is several matrices, as experts and grouped layers have."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.graph.quantization.dynamic import quantize_products
from edgeopt.records.recipe import QuantizeDynamic

EXPERTS, DEPTH, COLUMNS = 4, 64, 48


def stacked_model():
    """Return ``y[e] = x @ w[e]`` for each expert, whose weights differ in size by a hundred times."""
    weights = np.random.RandomState(0).randn(EXPERTS, DEPTH, COLUMNS).astype(np.float32)
    weights *= np.logspace(-2, 0, EXPERTS, dtype=np.float32)[:, None, None]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "experts")], "stacked",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", EXPERTS, 3, DEPTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", EXPERTS, 3, COLUMNS])],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("reduce_range", [False, True])
def test_each_matrix_of_a_stacked_weight_has_scales_of_its_own(reduce_range):
    x = np.random.RandomState(1).randn(5, EXPERTS, 3, DEPTH).astype(np.float32)
    expected = run(stacked_model(), x)
    quantized = quantize_products(stacked_model(), QuantizeDynamic(reduce_range=reduce_range))[0]
    assert "MatMulInteger" in [node.op_type for node in quantized.graph.node]
    found = run(quantized, x)
    for expert in range(EXPERTS):
        error = np.square(found[:, expert] - expected[:, expert]).mean() / np.square(expected[:, expert]).mean()
        assert -10 * np.log10(error) > (
            30 if reduce_range else 20
        )  # without it, eight bits saturate on some processors
