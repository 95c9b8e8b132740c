"""Graphs of other tools: dead channels, tied weights, types besides float32, bit shifts that are not ours."""

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_running import run

from edgeopt.bench.outputs import write_batches
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.facts import read_facts
from edgeopt.graph.pooling import write_global_average_pools
from edgeopt.graph.rounding.moments import find_layers
from edgeopt.graph.rounding.packing import unpack
from edgeopt.graph.rounding.static_weights import round_to_nearest
from edgeopt.records.recipe import Quantize, StoreWeights

STEP = 0.5
"""Of the outputs in uint8."""
LIMITS = {"max_opset": 20, "max_ir": 9}
PLAIN = Quantize(activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=64)


def a_model(nodes, weights, shape, kind=TensorProto.FLOAT, output_shape=None):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, ["n", *shape])],
        [helper.make_tensor_value_info("y", kind, output_shape)],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def some(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def dead_channel(tmp_path):
    """Return a convolution whose first channel has next to no weights, but a bias, and its calibration."""
    weights, bias = some(16, 16, 3, 3), some(16)
    weights[0], bias[0] = 1e-15 * weights[0], 5.0
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", pads=[1, 1, 1, 1])
    onnx.save(a_model([node], {"w": weights, "b": bias}, (16, 8, 8), output_shape=["n", 16, 8, 8]), tmp_path / "m.onnx")
    write_batches(tmp_path / "calibration.npz", [{"x": some(16, 16, 8, 8, seed=seed)} for seed in range(4)])
    return tmp_path


def quantized(folder, step):
    return apply_steps((step,), folder / "m.onnx", folder / "q.onnx", calibration=folder / "calibration.npz", **LIMITS)


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_the_bias_of_a_channel_with_tiny_weights_does_not_overflow(dead_channel, bits):
    step = msgspec.structs.replace(PLAIN, weight_bits=bits)
    found = quantized(dead_channel, step)
    x = some(4, 16, 8, 8, seed=9)
    assert run(found[-1].path, x)[:, 0] == pytest.approx(run(dead_channel / "m.onnx", x)[:, 0], abs=STEP)


def test_nor_does_it_in_a_network_trained_for_few_bits(dead_channel):
    few = onnx.load(quantized(dead_channel, PLAIN)[-1].path)
    round_to_nearest(onnx.load(dead_channel / "m.onnx"), few, 4)
    onnx.save(few, dead_channel / "few.onnx")
    x = some(4, 16, 8, 8, seed=9)
    assert run(dead_channel / "few.onnx", x)[:, 0] == pytest.approx(5.0, abs=STEP)


def a_tied_autoencoder():
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], "encoder", transB=1),
        helper.make_node("MatMul", ["h", "w"], ["y"], "decoder"),
    ]
    return a_model(nodes, {"w": some(32, 64)}, (64,), output_shape=["n", 64])


def test_a_matrix_that_one_product_transposes_is_rounded_to_the_nearest_step(tmp_path):
    assert find_layers(a_tied_autoencoder()) == []
    onnx.save(a_tied_autoencoder(), tmp_path / "m.onnx")
    write_batches(tmp_path / "calibration.npz", [{"x": some(64, 64)}])
    (result,) = apply_steps(
        (StoreWeights(weight_bits=6, samples=64),), tmp_path / "m.onnx", tmp_path / "q.onnx",
        calibration=tmp_path / "calibration.npz", **LIMITS,
    )  # fmt: skip
    x = some(8, 64, seed=9)
    error = run(result.path, x) - run(tmp_path / "m.onnx", x)
    assert np.abs(error).mean() < 0.1 * np.abs(run(tmp_path / "m.onnx", x)).mean()


def test_products_of_other_types_do_not_keep_the_others_from_being_rounded_by_samples():
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], "cast", to=TensorProto.DOUBLE),
        helper.make_node("MatMul", ["wide", "mel"], ["bands"], "front"),
        helper.make_node("Cast", ["bands"], ["narrow"], "back", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["narrow", "w"], ["y"], "product"),
    ]
    model = a_model(nodes, {"mel": some(64, 40).astype(np.float64), "w": some(40, 32)}, (64,))
    assert [layer.weight for layer in find_layers(model)] == ["w"]


def test_bit_shifts_of_another_tool_stay_as_they_are(tmp_path):
    nodes = [
        helper.make_node("BitShift", ["bytes", "four"], ["high"], "shift", direction="RIGHT"),
        helper.make_node("Cast", ["high"], ["float"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["w"], "scaled"),
        helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
    ]
    weights = {
        "bytes": np.random.default_rng(0).integers(0, 256, (64, 32)).astype(np.uint8),
        "four": np.array(4, np.uint8),
        "scale": np.abs(some(64, 1)),
    }
    model = a_model(nodes, weights, (64,), output_shape=["n", 32])
    before = model.SerializeToString()
    assert unpack(model) == {}
    assert model.SerializeToString() == before
    onnx.save(model, tmp_path / "m.onnx")
    assert read_facts(tmp_path / "m.onnx").operators["BitShift"] == 1


@pytest.mark.parametrize(
    ("kind", "expected"), [(TensorProto.FLOAT, 1), (TensorProto.FLOAT16, 1), (TensorProto.DOUBLE, 0)]
)
def test_a_mean_over_an_image_becomes_a_pooling_only_in_types_that_have_a_kernel(kind, expected):
    node = helper.make_node("ReduceMean", ["x"], ["y"], "mean", axes=[2, 3], keepdims=0)
    assert write_global_average_pools(a_model([node], {}, (4, 8, 8), kind)) == expected
