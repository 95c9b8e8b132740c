"""What TorchScript would record as a constant, or refuse, in a graph of ``torch.export``."""

import numpy as np
import pytest
import torch
from onnx_running import run
from torch import nn

from edgeopt.export.parity import compare_arrays
from edgeopt.export.to_onnx import export
from edgeopt.passes.network import Network
from edgeopt.task.dynamic_axes import DynamicAxis

TOLERANCE = 1e-4  # as for any export; a transform of 64 samples adds in another order
SAMPLES = 640


class Spectrum(nn.Module):
    """Magnitudes of a short-time Fourier transform, as front ends of speech networks have them."""

    def __init__(self, read):
        super().__init__()
        self.register_buffer("window", torch.hann_window(64))
        self.read = read

    def forward(self, x):
        return self.read(torch.stft(x, 64, 32, window=self.window, return_complex=True))


class Recognizer(nn.Module):
    """A transform, which dynamo exports, before a recurrent layer of any length, which only TorchScript exports."""

    def __init__(self):
        super().__init__()
        self.spectrum = Spectrum(lambda x: torch.log(x.abs() ** 2 + 1e-3).transpose(1, 2))
        self.layer = nn.GRU(33, 8, batch_first=True, bidirectional=True)

    def forward(self, x):
        return self.layer(self.spectrum(x))[0]


class SizedByItsInput(nn.Module):
    """Makes tensors of the sizes of its input."""

    def forward(self, x):
        numbers = torch.arange(x.shape[1]) + torch.arange(1, x.shape[1] + 1) + torch.arange(0, 2 * x.shape[1], 2)
        base = torch.zeros(x.shape[0], x.shape[1]) + torch.ones(x.shape[0], 1) + torch.full((1, x.shape[1]), 0.5)
        return x + base + numbers + numbers.unsqueeze(0).repeat(x.shape[0], 1)


def as_graph(network, example):
    axes = ({0: DynamicAxis("batch"), 1: DynamicAxis("time", 200, 4000)},)
    return Network.trace(network, (example,), axes).eval_module


@pytest.mark.parametrize(
    "network",
    [
        SizedByItsInput(),
        Spectrum(lambda x: x.abs()),
        Spectrum(lambda x: x.angle().cos() * x.abs()),
        Spectrum(lambda x: torch.view_as_real(x).square().sum(-1)),
        Spectrum(lambda x: torch.view_as_real(x[:, 1:-1].transpose(-1, -2)).flatten(2)),
        Spectrum(lambda x: x.permute(2, 0, 1)[0].abs() + x.select(-1, 3).abs()),
        Spectrum(lambda x: x.reshape(x.shape[0], 1, 33, x.shape[2]).abs()),
        Recognizer(),
    ],
    ids=["sizes", "magnitudes", "phases", "powers", "bins", "frames", "reshaped", "recognizer"],
)
def test_torchscript_writes_a_file_that_computes_the_same_at_other_sizes(tmp_path, network):
    torch.manual_seed(0)
    network.eval()
    graph = as_graph(network, torch.randn(2, SAMPLES))
    axes = ({0: "batch", 1: "time"},)
    options = {"input_names": ["x"], "output_names": ["y"], "max_opset": 20, "max_ir": 10, "exporter": "torchscript"}
    file = export(graph, (torch.randn(2, SAMPLES),), tmp_path / "m.onnx", axes=axes, **options)
    for count, samples in ((2, SAMPLES), (3, 960), (1, 1600)):
        x = torch.randn(count, samples)
        with torch.no_grad():
            expected = np.asarray(network(x))
        compare_arrays([expected], [run(file.path, x.numpy())], stage="exported", tolerance=TOLERANCE)
