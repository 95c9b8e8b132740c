"""Dynamic int8 with weights in few bits: as far from float as the same weights stored alone, and smaller than in 8."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_running import run_all, signal_to_noise_db

from edgeopt.bench.outputs import write_batches
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.model import read_initializers
from edgeopt.graph.quantization.dynamic import quantize_products
from edgeopt.records.recipe import Compact, PackWeights, QuantizeDynamic, StoreWeights

ROWS, WIDTH, HIDDEN, CLASSES = 128, 96, 192, 40
MANY_ROWS, WIDE = 2048, 1536  # more scales than a tensor needs values to be stored in integers
LIMITS = {"max_opset": 20, "max_ir": 9}
IDS = np.random.default_rng(5).integers(0, ROWS, (64, 7))


@pytest.fixture
def model(tmp_path):
    return a_text_network(tmp_path)


def a_text_network(tmp_path, count=ROWS, hidden=HIDDEN):
    """A lookup, a product by MatMul, and one by Gemm with its weight transposed; rows of uneven size."""
    rng = np.random.default_rng(0)
    weights = {
        "table": rng.standard_normal((count, WIDTH)) * np.geomspace(0.02, 1, count)[:, None],
        "first": rng.standard_normal((WIDTH, hidden)) / 10,
        "second": rng.standard_normal((CLASSES, hidden)) / 14,
        "bias": rng.standard_normal(CLASSES),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["relu"]),
        helper.make_node("Gemm", ["relu", "second", "bias"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    path = tmp_path / "text.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    write_batches(tmp_path / "calibration.npz", [{"ids": IDS}])
    return path


def made(model, name, *steps):
    path = model.with_name(f"{name}.onnx")
    apply_steps((*steps, Compact()), model, path, calibration=model.with_name("calibration.npz"), **LIMITS)
    return path


def noise_db(model, path):
    ids = np.random.default_rng(6).integers(0, ROWS, (64, 7))  # the smallest rows, if there are more
    return signal_to_noise_db(run_all(model, ids)["y"], run_all(path, ids)["y"])


@pytest.mark.parametrize("bits", [3, 4, 5, 6])
def test_weights_in_few_bits_are_as_exact_as_stored_ones_and_smaller_than_int8(model, bits):
    few = QuantizeDynamic(reduce_range=True, weight_bits=bits, samples=64)
    dynamic = made(model, "dynamic", few, PackWeights())
    stored = made(model, "stored", StoreWeights(weight_bits=bits, samples=64), PackWeights())
    plain = made(model, "plain", QuantizeDynamic(reduce_range=True))
    assert noise_db(model, dynamic) > noise_db(model, stored) - 2
    saved = (8 - bits) / 8 * (ROWS * WIDTH + WIDTH * HIDDEN + HIDDEN * CLASSES)
    assert dynamic.stat().st_size < plain.stat().st_size - 0.85 * saved + 2500  # the nodes that unpack
    assert {"MatMulInteger", "DynamicQuantizeLinear"} <= {node.op_type for node in onnx.load(dynamic).graph.node}


def test_weights_may_have_bits_of_their_own_and_nodes_may_stay_float(model):
    step = QuantizeDynamic(reduce_range=True, samples=64, bits_of=(("first", 3), ("table", 4)), float_nodes=("Gemm_4",))
    stored = read_initializers(quantize_products(onnx.load(model), step, model.with_name("calibration.npz"))[0].graph)
    largest = {
        name: int(np.abs(values.astype(int)).max()) for name, values in stored.items() if values.dtype == np.int8
    }
    assert (largest["first_quantized"], largest["table_int8"]) == (4, 8)
    assert "second_quantized" not in largest


def test_without_few_bits_nothing_has_to_be_calibrated(model):
    step = QuantizeDynamic(reduce_range=False)
    stored = read_initializers(quantize_products(onnx.load(model), step)[0].graph)
    assert np.abs(stored["first_quantized"].astype(int)).max() > 100


def test_scales_are_not_rounded_with_the_weights_that_dynamic_int8_leaves(tmp_path):
    model = a_text_network(tmp_path, MANY_ROWS, WIDE)
    few = QuantizeDynamic(reduce_range=True, weight_bits=4, samples=64)
    alone = made(model, "alone", few, PackWeights())
    both = made(model, "both", few, StoreWeights(weight_bits=4, samples=64), PackWeights())
    assert noise_db(model, both) > noise_db(model, alone) - 0.5


def test_a_network_that_cannot_be_run_over_the_samples_is_rounded_to_the_nearest(model):
    write_batches(model.with_name("calibration.npz"), [{"ids": IDS + ROWS}])  # of rows that the table lacks
    step = QuantizeDynamic(reduce_range=True, weight_bits=4, samples=64)
    quantized, notes = quantize_products(onnx.load(model), step, model.with_name("calibration.npz"))
    assert "rounded to the nearest step, without the samples" in notes[0]
    assert np.abs(read_initializers(quantized.graph)["first_quantized"].astype(int)).max() == 8
