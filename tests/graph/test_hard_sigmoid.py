"""Hard sigmoids between int8 nodes: fewer nodes, and the same values up to rounding."""

import onnx
import pytest
import torch
from onnx_running import run, signal_to_noise_db, some_images, write
from torch import nn

from edgeopt.bench.outputs import write_batches
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.facts import read_facts
from edgeopt.records.recipe import Compact, FuseQLinear, Quantize, Simplify

INT8 = Quantize(activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=64)
SIGNAL_TO_NOISE_DB = 25.0  # a network with ReLU reaches as much


class Gated(nn.Module):
    """A hard swish, and a channel gate that only a hard sigmoid reads."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(1, 8, 3, 1, 1), nn.Conv2d(8, 16, 3, 1, 1)
        self.gate, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 5)

    def forward(self, x):
        y = nn.functional.hardswish(3 * self.body(torch.relu(self.stem(x))))
        y = y * nn.functional.hardsigmoid(9 * self.gate(nn.functional.adaptive_avg_pool2d(y, 1)))
        return self.head(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1))


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_a_hard_swish_and_a_channel_gate_stay_in_int8(exporter, tmp_path):
    torch.manual_seed(0)
    source = write(Gated().eval(), tmp_path / "gated.onnx", exporter=exporter)
    calibration = tmp_path / "calibration.npz"
    write_batches(calibration, [{"image": some_images(64)}])
    steps = (Simplify(), INT8, FuseQLinear(), Compact())
    made = apply_steps(steps, source, tmp_path / "out.onnx", calibration=calibration, max_opset=20, max_ir=9)
    operators = read_facts(made[-1].path).operators
    assert "HardSigmoid" not in operators
    assert "HardSwish" not in operators
    assert operators["QLinearMul"] >= 2
    assert operators["QuantizeLinear"] == 1  # the image
    onnx.checker.check_model(onnx.load(made[-1].path), full_check=True)
    images = some_images(seed=5)
    assert signal_to_noise_db(run(source, images), run(made[-1].path, images)) > SIGNAL_TO_NOISE_DB
