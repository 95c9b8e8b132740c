"""Constants that float16 and int8 cannot hold: the nodes around them stay float32."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx_running import run
from torch import nn

from edgeopt.bench.outputs import write_batches
from edgeopt.errors import StepError
from edgeopt.export.to_onnx import export
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.facts import read_facts
from edgeopt.records.recipe import Float16, Quantize, Simplify

HALF_TOLERANCE = 5e-3  # of float16's 11 bits, over three layers
INT8 = Quantize(activations="uint8", per_channel=True, reduce_range=False, calibration="minmax", samples=64)


class Normalized(nn.Module):
    """Divides by a root mean square, and by a sum, each kept from zero by a small constant."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4, bias=False)
        nn.init.zeros_(self.first.bias)

    def forward(self, image):
        y = self.first(image)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-12)
        z = torch.relu(self.last(y))
        return z / (z.sum(-1, keepdim=True) + 1e-9)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    network, folder = Normalized().eval(), tmp_path_factory.mktemp("normalized")
    inputs = {"input_names": ["image"], "output_names": ["shares"], "exporter": "torchscript"}
    export(network, (torch.randn(2, 8),), folder / "m.onnx", max_opset=17, max_ir=9, **inputs)
    images = np.random.RandomState(0).normal(size=(64, 8)).astype(np.float32)
    write_batches(folder / "calibration.npz", [{"image": images}])
    return network, folder / "m.onnx", images


@pytest.mark.parametrize("step", [Float16(), INT8], ids=["float16", "int8"])
def test_a_division_by_a_sum_and_a_small_constant_stays_finite_and_right(tmp_path, source, step):
    network, path, images = source
    target = tmp_path / "out.onnx"
    apply_steps((Simplify(), step), path, target, calibration=path.parent / "calibration.npz", max_opset=17, max_ir=9)
    probes = np.concatenate([np.zeros((2, 8)), images[:2] * 1e-4, images[:4]]).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(probes)).numpy()
    found = run(target, probes)
    assert np.isfinite(found).all()
    if isinstance(step, Float16):
        np.testing.assert_allclose(found, expected, atol=HALF_TOLERANCE)
        operators = read_facts(target).operators
        assert operators["Cast"] <= 8
        stored = [numpy_helper.to_array(tensor) for tensor in onnx.load(target).graph.initializer]
        assert {np.float32(1e-9), np.float32(1e-12)} <= {values.ravel()[0] for values in stored if values.size == 1}
        assert np.dtype(np.float16) in {values.dtype for values in stored}


def test_a_range_that_is_not_finite_names_its_value_and_operator(tmp_path):
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,2] y) '
        "<float[4,2] w = {1,2,3,4,5,6,7,8}> { logs = Log(x) z = Relu(logs) y = MatMul(z, w) }"
    )
    onnx.save(graph, tmp_path / "m.onnx")
    write_batches(tmp_path / "zeros.npz", [{"x": np.zeros((8, 4), np.float32)}])
    with pytest.raises(StepError, match=r"the values of 'logs' \(output of Log\) reach from -inf to -inf.*clamp"):
        apply_steps(
            (INT8,), tmp_path / "m.onnx", tmp_path / "out.onnx", calibration=tmp_path / "zeros.npz", max_opset=17,
            max_ir=9,
        )  # fmt: skip
