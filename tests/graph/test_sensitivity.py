"""The sensitivity study of a network with a planted weak spot: calibration methods and the ranking of nodes."""

import math

import msgspec
import numpy as np
import onnx
import pytest
from onnx_running import a_network, run, signal_to_noise_db, some_images, write

from edgeopt.bench.outputs import write_batches
from edgeopt.errors import StepError
from edgeopt.graph.apply import apply_steps, study_sensitivity_of_file
from edgeopt.graph.quantization.calibration import ActivationRanges
from edgeopt.graph.quantization.sensitivity import MAX_SINGLE_NODES, _NodeCost, measure_nodes
from edgeopt.graph.quantization.static import quantize
from edgeopt.records.recipe import Compact, FuseQLinear, Quantize, Simplify

STEP = Quantize(activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=32)
LIMITS = {"max_opset": 20, "max_ir": 9}
CLEARLY_MORE_DB = 3.0  # half of the noise power


def with_an_outlier_channel(network, scale=60.0):
    """Make one channel between two convolutions large and undo it in the second: int8 loses the other channels.

    The operator between them is not quite a ReLU, or equalization would help too.
    """
    import torch

    block = network.stages[0]
    block.relu = torch.nn.Hardtanh(-1e-6, 1e6)
    with torch.no_grad():
        block.bn1.weight[0] *= scale
        block.bn1.bias[0] *= scale
        block.conv2.weight[:, 0] /= scale
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def calibration(folder):
    path = folder / "calibration.npz"
    write_batches(path, [{"image": some_images(16, seed=seed)} for seed in range(4)])
    return path


@pytest.fixture(scope="module")
def weak(folder):
    source = write(with_an_outlier_channel(a_network()), folder / "weak.onnx")
    return apply_steps((Simplify(),), source, folder / "simple.onnx", calibration=None, **LIMITS)[-1].path


@pytest.fixture(scope="module")
def found(weak, calibration):
    return study_sensitivity_of_file(STEP, weak, calibration, 32, rank=True)


def quantized(source, batches, path, **values):
    step = msgspec.structs.replace(STEP, **values)
    return apply_steps((step, FuseQLinear(), Compact()), source, path, calibration=batches, **LIMITS)[-1].path


def test_the_node_that_reads_the_outlier_channel_goes_back_to_float_first(weak, calibration, found, tmp_path):
    expected = run(weak, some_images())
    plain = signal_to_noise_db(expected, run(quantized(weak, calibration, tmp_path / "plain.onnx"), some_images()))
    first = tuple(noise.node for noise in found.ranking[:2])
    mixed = quantized(weak, calibration, tmp_path / "mixed.onnx", float_nodes=first)
    assert signal_to_noise_db(expected, run(mixed, some_images())) > plain + CLEARLY_MORE_DB


def test_the_ranking_holds_every_node_once_with_its_share_of_the_work(found, weak):
    names = [noise.node for noise in found.ranking]
    assert len(set(names)) == len(names)
    layers = [node.name for node in onnx.load(weak).graph.node if node.op_type in ("Conv", "Gemm")]
    assert set(names) & set(layers) == set(layers[1:])  # the first reads the image: it stays float in any case
    assert sum(noise.cost_ratio for noise in found.ranking) == pytest.approx(1.0)


def test_every_calibration_method_is_measured_and_the_best_is_named(found, weak, calibration, tmp_path):
    assert set(found.method_snr_db) == {"minmax", "entropy", "percentile", "mse"}
    best = max(found.method_snr_db.values())
    assert found.method_snr_db[found.method] >= best - 0.5
    expected = run(weak, some_images(seed=3))
    for method in ("percentile", "mse"):
        path = quantized(weak, calibration, tmp_path / f"{method}.onnx", calibration=method)
        assert signal_to_noise_db(expected, run(path, some_images(seed=3))) > 0


def test_a_study_without_ranking_otherwise_finds_the_same(found, weak, calibration):
    quick = study_sensitivity_of_file(STEP, weak, calibration, 32, rank=False)
    assert quick == msgspec.structs.replace(found, ranking=())


def test_a_recipe_with_an_unknown_node_is_refused(weak, calibration, tmp_path):
    with pytest.raises(StepError, match="leaves 'Conv_99' in float, but the graph has no such node"):
        quantized(weak, calibration, tmp_path / "out.onnx", float_nodes=("Conv_99",))


def test_the_study_is_the_same_each_time(weak, calibration, found):
    again = study_sensitivity_of_file(STEP, weak, calibration, 32, rank=True)
    assert again.ranking == found.ranking
    assert np.allclose(list(again.method_snr_db.values()), list(found.method_snr_db.values()))


def test_ranges_are_found_once_for_a_model_its_samples_and_a_method(tmp_path, monkeypatch):
    source = write(a_network(), tmp_path / "source.onnx")
    write_batches(tmp_path / "calibration.npz", [{"image": some_images(16, seed=seed)} for seed in range(2)])
    runs = []
    find = ActivationRanges._find
    monkeypatch.setattr(ActivationRanges, "_find", lambda self, method: runs.append(method) or find(self, method))

    def made(**changes):
        step = msgspec.structs.replace(STEP, **changes)
        return quantize(onnx.load(source), step, tmp_path / "calibration.npz")[0].SerializeToString(deterministic=True)

    first, again = made(), made()
    assert first == again
    assert runs == ["minmax"]
    assert made(weight_bits=8) != first
    made(calibration="mse")
    made(samples=16)
    assert runs == ["minmax", "mse", "minmax"]
    assert not list(tmp_path.glob("*.partial"))


def test_of_many_nodes_only_those_of_the_noisiest_groups_are_measured_one_by_one():
    nodes = [_NodeCost(name=f"n{number}", weight_bytes=1, macs=1) for number in range(480)]
    noise = {node.name: 1e-6 for node in nodes} | {"n17": 1e-1, "n400": 1e-2}
    asked = []

    def measure(names):
        asked.append(names)
        return -10 * math.log10(sum(noise[name] for name in names))

    found = {node.name: snr_db for node, snr_db in measure_nodes(nodes, measure)}
    assert len(found) == len(nodes)
    assert len(asked) <= MAX_SINGLE_NODES
    assert found["n17"] == pytest.approx(10)
    assert found["n400"] == pytest.approx(20)
    others = [snr_db for name, snr_db in found.items() if noise[name] < 1e-3]
    assert min(others) == pytest.approx(60, abs=0.01)  # a group of equal nodes shares its noise evenly


def test_of_few_nodes_each_is_measured():
    nodes = [_NodeCost(name=f"n{number}", weight_bytes=1, macs=1) for number in range(3)]
    assert [snr_db for _, snr_db in measure_nodes(nodes, lambda names: float(names[0][1]))] == [0.0, 1.0, 2.0]


def test_nodes_that_share_weights_are_measured_together_as_the_steps_of_an_unrolled_loop():
    nodes = [
        _NodeCost(name=f"n{number}", weight_bytes=1, macs=1, weights="cell" if number % 2 else "")
        for number in range(8)
    ]
    asked = []

    def measure(names):
        asked.append(names)
        return 20.0 - 10 * math.log10(len(names))

    found = measure_nodes(nodes, measure)
    assert [node.name for node, _ in found] == [node.name for node in nodes]
    assert ("n1", "n3", "n5", "n7") in asked
    assert len(asked) == 5
    assert [snr_db for _, snr_db in found] == pytest.approx([20.0] * 8)
