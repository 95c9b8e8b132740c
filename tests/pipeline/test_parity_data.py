"""The inputs on which files are compared with their network: real ones, and edge inputs that the network takes."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onnx_running import run_all
from torch import nn
from torch.nn import functional

from edgeopt.bench.outputs import read_batches, write_batches
from edgeopt.errors import ParityError
from edgeopt.export import to_onnx
from edgeopt.export.parity import check_edge_outputs
from edgeopt.passes.network import Network
from edgeopt.pipeline.torch_process.parity_data import write_parity_data
from edgeopt.task.batch_axes import BatchAxes

TASK = SimpleNamespace(input_names=("x",), output_names=("y",), axes=BatchAxes((0,), (0,)))


class Shares(nn.Module):
    """Shares of a sum, which a small constant keeps from 0 / 0."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)

    def forward(self, x):
        y = torch.relu(self.layer(x))
        return y / (y.sum(-1, keepdim=True) + 1e-9)


class Logarithm(nn.Module):
    def forward(self, x):
        return torch.log(x)


class Cosine(nn.Module):
    """A cosine, whose small constant TorchScript's exporter puts in another place than PyTorch."""

    def forward(self, x):
        return functional.cosine_similarity(x, x.roll(1, 1), dim=1)


class CancelledVariance(nn.Module):
    """A norm whose variance is the mean of squares less the square of the mean, of values that hardly differ."""

    def forward(self, x):
        y = 30.0 + 0.1 * x
        variance = y.square().mean(1, keepdim=True) - y.mean(1, keepdim=True).square()
        return (y - y.mean(1, keepdim=True)) / (variance.clamp(0) + 1e-6).sqrt()


def parity_data(module, folder):
    torch.manual_seed(0)
    network = Network.trace(module, (torch.rand(4, 4),))
    write_batches(folder / "examples.npz", [{"x": np.random.RandomState(0).rand(8, 4).astype(np.float32)}])
    data = write_parity_data(network, TASK, folder / "examples.npz", folder / "inputs.npz", folder / "expected.npz")
    return network, data.edge_inputs


@pytest.mark.parametrize(
    ("make", "least", "most"), [(lambda: nn.Linear(4, 4), 0.0, 1e-6), (CancelledVariance, 1e-3, 0.5)]
)
def test_the_error_of_rounding_is_that_of_the_network_itself(tmp_path, make, least, most):
    network = Network.trace(make(), (torch.rand(4, 4),))
    write_batches(tmp_path / "examples.npz", [{"x": np.random.RandomState(0).rand(8, 4).astype(np.float32)}])
    paths = (tmp_path / name for name in ("examples.npz", "inputs.npz", "expected.npz"))
    (ratio,) = write_parity_data(network, TASK, *paths).rounding.values()
    assert least <= ratio <= most


class WithAnswer(CancelledVariance):
    """Also gives whole numbers and zeros, whose relative errors mean nothing."""

    def forward(self, x):
        y = super().forward(x)
        return y, y.argmax(1), x - x


def test_whole_numbers_and_zeros_have_no_error_of_rounding(tmp_path):
    task = SimpleNamespace(**{**vars(TASK), "output_names": ("y", "answer", "zero")})
    network = Network.trace(WithAnswer(), (torch.rand(4, 4),))
    write_batches(tmp_path / "examples.npz", [{"x": np.random.RandomState(0).rand(8, 4).astype(np.float32)}])
    paths = (tmp_path / name for name in ("examples.npz", "inputs.npz", "expected.npz"))
    assert write_parity_data(network, task, *paths).rounding.keys() == {"y"}


class WithTemperature(nn.Module):
    """Also gives a parameter, as calibrated classifiers return their temperature."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return x / self.temperature, self.temperature


def test_a_parameter_may_be_an_output(tmp_path):
    task = SimpleNamespace(**{**vars(TASK), "output_names": ("y", "temperature")})
    network = Network.trace(WithTemperature(), (torch.rand(4, 4),))
    write_batches(tmp_path / "examples.npz", [{"x": np.random.RandomState(0).rand(8, 4).astype(np.float32)}])
    paths = [tmp_path / name for name in ("examples.npz", "inputs.npz", "expected.npz")]
    write_parity_data(network, task, *paths)
    assert {float(batch["temperature"]) for batch in read_batches(paths[-1])} == {2.0}
    to_onnx.export(
        network.eval_module, network.example_inputs, tmp_path / "m.onnx", input_names=["x"],
        output_names=["y", "temperature"], max_opset=20, max_ir=10, exporter="torchscript", output_batch=(0, None),
    )  # fmt: skip
    assert float(run_all(tmp_path / "m.onnx", np.ones((3, 4), np.float32))["temperature"]) == 2.0


def test_only_edge_inputs_on_which_the_network_is_finite_are_kept(tmp_path):
    _, edges = parity_data(Logarithm(), tmp_path)
    assert [edge.kind for edge in edges] == [
        "every value is 1", "every value is 1e-9 of an example's", "every value is 1,000 times an example's",
    ]  # fmt: skip
    assert all(edge.steady for edge in edges)
    assert len(read_batches(tmp_path / "inputs.npz")) == len(read_batches(tmp_path / "expected.npz")) == 4


@pytest.mark.parametrize(
    ("make", "exporter", "kind", "fault"),
    [
        (Shares, "dynamo", "every value is 0", "values that are not finite if every value is 0, and the network's own"),
        (Cosine, "torchscript", "every value is 1e-9 of an example's", "is off by .* if every value is 1e-9"),
    ],
)
def test_a_small_constant_that_an_exporter_drops_or_moves_is_found(tmp_path, monkeypatch, make, exporter, kind, fault):
    network, edges = parity_data(make(), tmp_path)
    monkeypatch.setattr(to_onnx, "exact_constants", contextlib.nullcontext)  # as onnxscript is
    path = tmp_path / "m.onnx"
    names = {"input_names": ["x"], "output_names": ["y"], "exporter": exporter}
    to_onnx.export(network.eval_module, network.example_inputs, path, max_opset=20, max_ir=10, **names)
    batches, expected = read_batches(tmp_path / "inputs.npz"), read_batches(tmp_path / "expected.npz")
    index = [edge.kind for edge in edges].index(kind)
    found = list(run_all(path, batches[1 + index]["x"]).values())
    with pytest.raises(ParityError, match=fault):
        check_edge_outputs(list(expected[1 + index].values()), found, edges[index], stage="exported", tolerance=1e-3)
