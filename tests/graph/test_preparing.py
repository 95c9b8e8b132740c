"""Equalization and bias correction: exact in float, and less noise in int8 if channels are uneven."""

import json
import subprocess
import sys

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx_running import run, signal_to_noise_db, some_images, write
from torch import nn

from edgeopt.bench.outputs import write_batches
from edgeopt.export.parity import compare_arrays
from edgeopt.graph.apply import apply_steps, study_sensitivity_of_file
from edgeopt.graph.quantization.cross_layer_equalization import compute_channel_factors
from edgeopt.records.recipe import Compact, FuseQLinear, Quantize, Simplify

STEP = Quantize(activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=48)
LIMITS = {"max_opset": 20, "max_ir": 9}
ROUNDING_TOLERANCE = 1e-5  # weights are divided and multiplied in float32
FLOAT_RATIO = 1e-3  # biases are stored in float32, next to far smaller errors
CLEARLY_MORE_DB = 3.0  # half of the noise power

IN_A_SESSION = """
import json, msgspec, numpy as np, onnx, sys, tempfile
from pathlib import Path
from edgeopt.graph.quantization.bias_correction import correct_biases, measure_mean_errors
from edgeopt.graph.quantization.cross_layer_equalization import equalize
from edgeopt.graph.quantization.static import prepare, quantize_prepared, read_calibration_batches
from edgeopt.records.recipe import Quantize
source, calibration, target = map(Path, sys.argv[1:4])

def biases(model):
    values = {tensor.name: onnx.numpy_helper.to_array(tensor).astype(float) for tensor in model.graph.initializer}
    return {node.name: values[node.input[2]] for node in model.graph.node if node.op_type in ("Conv", "Gemm")}

"""


class Depthwise(nn.Module):
    """Expand, depthwise, project, as in MobileNet, with channels whose ranges differ a lot."""

    def __init__(self, act):
        super().__init__()
        wide = 16
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), act(), nn.Conv2d(8, wide, 1), act(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide), act(), nn.Conv2d(wide, 12, 1),
            nn.Conv2d(12, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
        )  # fmt: skip
        uneven = torch.logspace(-1.5, 0.5, wide)[torch.randperm(wide)]
        with torch.no_grad():
            for layer, before in ((2, None), (4, 2)):
                self.layers[layer].weight.mul_(uneven.view(-1, 1, 1, 1))
                self.layers[layer].bias.mul_(uneven)
                if before is not None:
                    self.layers[layer].weight.div_(uneven.view(-1, 1, 1, 1))
            self.layers[6].weight.div_(uneven.view(1, -1, 1, 1))

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("preparing")


@pytest.fixture(scope="module")
def calibration(folder):
    path = folder / "calibration.npz"
    write_batches(path, [{"image": some_images(16, seed=seed)} for seed in range(5)])
    return path


@pytest.fixture(scope="module", params=[nn.ReLU, nn.ReLU6], ids=["relu", "relu6"])
def source(request, folder):
    torch.manual_seed(0)
    path = write(Depthwise(request.param).eval(), folder / f"{request.param.__name__}.onnx")
    return apply_steps((Simplify(),), path, path.with_suffix(".simple.onnx"), calibration=None, **LIMITS)[-1].path


def in_int8(source, calibration, path, **values):
    steps = (msgspec.structs.replace(STEP, **values), FuseQLinear(), Compact())
    return apply_steps(steps, source, path, calibration=calibration, **LIMITS)[-1].path


def in_a_session(code, *arguments):
    """Run code that opens sessions in a subprocess; this process holds torch."""
    command = [sys.executable, "-c", IN_A_SESSION + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_an_equalized_network_computes_the_same_in_float(source, calibration, tmp_path):
    code = """
with tempfile.TemporaryDirectory() as folder:
    model = prepare(onnx.load(source), calibration, 48, Path(folder)).model
    print(equalize(model, lambda: read_calibration_batches(calibration, {"image": 0}, 48)))
    onnx.save(model, target)
"""
    assert int(in_a_session(code, source, calibration, tmp_path / "equal.onnx")) == 4
    images = some_images(64, seed=9)
    pairs = [run(source, images)], [run(tmp_path / "equal.onnx", images)]
    compare_arrays(*pairs, stage="equalized", tolerance=ROUNDING_TOLERANCE)


def test_equalization_removes_noise_if_channels_are_uneven(source, calibration, tmp_path):
    images = some_images(seed=9)
    expected = run(source, images)
    plain = run(in_int8(source, calibration, tmp_path / "plain.onnx"), images)
    equalized = run(in_int8(source, calibration, tmp_path / "equal.onnx", equalize=True), images)
    assert signal_to_noise_db(expected, equalized) > signal_to_noise_db(expected, plain) + CLEARLY_MORE_DB


def test_bias_correction_lowers_the_mean_error_of_every_channel(source, calibration, tmp_path):
    code = """
step = msgspec.json.decode(sys.argv[4], type=Quantize)
with tempfile.TemporaryDirectory() as folder:
    prepared = prepare(onnx.load(source), calibration, step.samples, Path(folder))
    quantized = quantize_prepared(prepared, step, prepared.ranges.find("minmax"))
    errors = measure_mean_errors(prepared.model, quantized, prepared.batches)
    before = biases(prepared.model)
    correct_biases(prepared.model, quantized, prepared.batches)
    after = biases(prepared.model)
    print(json.dumps([[list(errors[name]), list(before[name] - after[name])] for name in errors]))
"""
    step = msgspec.json.encode(STEP).decode()
    layers = json.loads(in_a_session(code, source, calibration, tmp_path, step))
    assert len(layers) == 5  # the first convolution reads one channel and stays float
    for error, taken_off in layers:
        left = np.abs(np.array(error) - taken_off)
        assert np.abs(error).max() > 0
        assert left.max() <= FLOAT_RATIO * np.abs(error).max()


def test_the_study_measures_both_and_chooses_the_clearly_better_one(source, calibration):
    study = study_sensitivity_of_file(STEP, source, calibration, 32, rank=False)
    names = {"equalization", "bias correction", "equalization and bias correction"}
    assert set(study.preparation_snr_db) == names
    assert study.preparation in {"equalization", "equalization and bias correction"}
    best = max(study.preparation_snr_db.values())
    assert study.preparation_snr_db[study.preparation] == best
    assert best > study.method_snr_db[study.method] + 0.5


def test_a_depthwise_convolution_gets_channels_of_one_range_up_to_the_largest_factor():
    peaks, weights = np.array([4.0, 1.0, 0.25, 0.0, 1e-6]), np.ones((5, 1, 3, 3), np.float32)
    assert compute_channel_factors(peaks, weights, None, 5).tolist() == [1.0, 0.25, 0.0625, 1.0, 1 / 32]


def test_a_wide_convolution_shares_the_unevenness_between_activations_and_weights():
    factors = compute_channel_factors(np.array([4.0, 1.0]), np.ones((3, 2, 1, 1), np.float32), None, 1)
    assert factors == pytest.approx([1.0, 0.5])  # ranges 4 and 2, weights 1 and 0.5


def test_below_a_clip_channels_are_only_scaled_up_and_keep_a_margin():
    peaks, weights = np.array([6.0, 5.0, 3.0, 0.6]), np.ones((4, 1, 3, 3), np.float32)
    factors = compute_channel_factors(peaks, weights, 6.0, 4)
    assert factors.tolist() == pytest.approx([1.0, 1.0, 0.625, 0.125])
    assert (peaks / factors).max() <= 6.0


class Shrunk(nn.Module):
    """Shrink an image of one channel, then two convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x):
        x = nn.functional.interpolate(x, (12, 12), mode="bilinear")
        return self.second(torch.relu(self.first(x)))


def test_an_image_of_few_channels_is_resized_in_float_before_a_float_convolution(tmp_path):
    source, calibration = tmp_path / "source.onnx", tmp_path / "calibration.npz"
    write(Shrunk(), source)
    write_batches(calibration, [{"image": some_images(4)}])
    done = apply_steps((Simplify(), STEP), source, tmp_path / "int8.onnx", calibration=calibration, **LIMITS)
    notes = [note for step in done for note in step.notes if "reads fewer than 4 channels" in note]
    assert len(notes) == 2
    graph = onnx.load(tmp_path / "int8.onnx").graph
    (resize,) = (node for node in graph.node if node.op_type == "Resize")
    assert resize.input[0] == graph.input[0].name
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) < 6
