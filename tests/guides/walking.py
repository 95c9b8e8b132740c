"""What a build does with a task, in short: its data, its score, a trace, one training step, a proven cut, a file."""

import numpy as np
import onnxruntime
import torch

from edgeopt.export.to_onnx import export
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.proof import verify_pruning
from edgeopt.passes.prune.rewrite import prune
from edgeopt.pipeline.judged_sizes import parity_sizes, resize_arrays
from edgeopt.task.dynamic_axes import graph_axes
from edgeopt.task.values import to_numpy

MAX_ERROR = 1e-4  # float32 sums in another order, of values around 1


def score_of(task):
    """Return the score of the trained model, and one score per sample or None, as a build computes them."""
    pairs = []
    for inputs, targets in task.eval_batches():
        with task.interface.flat_forward(task.model) as model, torch.no_grad():
            outputs = model(*inputs)
        pairs.append((task.nest_outputs([value.numpy() for value in outputs]), to_numpy(targets)))
    return task.score(pairs), task.sample_scores(pairs)


def trace(task):
    with task.interface.flat_forward(task.model) as model:
        return Network.trace(model, task.example_inputs, graph_axes(task.trace_dims))


def train_step(task, network):
    """Return the losses of one batch: the task's own and the distillation's (None if it has none)."""
    inputs, targets = next(iter(task.train_epoch(0)))
    outputs = network.train_module(*inputs)
    with torch.no_grad():
        taught = network.eval_module(*inputs)
    losses = [task.loss(outputs, targets), task.distill_loss(outputs, taught, targets)]
    for loss in losses:
        if loss is not None:
            assert torch.isfinite(loss)
            loss.backward(retain_graph=True)
    return losses


def halve(task, network):
    """Return the network with half of every group of channels, proven."""
    groups = analyse(network)
    keep = {name: range(group.channels // 2) for name, group in groups.free.items()}
    assert keep
    pruned = prune(network, groups, keep)
    verify_pruning(network, groups, keep, pruned, task.example_inputs)
    return pruned


def check_file(task, network, path, exporter="dynamo"):
    """Export a network, and compare the file with it at every size that a build would."""
    export(
        network.eval_module, task.example_inputs, path, input_names=task.input_names, output_names=task.output_names,
        max_opset=20, max_ir=9, exporter=exporter, axes=graph_axes(task.interface.graph_dims),
        output_batch=task.axes.outputs,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {value.name for value in session.get_inputs()} == set(task.input_names)
    assert [value.name for value in session.get_outputs()] == list(task.output_names)
    example = dict(zip(task.input_names, map(to_numpy, task.example_inputs), strict=True))
    for sizes in parity_sizes(task, []):
        arrays = resize_arrays(task, example, sizes)
        with torch.no_grad():
            expected = network.eval_module(*map(torch.from_numpy, arrays.values()))
        for found, wanted in zip(session.run(None, arrays), expected, strict=True):
            assert found.shape == tuple(wanted.shape)
            assert np.allclose(found, wanted.numpy(), atol=MAX_ERROR * max(1.0, float(wanted.abs().max())))


def walk(task, folder, exporter="dynamo"):
    """Take a task from its data to a pruned file; return the score of the trained model."""
    score, per_sample = score_of(task)
    if per_sample is not None:
        assert abs(per_sample.mean() - score) <= MAX_ERROR * abs(score)
    network = trace(task)
    train_step(task, network)
    check_file(task, halve(task, network), folder / "pruned.onnx", exporter)
    return score
