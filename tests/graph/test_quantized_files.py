"""Files as they are given: quantized already, with functions of their own, with classic models in them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_running import run

from edgeopt.graph.apply import apply_steps
from edgeopt.graph.facts import is_quantized, read_facts
from edgeopt.records.recipe import Compact, Simplify, StoreWeights

RANDOM = np.random.RandomState(0)
ROWS = RANDOM.standard_normal((8, 32)).astype(np.float32)
LIMITS = {"calibration": None, "max_opset": 20, "max_ir": 9}
WEIGHTS = RANDOM.standard_normal((32, 64)).astype(np.float32)
HEAD = RANDOM.standard_normal((64, 10)).astype(np.float32)


def save(path, nodes, stored=None, opset=19, domains=(), **parts):
    value = helper.make_tensor_value_info
    weights = [one if isinstance(one, TensorProto) else numpy_helper.from_array(np.asarray(one), name)
               for name, one in (stored or {}).items()]  # fmt: skip
    ends = [value("x", TensorProto.FLOAT, ["n", 32])], [value("y", TensorProto.FLOAT, ["n", 10])]
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in domains)]
    graph = helper.make_graph(nodes, "g", *ends, weights)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9, **parts), path)
    return path


def two_products(weights="w"):
    return [helper.make_node("MatMul", ["x", weights], ["h"]), helper.make_node("MatMul", ["h", "head"], ["y"])]


def stored_by_hand(path):
    scale = np.abs(WEIGHTS).max(0) / 127
    nodes = [
        helper.make_node("Cast", ["integers"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["w"]),
        *two_products(),
    ]
    integers = np.rint(WEIGHTS / scale).astype(np.int8)
    return save(path, nodes, {"integers": integers, "scale": scale.astype(np.float32), "head": HEAD})


def in_float8(path):
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [0.01])
    values = helper.make_tensor("w8", TensorProto.FLOAT8E4M3FN, [32, 64], (WEIGHTS / 0.01).ravel().tolist())
    nodes = [helper.make_node("DequantizeLinear", ["w8", "scale"], ["w"]), *two_products()]
    return save(path, nodes, {"w8": values, "scale": scale, "head": HEAD})


def in_4_bits(path):
    """Symmetric ones, without zero points."""
    packed = RANDOM.randint(0, 256, (64, 1, 16)).astype(np.uint8)
    packed[0] = 0x88  # all at the middle, which is zero
    product = helper.make_node(
        "MatMulNBits", ["x", "packed", "scales"], ["h"], domain="com.microsoft", K=32, N=64, bits=4, block_size=32
    )
    stored = {"packed": packed, "scales": np.ones(64, np.float32), "head": HEAD}
    return save(path, [product, two_products()[1]], stored, domains=["com.microsoft"])


@pytest.mark.parametrize(("make", "kind"), [(stored_by_hand, "int8"), (in_float8, "float8e4m3fn"), (in_4_bits, "int4")])
def test_parameters_and_bits_of_a_file_that_is_quantized_already(make, kind, tmp_path):
    path = make(tmp_path / "m.onnx")
    facts = read_facts(path)
    assert (facts.parameters, facts.macs) == (32 * 64 + 64 * 10, 32 * 64 + 64 * 10)
    assert set(facts.weight_types) == {kind, "float32"}
    assert is_quantized(onnx.load(path))
    assert (facts.nonzero_parameters <= facts.parameters - 32) == (kind == "int4")


@pytest.mark.parametrize("make", [stored_by_hand, in_float8, in_4_bits])
def test_it_never_becomes_larger(make, tmp_path):
    source = make(tmp_path / "m.onnx")
    made = apply_steps((Simplify(), Compact()), source, tmp_path / "made.onnx", **LIMITS)[-1].path
    assert made.stat().st_size <= source.stat().st_size
    assert read_facts(made).parameters == read_facts(source).parameters
    if make is not in_float8:
        assert np.allclose(run(source, ROWS), run(made, ROWS), rtol=1e-5, atol=1e-4)


def test_a_network_with_a_small_mask_of_integers_is_not_quantized(tmp_path):
    nodes = [
        helper.make_node("Cast", ["mask"], ["open"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["open", "large"], ["bias"]),
        helper.make_node("Add", ["x", "bias"], ["masked"]),
        helper.make_node("MatMul", ["masked", "w"], ["h"]),
        two_products()[1],
    ]
    stored = {"mask": np.ones(32, np.uint8), "large": np.float32(-1e4), "w": WEIGHTS, "head": HEAD}
    assert not is_quantized(onnx.load(save(tmp_path / "m.onnx", nodes, stored)))


def test_functions_of_a_file_are_written_out_so_that_their_weights_are_stored_in_int8(tmp_path):
    inside = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(WEIGHTS))
    function = helper.make_function(
        "local", "Hidden", ["a"], ["o"], [inside, helper.make_node("MatMul", ["a", "w"], ["o"])],
        [helper.make_opsetid("", 19)],
    )  # fmt: skip
    nodes = [helper.make_node("Hidden", ["x"], ["h"], domain="local"), two_products()[1]]
    source = save(tmp_path / "m.onnx", nodes, {"head": HEAD}, domains=["local"], functions=[function])
    results = apply_steps((Simplify(), StoreWeights(), Compact()), source, tmp_path / "made.onnx", **LIMITS)
    assert results[0].notes[0] == "simplify: 1 functions of the file written as the nodes they consist of"
    before, after = read_facts(source), read_facts(results[-1].path)
    assert (before.parameters, before.macs) == (after.parameters, after.macs) == (2688, 2688)
    assert results[-1].path.stat().st_size < 0.65 * source.stat().st_size
    assert np.abs(run(source, ROWS) - run(results[-1].path, ROWS)).max() < 0.02 * np.abs(run(source, ROWS)).max()


def test_coefficients_of_a_classic_model_are_parameters(tmp_path):
    model = helper.make_node(
        "LinearRegressor", ["x"], ["y"], domain="ai.onnx.ml", targets=10, coefficients=HEAD[:32].ravel().tolist(),
        intercepts=[0.0] * 9 + [1.0],
    )  # fmt: skip
    facts = read_facts(save(tmp_path / "m.onnx", [model], domains=["ai.onnx.ml"]))
    assert (facts.parameters, facts.nonzero_parameters, facts.macs) == (330, 321, 320)
