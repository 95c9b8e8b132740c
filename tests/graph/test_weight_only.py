"""Weights of products in 4 and 8 bits: a small file, outputs close to float, and correct counts."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_running import run, signal_to_noise_db
from tiny_models import a_network

from edgeopt.errors import StepError
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.facts import measure_packable_bytes_ratio, read_facts
from edgeopt.graph.weights.matmul_nbits import pack_bits, unpack_bits
from edgeopt.graph.weights.weight_only import round_blocks
from edgeopt.records.recipe import Compact, QuantizeDynamic, QuantizeWeights

LIMITS = {"calibration": None, "max_opset": 20, "max_ir": 9}
FOUR_BITS_DB = 17.0  # for two layers in a row; 15 steps give 21 in one layer with random weights
EIGHT_BITS_DB = 35.0


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    return a_network(tmp_path_factory.mktemp("products") / "float.onnx", width=256, layers=3, inputs=("N", 200))


def in_bits(source, path, bits, block=32):
    return apply_steps((QuantizeWeights(bits=bits, block=block), Compact()), source, path, **LIMITS)[-1].path


@pytest.mark.parametrize(("bits", "min_db", "ratio"), [(4, FOUR_BITS_DB, 0.17), (8, EIGHT_BITS_DB, 0.31)])
def test_the_file_is_small_and_computes_nearly_the_same(products, tmp_path, bits, min_db, ratio):
    path = in_bits(products, tmp_path / "few.onnx", bits)
    x = np.random.default_rng(1).standard_normal((16, 200)).astype(np.float32)
    assert signal_to_noise_db(run(products, x), run(path, x)) > min_db
    assert path.stat().st_size < ratio * products.stat().st_size


def test_four_bits_with_their_scales_are_two_thirds_of_dynamic_int8(products, tmp_path):
    dynamic = apply_steps((QuantizeDynamic(reduce_range=True), Compact()), products, tmp_path / "8.onnx", **LIMITS)
    assert in_bits(products, tmp_path / "4.onnx", 4).stat().st_size < 0.67 * dynamic[-1].path.stat().st_size


@pytest.mark.parametrize("bits", [4, 8])
def test_parameters_zeros_and_macs_are_those_of_the_float_file(tmp_path, bits):
    source = a_network(tmp_path / "float.onnx", width=48, layers=2, inputs=("N", 40))
    model = onnx.load(source)
    first = model.graph.initializer[0]
    values = numpy_helper.to_array(first).copy()
    values[:10] = 0
    first.CopyFrom(numpy_helper.from_array(values, first.name))
    onnx.save(model, source)
    before, after = read_facts(source), read_facts(in_bits(source, tmp_path / "few.onnx", bits))
    assert after.operators["MatMulNBits"] == 2
    assert (after.parameters, after.macs) == (before.parameters, before.macs)
    rounded_away = 0.12 * before.parameters if bits == 4 else 0.01 * before.parameters
    assert before.nonzero_parameters - rounded_away <= after.nonzero_parameters <= before.nonzero_parameters


def test_a_linear_layer_keeps_its_bias_and_the_order_of_a_transposed_weight(tmp_path):
    rng = np.random.default_rng(0)
    weights, bias = rng.standard_normal((24, 64)).astype(np.float32), rng.standard_normal(24).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 24])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "linear.onnx")
    assert measure_packable_bytes_ratio(model) > 0.9
    x = rng.standard_normal((8, 64)).astype(np.float32)
    path = in_bits(tmp_path / "linear.onnx", tmp_path / "few.onnx", 8)
    assert read_facts(path).operators == {"MatMulNBits": 1, "Add": 1}
    assert signal_to_noise_db(x @ weights.T + bias, run(path, x)) > EIGHT_BITS_DB


def test_without_products_the_step_refuses(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "relu.onnx")
    assert measure_packable_bytes_ratio(model) == 0.0
    with pytest.raises(StepError, match="no table, and no matrix product"):
        in_bits(tmp_path / "relu.onnx", tmp_path / "few.onnx", 4)


def test_two_values_are_packed_in_a_byte_with_the_first_in_the_lower_bits():
    assert pack_bits(np.array([1, 2, 3], np.uint8), 4).tolist() == [0x21, 0x03]
    values = np.random.default_rng(0).integers(0, 16, (3, 4, 32)).astype(np.uint8)
    assert (unpack_bits(pack_bits(values, 4), 4) == values).all()


def test_the_range_of_a_block_is_narrowed_if_a_rare_weight_would_cost_the_others():
    weights = np.full((128, 1), 0.1, np.float32) * np.random.default_rng(0).standard_normal((128, 1)).astype(np.float32)
    weights[0] = 1.0
    values, scales, zeros = round_blocks(weights, 4, 128)
    restored = ((values - zeros[..., None].astype(np.float32)) * scales[..., None]).reshape(-1, 1)
    full = (weights.max() - weights.min()) / 15
    plain = np.rint(weights / full) * full
    assert ((restored - weights) ** 2).sum() < ((plain - weights) ** 2).sum()


@pytest.mark.parametrize(
    "step", [QuantizeWeights(bits=4, block=32), QuantizeWeights(bits=8, block=32), QuantizeDynamic(reduce_range=True)]
)
def test_weights_in_constant_nodes_are_found_as_those_of_initializers_are(products, tmp_path, step):
    model = onnx.load(products)
    constants = [helper.make_node("Constant", [], [one.name], value=one) for one in model.graph.initializer]
    for index, node in enumerate(constants):
        model.graph.node.insert(index, node)
    del model.graph.initializer[:]
    model.ir_version = 3  # in which an initializer has to be an input
    model.opset_import[0].version = min(13, model.opset_import[0].version)
    onnx.save(model, tmp_path / "constants.onnx")
    made, expected = (
        apply_steps((step, Compact()), source, tmp_path / f"{source.stem}-made.onnx", **LIMITS)[-1].path
        for source in (tmp_path / "constants.onnx", products)
    )
    assert made.stat().st_size == pytest.approx(expected.stat().st_size, abs=16)
    x = np.random.default_rng(1).standard_normal((16, 200)).astype(np.float32)
    np.testing.assert_allclose(run(made, x)[0], run(expected, x)[0], rtol=1e-4, atol=1e-4)
