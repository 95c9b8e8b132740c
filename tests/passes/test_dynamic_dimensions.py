"""Networks with dynamic dimensions, from the task to a pruned file that is right at three sizes."""

import time

import numpy as np
import onnxruntime
import pytest
import torch
from dynamic_tasks import SceneTask, StreamTask, TextTask
from torch import nn

from edgeopt.errors import StepError
from edgeopt.export.to_onnx import export
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.proof import verify_pruning
from edgeopt.passes.prune.rewrite import prune
from edgeopt.pipeline.judged_sizes import parity_sizes, resize_arrays
from edgeopt.task import CheckedTask
from edgeopt.task.dynamic_axes import graph_axes
from edgeopt.task.values import to_numpy

MAX_ERROR = 1e-4


def without_training(task):
    """A task whose network keeps its random weights."""
    task.build_model = {TextTask: text, SceneTask: scene, StreamTask: stream}[type(task)]
    return CheckedTask(task, "tests")


def text():
    from dynamic_tasks import Encoder

    return Encoder()


def scene():
    from dynamic_tasks import Segmenter

    return Segmenter()


def stream():
    from dynamic_tasks import Keyword

    return Keyword()


def traced(task):
    axes = graph_axes(task.trace_dims)
    with task.interface.flat_forward(task.model):
        return Network.trace(task.model, task.example_inputs, axes)


@pytest.mark.parametrize(
    ("kind", "exporter"), [(TextTask, "dynamo"), (SceneTask, "dynamo"), (StreamTask, "torchscript")]
)
def test_a_pruned_file_is_right_at_three_sizes(kind, exporter, tmp_path):
    torch.manual_seed(0)
    task = without_training(kind())
    network = traced(task)
    groups = analyse(network)
    keep = {name: range(group.channels // 2) for name, group in groups.free.items()}
    assert keep
    pruned = prune(network, groups, keep)
    verify_pruning(network, groups, keep, pruned, task.example_inputs)
    export(
        pruned.eval_module, task.example_inputs, tmp_path / "m.onnx", input_names=task.input_names,
        output_names=task.output_names, max_opset=20, max_ir=9, exporter=exporter,
        axes=graph_axes(task.interface.graph_dims), output_batch=task.axes.outputs,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    example = dict(zip(task.input_names, map(to_numpy, task.example_inputs), strict=True))
    sizes = parity_sizes(task, [])
    assert len(sizes) == 3
    for one in sizes:
        arrays = resize_arrays(task, example, one)
        with torch.no_grad():
            expected = pruned.eval_module(*map(torch.from_numpy, arrays.values()))
        for found, wanted in zip(session.run(None, arrays), expected, strict=True):
            assert found.shape == tuple(wanted.shape)
            assert np.abs(found - wanted.numpy()).max() <= MAX_ERROR * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}])
def test_recurrent_layers_take_sequences_of_any_length(kind, options):
    layer = getattr(nn, kind)(6, 5, **options).eval()
    order = ("batch", "time") if options.get("batch_first") else ("time", "batch")
    network = Network.trace(layer, (torch.randn(4, 3, 6),), (dict(enumerate(order)),))
    x = torch.randn(9, 2, 6)
    assert torch.allclose(network.eval_module(x)[0], layer(x)[0], atol=1e-6)


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_a_long_sequence_of_a_fixed_length_is_one_operator_and_not_run_step_by_step(kind):
    layer = getattr(nn, kind)(6, 5, num_layers=2, batch_first=True).eval()
    start = time.perf_counter()
    network = Network.trace(layer, (torch.randn(4, 1500, 6),))
    assert time.perf_counter() - start < 60  # step by step: several minutes
    x = torch.randn(3, 1500, 6)
    assert torch.allclose(network.eval_module(x)[0], layer(x)[0], atol=1e-6)


class FixedSize(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4 * 8, 2)

    def forward(self, x):
        return self.head(x.reshape(x.shape[0], 4 * 8))


def test_a_network_of_one_size_cannot_have_a_dynamic_one():
    with pytest.raises(StepError, match=r"cannot export FixedSize with dynamic dimensions \(length\)"):
        Network.trace(FixedSize(), (torch.randn(3, 4, 8),), ({0: "batch", 2: "length"},))


class PositionTable(nn.Module):
    """Adds the first rows of a table to a sequence: as many as the sequence is long."""

    def __init__(self, take):
        super().__init__()
        self.take, self.head = take, nn.Linear(6, 2)
        self.table = nn.Parameter(torch.randn(32, 6))
        self.register_buffer("scales", torch.rand(1, 32))

    def forward(self, x):
        return self.head(torch.relu((x + self.take(self.table, x.shape[1])) * self.scales[:, : x.shape[1], None]))


@pytest.mark.parametrize(
    "take",
    [
        lambda table, length: table[:length],
        lambda table, length: table[32 - length :],
        lambda table, length: table.narrow(0, 0, length),
        lambda table, length: table[length][None],
    ],
)
def test_rows_that_only_longer_sequences_use_are_kept(take):
    example, longest = torch.randn(2, 5, 6), torch.randn(2, 31, 6)
    model = PositionTable(take).eval()
    network = Network.trace(model, (example,), ({0: "batch", 1: "length"},))
    groups = analyse(network)
    assert not [name for name in groups.free if "table:0" in name or "scales:1" in name]
    keep = {name: range(group.channels // 2) for name, group in groups.free.items()}
    pruned = prune(network, groups, keep)
    assert pruned.eval_module(longest).shape == (2, 31, 2)
