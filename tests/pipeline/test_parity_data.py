"""The inputs on which files are compared with their network: real ones, and edge inputs that the network takes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onnx_running import run_all
from torch import nn

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


def parity_data(module, folder):
    torch.manual_seed(0)
    network = Network.trace(module, (torch.rand(4, 4),))
    write_batches(folder / "examples.npz", [{"x": np.random.RandomState(0).rand(8, 4).astype(np.float32)}])
    edges = write_parity_data(network, TASK, folder / "examples.npz", folder / "inputs.npz", folder / "expected.npz")
    return network, edges


def test_only_edge_inputs_on_which_the_network_is_finite_are_kept(tmp_path):
    _, edges = parity_data(Logarithm(), tmp_path)
    assert [edge.kind for edge in edges] == [
        "every value is 1", "every value is 1e-9 of an example's", "every value is 1,000 times an example's",
    ]  # fmt: skip
    assert all(edge.steady for edge in edges)
    assert len(read_batches(tmp_path / "inputs.npz")) == len(read_batches(tmp_path / "expected.npz")) == 4


def test_a_dropped_epsilon_is_found(tmp_path, monkeypatch):
    network, edges = parity_data(Shares(), tmp_path)
    monkeypatch.setattr(to_onnx, "exact_constants", to_onnx.contextlib.nullcontext)  # as onnxscript is
    path = tmp_path / "m.onnx"
    to_onnx.export(
        network.eval_module, network.example_inputs, path, input_names=["x"], output_names=["y"], max_opset=20,
        max_ir=10,
    )  # fmt: skip
    batches, expected = read_batches(tmp_path / "inputs.npz"), read_batches(tmp_path / "expected.npz")
    assert edges[0].kind == "every value is 0"
    with pytest.raises(ParityError, match="not finite if every value is 0, and the network's own are right there"):
        check_edge_outputs(
            list(expected[1].values()), list(run_all(path, batches[1]["x"]).values()), edges[0], stage="exported",
            tolerance=1e-3,
        )  # fmt: skip
