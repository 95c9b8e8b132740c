"""Hard swishes between quantize and dequantize nodes: only the rounding that is needed."""

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_running import run

from edgeopt.graph.quantization.hard_swish import write_hard_swishes
from edgeopt.graph.quantization.qlinear_fusion import fuse_qlinear

ACTIVATIONS = {
    "hard": ("h = HardSigmoid<alpha = 0.16666667, beta = 0.5>(a)", lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "silu": ("h = Sigmoid(a)", lambda x: x / (1 + np.exp(-x))),
}


def a_swish_network(kind, low, high, *, lowest=0.0, extra=""):
    """Return x * sigmoid(x) with pairs for x in low..high; its result is at least ``lowest``."""
    sigmoid, function = ACTIVATIONS[kind]
    scale, top = (high - low) / 255, function(np.float64(high))
    result = (top - lowest) / 255
    return onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["" : 19]>
        g (float[n] x) => (float[n] y) <
            float s = {{{scale:.9f}}}, uint8 z = {{{round(-low / scale)}}},
            float g_s = {{{1 / 255:.9f}}}, uint8 g_z = {{0}},
            float r_s = {{{result:.9f}}}, uint8 r_z = {{{round(-lowest / result)}}}
        > {{
            [q1] q = QuantizeLinear(x, s, z) [d1] a = DequantizeLinear(q, s, z) [gate] {sigmoid}
            [q2] hq = QuantizeLinear(h, g_s, g_z) [d2] b = DequantizeLinear(hq, g_s, g_z) [product] p = Mul(a, b)
            [q3] pq = QuantizeLinear(p, r_s, r_z) [d3] y = DequantizeLinear(pq, r_s, r_z) {extra}
        }}""")  # fmt: skip


def compute_as_written(model, x):
    """Compute node by node, without optimization."""
    return ReferenceEvaluator(model).run(None, {"x": x})[0]


def compute_at_runtime(model, x, folder):
    onnx.save(model, folder / "model.onnx")
    return run(folder / "model.onnx", x)


def largest_error(model, kind, low, high):
    x = np.linspace(low, high, 20_001).astype(np.float32)
    return float(np.abs(compute_as_written(model, x) - ACTIVATIONS[kind][1](x.astype(np.float64))).max())


@pytest.mark.parametrize("high", [1.5, 3.0, 6.0, 14.0])
def test_a_hard_swish_rounds_its_input_once_and_is_closer_to_the_function(high):
    plain = a_swish_network("hard", -9.0, high, lowest=-0.375)
    before = largest_error(plain, "hard", -9, high)
    assert write_hard_swishes(plain) == 1
    onnx.checker.check_model(plain, full_check=True)
    assert [node.op_type for node in plain.graph.node].count("QuantizeLinear") == 2
    assert largest_error(plain, "hard", -9, high) < before


def test_a_fused_hard_swish_is_a_clip_and_a_product(tmp_path):
    model = a_swish_network("hard", -9.0, 14.0, lowest=-0.375)
    write_hard_swishes(model)
    x = np.linspace(-9, 14, 999).astype(np.float32)
    expected = compute_at_runtime(model, x, tmp_path)
    fuse_qlinear(model)
    found = compute_at_runtime(model, x, tmp_path)
    assert [node.op_type for node in model.graph.node] == [
        "QuantizeLinear", "Clip", "QLinearMul", "DequantizeLinear",
    ]  # fmt: skip
    assert (found == expected).all()


def test_a_silu_keeps_its_range_and_becomes_a_look_up_and_a_product():
    model = a_swish_network("silu", -30.0, 10.0, lowest=-0.2785)
    assert write_hard_swishes(model) == 0
    fuse_qlinear(model)
    assert [node.op_type for node in model.graph.node][1:3] == ["QLinearSigmoid", "QLinearMul"]


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_a_value_with_another_reader_keeps_its_range(kind):
    model = a_swish_network(kind, -30.0, 10.0, lowest=-0.2785, extra="other = Abs(a)")
    before = model.SerializeToString()
    assert write_hard_swishes(model) == 0
    assert model.SerializeToString() == before


def test_a_rescaled_tensor_becomes_a_look_up_with_the_same_values(tmp_path):
    text = """<ir_version: 9, opset_import: ["" : 19]> g (float[n] x) => (float[n] y)
        <float s = {0.1}, uint8 z = {100}, float t = {0.037}, uint8 u = {31}> {
            q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z)
            p = QuantizeLinear(a, t, u) y = DequantizeLinear(p, t, u)
        }"""
    model = onnx.parser.parse_model(text)
    x = np.linspace(-12, 18, 999).astype(np.float32)
    expected = compute_as_written(model, x)
    assert fuse_qlinear(model) == 1
    assert [node.op_type for node in model.graph.node][1] == "QLinearLeakyRelu"
    assert (compute_at_runtime(model, x, tmp_path) == expected).all()
