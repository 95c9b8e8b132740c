"""Rounding by what it does to outputs: never more error than rounding to the nearest, on new samples; dense storage."""

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_running import a_network, run, signal_to_noise_db, some_images, write
from tiny_models import a_network as a_product_network

from edgeopt.bench.outputs import write_batches
from edgeopt.errors import StepError
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.compact import compact
from edgeopt.graph.facts import read_facts
from edgeopt.graph.rounding.compensation import Grid, round_with_compensation
from edgeopt.graph.rounding.moments import find_layers, measure_moments
from edgeopt.graph.rounding.packing import PLANES, pack, unpack
from edgeopt.records.recipe import Compact, FuseQLinear, PackWeights, Quantize, QuantizeWeights, Simplify

LIMITS = {"max_opset": 20, "max_ir": 9}
PLAIN = Quantize(activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=64)
SUM_TOLERANCE = 1e-4  # of moments: sums of float32 products, in another order than the runtime's


def correlated(samples, depth, seed=0):
    """Return inputs of which each resembles its neighbours, as those of real layers do."""
    noise = np.random.default_rng(seed).standard_normal((samples, depth + 8)).astype(np.float32)
    return sum(noise[:, shift : shift + depth] for shift in range(8)) / 3


def output_error(weights, rounded, moments):
    """Return the sum of squared errors of a layer's outputs over the samples behind the moments."""
    difference = rounded.astype(np.float64) - weights
    return float(((difference @ moments) * difference).sum())


# -- compensation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_errors_cancel_on_new_samples(bits):
    weights = np.random.default_rng(1).standard_normal((1, 24, 96))
    high = 2 ** (bits - 1) - 1
    grid = Grid(np.abs(weights).max(2, keepdims=True) / high, np.zeros(()), -high, high)
    seen, new = (correlated(400, 96, seed).astype(np.float64) for seed in (2, 3))
    rounded = grid.restore(round_with_compensation(weights, grid, seen.T[None] @ seen[None]))
    nearest = grid.restore(grid.round(weights))
    moments = new.T[None] @ new[None]
    assert output_error(weights, rounded, moments) < 0.5 * output_error(weights, nearest, moments)


def test_inputs_that_are_independent_leave_every_weight_at_its_nearest_step():
    weights = np.random.default_rng(1).standard_normal((2, 5, 40))
    grid = Grid(np.full((2, 5, 1), 0.1), np.zeros(()), -127, 127)
    assert (round_with_compensation(weights, grid, np.stack([np.eye(40)] * 2)) == grid.round(weights)).all()


def test_a_panel_more_or_less_changes_nothing(monkeypatch):
    weights, inputs = np.random.default_rng(1).standard_normal((1, 6, 50)), correlated(200, 50).astype(np.float64)
    grid, moments = Grid(np.full((1, 6, 1), 0.2), np.zeros(()), -8, 7), inputs.T[None] @ inputs[None]
    whole = round_with_compensation(weights, grid, moments)
    monkeypatch.setattr("edgeopt.graph.rounding.compensation._PANEL", 7)
    assert (round_with_compensation(weights, grid, moments) == whole).all()


def test_weights_that_are_zero_stay_zero():
    weights = np.random.default_rng(1).standard_normal((1, 6, 50))
    weights[:, :, ::3] = 0
    inputs = correlated(200, 50).astype(np.float64)
    grid = Grid(np.full((1, 6, 1), 0.2), np.full((1, 6, 1), 7.0), 0, 15)
    rounded = grid.restore(round_with_compensation(weights, grid, inputs.T[None] @ inputs[None]))
    assert not rounded[:, :, ::3].any()


def test_inputs_that_are_always_zero_are_no_division_by_zero():
    weights = np.random.default_rng(1).standard_normal((1, 6, 50))
    grid = Grid(np.full((1, 6, 1), 0.2), np.zeros(()), -8, 7)
    assert (round_with_compensation(weights, grid, np.zeros((1, 50, 50))) == grid.round(weights)).all()


# -- moments ---------------------------------------------------------------------------------------------------------


def a_layer(path, node, weights, x):
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *x.shape[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return model


@pytest.mark.parametrize(
    ("shape", "x", "attributes"),
    [
        ((6, 4, 3, 3), (5, 4, 7, 8), {"pads": [1, 1, 1, 1]}),
        ((6, 2, 3, 2), (5, 4, 8, 8), {"strides": [2, 1], "pads": [0, 1, 1, 0], "group": 2}),
        ((8, 1, 3), (5, 4, 16), {"dilations": [2], "group": 4}),
        ((3, 2, 2, 2, 2), (4, 2, 4, 4, 4), {}),
    ],
)
def test_moments_of_a_convolution_give_the_error_of_its_outputs(tmp_path, shape, x, attributes):
    rng = np.random.default_rng(0)
    weights, x = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(x).astype(np.float32)
    other = weights + 0.1 * rng.standard_normal(shape).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    models = [a_layer(tmp_path / f"{index}.onnx", node, one, x) for index, one in enumerate((weights, other))]
    (layer,) = find_layers(models[0])
    (moments,) = measure_moments(models[0], [layer], lambda: iter([{"x": x}])).values()
    outputs = [run(tmp_path / f"{index}.onnx", x) for index in range(2)]
    found = output_error(layer.to_rows(weights), layer.to_rows(other), moments)
    assert found == pytest.approx(float(((outputs[0] - outputs[1]) ** 2).sum()), rel=SUM_TOLERANCE)
    assert (layer.from_rows(layer.to_rows(weights), weights.shape) == weights).all()


@pytest.mark.parametrize("transposed", [0, 1])
def test_moments_of_a_product_are_those_of_its_rows(tmp_path, transposed):
    x = correlated(40, 12)
    weights = np.random.default_rng(0).standard_normal((5, 12) if transposed else (12, 5)).astype(np.float32)
    model = a_layer(tmp_path / "m.onnx", helper.make_node("Gemm", ["x", "w"], ["y"], transB=transposed), weights, x)
    (layer,) = find_layers(model)
    (moments,) = measure_moments(model, [layer], lambda: iter([{"x": x}])).values()
    assert moments[0] == pytest.approx(x.T @ x, rel=SUM_TOLERANCE, abs=SUM_TOLERANCE)
    assert layer.to_rows(weights).shape == (1, 5, 12)


# -- packing ---------------------------------------------------------------------------------------------------------


def integers(bits, shape, seed=0):
    half = 2 ** (bits - 1)
    values = np.random.default_rng(seed).integers(-half, half, shape).astype(np.int8)
    values.flat[:2] = -half, half - 1
    return values


def a_sum(tensors, opset=17):
    """Return a graph that makes each int8 tensor float and adds its input."""
    nodes = []
    for name in tensors:
        nodes += [
            helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT),
            helper.make_node("Add", [f"{name}_float", "x"], [f"{name}_y"]),
        ]
    graph = helper.make_graph(
        nodes,
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, one.shape) for name, one in tensors.items()],
        [numpy_helper.from_array(one, name) for name, one in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize("chain", [1 << 20, 3000])
def test_packed_tensors_of_all_widths_are_unpacked_bit_for_bit(monkeypatch, level, chain):
    monkeypatch.setattr("edgeopt.graph.rounding.packing._MAX_CHAIN_VALUES", chain)
    tensors = {f"w{bits}_{size}": integers(bits, (size, 3), size) for bits in PLANES for size in (400, 601, 633)}
    model = a_sum(tensors)
    plain = onnx.ModelProto.FromString(model.SerializeToString())
    assert pack(model) == len(tensors)
    compact(model)
    compact(plain)
    assert model.ByteSize() < plain.ByteSize()
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": np.zeros(1, np.float32)})
    assert all((one == tensor).all() for one, tensor in zip(found, tensors.values(), strict=True))


@pytest.mark.parametrize("bits", PLANES)
def test_unpacking_undoes_packing(bits):
    model = a_sum({"w": integers(bits, (400, 5, 5)), "wide": integers(8, (999,))})
    stored = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    assert pack(model) == 1
    assert unpack(model) == {"w": bits}
    assert [node.op_type for node in model.graph.node] == ["Cast", "Add"] * 2
    found = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    assert found.keys() == stored.keys()
    assert all((found[name] == stored[name]).all() for name in stored)


def test_what_gains_nothing_stays():
    for model in (
        a_sum({"w": integers(8, (999,))}),
        a_sum({"w": integers(4, (99,))}),
        a_sum({"w": integers(4, (700,))}),
    ):
        before = model.SerializeToString()
        assert pack(model) == 0
        assert unpack(model) == {}
        assert model.SerializeToString() == before


# -- whole files -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def convolutions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("convolutions")
    source = write(a_network(), folder / "source.onnx")
    write_batches(folder / "calibration.npz", [{"image": some_images(16, seed=seed)} for seed in range(4)])
    made = {}

    def make(bits):
        if bits not in made:
            step = msgspec.structs.replace(PLAIN, weight_bits=bits)
            steps = (Simplify(), step, FuseQLinear(), *([PackWeights()] if bits in PLANES else []), Compact())
            target = folder / f"{bits}.onnx"
            made[bits] = apply_steps(steps, source, target, calibration=folder / "calibration.npz", **LIMITS)
        return made[bits]

    return source, make


def noise_of(source, path):
    images = some_images(64, seed=99)
    return signal_to_noise_db(run(source, images), run(path, images))


def test_int8_rounded_again_is_closer_to_float_at_the_same_bytes(convolutions):
    source, make = convolutions
    plain, again = (make(bits)[-1].path for bits in (None, 8))
    assert noise_of(source, again) > noise_of(source, plain)
    assert abs(again.stat().st_size - plain.stat().st_size) <= 64  # names and equal scales that are shared


@pytest.mark.parametrize("bits", PLANES)
def test_fewer_bits_are_fewer_bytes_with_the_same_parameters(convolutions, bits):
    _, make = convolutions
    plain, packed = make(None)[-1].path, make(bits)[-1].path
    before, after = read_facts(plain), read_facts(packed)
    assert after.size_bytes < before.size_bytes
    assert (after.parameters, after.macs) == (before.parameters, before.macs)
    assert f"int{bits}" in after.weight_types
    assert after.opset == before.opset


def test_six_bits_rounded_by_samples_are_as_good_as_seven_rounded_to_the_nearest(convolutions):
    source, make = convolutions
    assert noise_of(source, make(6)[-1].path) > noise_of(source, make(None)[-1].path) - 1


def test_packing_and_compacting_do_not_change_a_bit(convolutions):
    _, make = convolutions
    fused, packed, final = (result.path for result in make(4)[-3:])
    images = some_images(16, seed=99)
    assert (run(fused, images) == run(packed, images)).all()
    assert (run(fused, images) == run(final, images)).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_of_products_rounded_by_samples_are_closer_to_float_at_the_same_bytes(tmp_path, bits):
    source = a_product_network(tmp_path / "float.onnx", width=256, layers=3, inputs=("N", 200))
    write_batches(tmp_path / "calibration.npz", [{"x": correlated(64, 200, seed)} for seed in range(4)])
    paths = [
        apply_steps(
            (QuantizeWeights(bits=bits, block=32, samples=samples), Compact()),
            source, tmp_path / f"{samples}.onnx", calibration=tmp_path / "calibration.npz", **LIMITS,
        )[-1].path
        for samples in (0, 256)
    ]  # fmt: skip
    new = correlated(64, 200, seed=9)
    nearest, rounded = (signal_to_noise_db(run(source, new), run(path, new)) for path in paths)
    assert rounded > nearest + (3 if bits == 4 else 0)
    assert paths[0].stat().st_size == paths[1].stat().st_size


def test_a_graph_that_does_not_run_over_the_samples_is_rounded_to_the_nearest_and_says_so(tmp_path):
    source = a_product_network(tmp_path / "float.onnx", width=64, layers=2, inputs=("N", 32))
    write_batches(tmp_path / "calibration.npz", [{"x": np.zeros((4, 31), np.float32)}])
    step = QuantizeWeights(bits=8, block=32, samples=4)
    (result,) = apply_steps((step,), source, tmp_path / "m.onnx", calibration=tmp_path / "calibration.npz", **LIMITS)
    assert "nearest step, without the samples" in result.notes[0]
    assert read_facts(result.path).operators["MatMulNBits"] == 2


def test_a_network_without_large_layers_is_refused(tmp_path):
    source = a_product_network(tmp_path / "float.onnx", width=16, layers=2, inputs=("N", 16))
    write_batches(tmp_path / "calibration.npz", [{"x": correlated(16, 16)}])
    step = msgspec.structs.replace(PLAIN, weight_bits=4)
    with pytest.raises(StepError, match="1024 int8 weights"):
        apply_steps((step,), source, tmp_path / "m.onnx", calibration=tmp_path / "calibration.npz", **LIMITS)
