"""Weights stored in few bits and made float again at loading: closer to float if rounded by samples, never larger."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_running import run, signal_to_noise_db

from edgeopt.bench.outputs import write_batches
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.compact import compact
from edgeopt.graph.facts import read_facts
from edgeopt.graph.rounding.moments import find_recurrent_layers, measure_moments
from edgeopt.graph.rounding.packing import pack
from edgeopt.graph.weights.int8_weights import store_int8_weights
from edgeopt.records.recipe import Compact, PackWeights, Simplify, StoreWeights

LIMITS = {"max_opset": 20, "max_ir": 9}
HIDDEN, WIDTH = 32, 48
MIN_GAIN_DB = 2
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def a_walk(samples, seed):
    """Return sequences ``(5, samples, WIDTH)`` whose values resemble their neighbours, as real ones do."""
    noise = np.random.default_rng(seed).standard_normal((5, samples, WIDTH + 8)).astype(np.float32)
    return sum(noise[:, :, shift : shift + WIDTH] for shift in range(8)) / 3


def a_cell(path, kind, directions=2, reads_states=False):
    """Write a recurrent cell whose final state is the output."""
    rng, gates = np.random.default_rng(0), GATES[kind]
    weights = {
        "w": rng.standard_normal((directions, gates * HIDDEN, WIDTH)) / 7,
        "r": rng.standard_normal((directions, gates * HIDDEN, HIDDEN)) / 7,
        "b": rng.standard_normal((directions, 2 * gates * HIDDEN)) / 7,
    }
    node = helper.make_node(
        kind, ["x", "w", "r", "b"], ["states" if reads_states else "", "last"], hidden_size=HIDDEN,
        direction="bidirectional" if directions == 2 else "forward",
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "cell",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, "n", WIDTH])],
        [helper.make_tensor_value_info("last", TensorProto.FLOAT, [directions, "n", HIDDEN])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def stored(source, calibration, bits, samples):
    """Return the path of the finished file and the notes."""
    target = source.with_name(f"{source.stem}-{bits}-{samples}.onnx")
    step = StoreWeights(weight_bits=bits, samples=samples)
    model, notes = store_int8_weights(onnx.load(source), step, calibration)
    if bits < 8:
        pack(model)
    compact(model)
    onnx.save(model, target)
    return target, notes


@pytest.fixture(params=[(kind, directions) for kind in GATES for directions in (1, 2)])
def cell(request, tmp_path):
    kind, directions = request.param
    calibration = tmp_path / "calibration.npz"
    write_batches(calibration, [{"x": a_walk(32, seed)} for seed in range(3)])
    return a_cell(tmp_path / "cell.onnx", kind, directions), calibration


@pytest.mark.parametrize("bits", [4, 8])
def test_cells_rounded_by_samples_are_closer_to_float(cell, bits):
    source, calibration = cell
    (nearest, _), (rounded, notes) = (stored(source, calibration, bits, samples) for samples in (0, 96))
    new = a_walk(64, seed=9)
    exact = run(source, new)
    noise = [signal_to_noise_db(exact, run(path, new)) for path in (nearest, rounded)]
    assert noise[1] > noise[0] + MIN_GAIN_DB
    assert not any("nearest" in note for note in notes)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_fewer_bits_are_fewer_bytes_of_the_same_parameters(tmp_path, kind):
    source = a_cell(tmp_path / "cell.onnx", kind)
    write_batches(tmp_path / "calibration.npz", [{"x": a_walk(32, seed=1)}])
    facts = [read_facts(stored(source, tmp_path / "calibration.npz", bits, 32)[0]) for bits in (3, 4, 5, 6, 8)]
    assert [one.size_bytes for one in facts] == sorted(one.size_bytes for one in facts)
    assert facts[1].size_bytes < 0.65 * facts[-1].size_bytes
    assert len({one.parameters for one in facts}) == 1
    assert "int4" in facts[1].weight_types


def test_steps_of_a_build_store_weights_in_few_bits(tmp_path):
    source, inputs = a_cell(tmp_path / "cell.onnx", "LSTM"), a_walk(32, seed=1)
    write_batches(tmp_path / "calibration.npz", [{"x": inputs}])
    steps = (Simplify(), StoreWeights(weight_bits=4, samples=32), PackWeights(), Compact())
    results = apply_steps(steps, source, tmp_path / "out.onnx", calibration=tmp_path / "calibration.npz", **LIMITS)
    assert [note.partition(":")[0] for result in results for note in result.notes] == ["store-weights", "pack-weights"]
    alone, _ = stored(source, tmp_path / "calibration.npz", 4, 32)
    assert (run(results[-1].path, inputs) == run(alone, inputs)).all()


def test_moments_of_a_cell_are_those_of_its_inputs_and_of_its_states(tmp_path):
    source = a_cell(tmp_path / "cell.onnx", "LSTM")
    inputs, model = a_walk(16, seed=3), onnx.load(source)
    layers = find_recurrent_layers(model)
    assert [(one.data, one.weight, one.groups) for one in layers] == [("x", "w", 2), ("states_of_cell_0", "r", 2)]
    found = measure_moments(model, layers, lambda: iter([{"x": inputs}]))
    rows = inputs.reshape(-1, WIDTH)
    assert found["w"] == pytest.approx((rows.T @ rows)[None], rel=1e-4, abs=1e-3)
    assert found["r"].shape == (2, HIDDEN, HIDDEN)
    assert onnx.load(source).graph.node[0].output[0] == ""


def test_a_graph_that_does_not_run_over_the_samples_is_rounded_to_the_nearest_and_says_so(tmp_path):
    source = a_cell(tmp_path / "cell.onnx", "LSTM")
    write_batches(tmp_path / "calibration.npz", [{"x": np.zeros((5, 4, WIDTH + 1), np.float32)}])
    _, notes = stored(source, tmp_path / "calibration.npz", 4, 4)
    assert any("rounded to the nearest step, without the samples" in note for note in notes)
