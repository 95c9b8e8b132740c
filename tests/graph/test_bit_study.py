"""How much fewer bits of each weight disturb the outputs, and files whose weights have bits of their own."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_running import run, signal_to_noise_db

from edgeopt.bench.outputs import write_batches
from edgeopt.errors import StepError
from edgeopt.graph.apply import apply_steps, study_weight_bits_of_file
from edgeopt.graph.facts import read_facts
from edgeopt.graph.quantization.sensitivity import affordable_batches
from edgeopt.graph.weights.bit_study import BITS, measure_noise
from edgeopt.graph.weights.int8_weights import round_weights
from edgeopt.planning.weight_bits import allocate_bits, noise_at
from edgeopt.records.recipe import Compact, PackWeights, Quantize, Simplify, StoreWeights

LIMITS = {"max_opset": 20, "max_ir": 9}
SAMPLES, HELD_BACK = 32, 32
WIDTH = 64


def a_network(path, small=False):
    """Write a front end whose outputs are multiplied by 30 before a tanh, then a product that matters little."""
    rng = np.random.default_rng(0)
    width = 16 if small else WIDTH
    weights = {
        "front": rng.standard_normal((width, WIDTH)) / np.sqrt(width),
        "back": rng.standard_normal((WIDTH, WIDTH)) / 8,
        "thirty": np.array(30.0),
        "tenth": np.array(0.02),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "front"], ["a"], "front"),
        helper.make_node("Mul", ["a", "thirty"], ["b"], "more"),
        helper.make_node("Tanh", ["b"], ["c"], "tanh"),
        helper.make_node("MatMul", ["c", "back"], ["d"], "back"),
        helper.make_node("Mul", ["d", "tenth"], ["e"], "less"),
        helper.make_node("Add", ["c", "e"], ["y"], "sum"),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])],
        [numpy_helper.from_array(np.asarray(values, np.float32), name) for name, values in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def samples(count, seed, width=WIDTH):
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


@pytest.fixture
def network(tmp_path):
    calibration = tmp_path / "calibration.npz"
    write_batches(calibration, [{"x": samples(16, seed)} for seed in range(4)])
    return a_network(tmp_path / "network.onnx"), calibration


def made(source, calibration, steps):
    target = source.with_name("made.onnx")
    return apply_steps(steps, source, target, calibration=calibration, **LIMITS)[-1].path


def test_the_weight_that_disturbs_the_outputs_most_is_found(network):
    source, calibration = network
    before = source.read_bytes()
    study = study_weight_bits_of_file(SAMPLES, source, calibration, HELD_BACK)
    assert [(one.weight, one.values) for one in study.noises] == [("front", WIDTH * WIDTH), ("back", WIDTH * WIDTH)]
    assert study.noises[0].noise_ratio > 30 * study.noises[1].noise_ratio
    assert source.read_bytes() == before


def test_bits_by_weight_are_fewer_bytes_at_less_noise_than_the_same_bits_for_all(network):
    source, calibration = network
    study = study_weight_bits_of_file(SAMPLES, source, calibration, HELD_BACK)
    bits_of = allocate_bits(study, noise_at(study, 6, BITS), BITS, (3, 4, 5, 6, 8))
    assert dict(bits_of)["front"] > dict(bits_of)["back"]
    equal = made(source, calibration, (StoreWeights(weight_bits=6, samples=SAMPLES), PackWeights(), Compact()))
    new = samples(64, seed=9)
    exact, equal_bytes = run(source, new), equal.stat().st_size
    equal_noise = signal_to_noise_db(exact, run(equal, new))
    own = made(source, calibration, (StoreWeights(samples=SAMPLES, bits_of=bits_of), PackWeights(), Compact()))
    assert own.stat().st_size < equal_bytes
    assert signal_to_noise_db(exact, run(own, new)) > equal_noise - 1
    assert {f"int{bits}" for _, bits in bits_of if bits < 8} <= set(read_facts(own).weight_types)


def test_sixteen_bits_are_as_good_as_float_at_half_the_bytes(network):
    source, calibration = network
    step = StoreWeights(bits_of=(("front", 16), ("back", 8)))
    path = made(source, calibration, (step, Compact()))
    types = {tensor.data_type for tensor in onnx.load(path).graph.initializer if np.prod(tensor.dims) >= 1024}
    assert types == {TensorProto.INT16, TensorProto.INT8}
    new = samples(64, seed=9)
    in_int8 = made(source, calibration, (StoreWeights(), Compact()))
    noise_in_int8 = signal_to_noise_db(run(source, new), run(in_int8, new))
    path = made(source, calibration, (step, Compact()))
    assert signal_to_noise_db(run(source, new), run(path, new)) > noise_in_int8 + 15


def test_sixteen_bits_have_a_scale_for_each_channel_too():
    """A channel of large weights must not make the others coarse."""
    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32) / 100
    weights[:, 0] *= 1e4
    stored, scale = round_weights(weights, 16)
    assert stored.dtype == np.int16
    error = (stored * scale - weights)[:, 1:]
    assert np.abs(error).max() < 1e-4 * np.abs(weights[:, 1:]).max()


def test_values_that_are_not_finite_and_outputs_of_zeros_are_no_noise():
    signal = {"y": np.array([1.0, -np.inf, 2.0]), "zero": np.zeros(3)}
    noisy = {"y": np.array([1.1, -np.inf, 2.0]), "zero": np.full(3, 1e-9)}
    assert measure_noise([signal], [noisy]) == pytest.approx(0.01 / 5)
    assert np.isfinite(measure_noise([signal], [{"y": np.full(3, np.inf), "zero": np.zeros(3)}]))
    with pytest.raises(StepError, match="no output"):
        measure_noise([{"y": np.zeros(3)}], [{"y": np.ones(3)}])


def test_a_study_of_a_large_network_runs_on_fewer_samples(network):
    source, _ = network
    batches = [{"x": samples(16, seed)} for seed in range(3)]
    counts = [
        sum(len(batch["x"]) for batch in affordable_batches(onnx.load(source), batches, {"x": 0}, 10, max_work))
        for max_work in (1000, 320, 160, 50, 1)
    ]
    assert counts == [48, 32, 16, 5, 1]


def test_weights_of_static_int8_have_bits_of_their_own_too(network):
    source, calibration = network
    plain = Quantize(
        activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=SAMPLES, weight_bits=8,
        bits_of=(("front", 6), ("back", 3)),
    )  # fmt: skip
    types = read_facts(made(source, calibration, (Simplify(), plain, PackWeights(), Compact()))).weight_types
    assert {"int3", "int6"} <= set(types)


def test_a_graph_with_a_single_weight_is_not_studied(tmp_path):
    source = a_network(tmp_path / "small.onnx", small=True)
    model = onnx.load(source)
    back = next(tensor for tensor in model.graph.initializer if tensor.name == "back")
    back.CopyFrom(numpy_helper.from_array(np.ones((WIDTH, 1), np.float32), "back"))
    onnx.save(model, source)
    write_batches(tmp_path / "calibration.npz", [{"x": samples(64, 0, width=16)}])
    with pytest.raises(StepError, match="fewer than two weights"):
        study_weight_bits_of_file(SAMPLES, source, tmp_path / "calibration.npz", HELD_BACK)
