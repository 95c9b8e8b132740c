"""``restore_batch_norms``: a network whose batch norms were folded into its convolutions gets them back to be trained.

Exporters fold them. The file computes the same, but it trains far worse: once channels are cut, nothing brings the
values between layers back to their sizes. Each convolution that may have had a batch norm gets one with the mean and
the variance of its own outputs, and with the scale and the bias that undo it. In inference it changes nothing, and an
export folds it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from edgeopt.onnx_module.module import OnnxModule
from edgeopt.onnx_module.node import Node
from edgeopt.onnx_module.operators import operator_for
from edgeopt.onnx_module.scope import Step

_EPSILON = 1e-5
_OPSET = 15
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_WEIGHTED = (*_CONVOLUTIONS, "Linear", "LSTM", "GRU", "RNN")
_NORM = "BatchNormalization"

Statistics = Mapping[str, Tensor]
"""By the output of a convolution: the means of its channels, and below them the variances: [2, channels]."""


def measure_convolutions(module: OnnxModule, batches: Iterable[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """Return the statistics of the convolutions that may have had a batch norm.

    Those have a bias and more than one position in every sample, stand next to no batch norm, and are not a last layer:
    an output is reached only through further weights.

    Args:
        module: In inference mode.
        batches: Inputs in order.
    """
    names = _without_norms(module)
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(names, 0)
    single: set[str] = set()
    for inputs in batches if names else ():
        for name, values in module.compute_values(inputs, names).items():
            single |= {name} if math.prod(values.shape[2:]) == 1 else set()
            by_channel = values.transpose(0, 1).flatten(1).double()
            counts[name] += by_channel.shape[1]
            sums[name] = sums.get(name, torch.zeros(())) + torch.stack([by_channel.sum(1), (by_channel**2).sum(1)])
    found = {name: total / counts[name] for name, total in sums.items() if name not in single}
    return {
        name: torch.stack([mean, (square - mean**2).clamp_min(0)]).float() for name, (mean, square) in found.items()
    }


def restore_batch_norms(module: OnnxModule, statistics: Statistics) -> None:
    """Put a batch norm that changes nothing after each convolution with statistics.

    Args:
        module: Changed in place.
        statistics: Of ``measure_convolutions``.
    """
    steps: list[Step] = []
    for step in module.steps:
        node = step.node
        found = statistics.get(node.outputs[0]) if node.operator in _CONVOLUTIONS else None
        if found is None:
            steps.append(step)
            continue
        name, plain = node.outputs[0], f"{node.outputs[0]}.plain"
        steps += [Step(replace(node, outputs=(plain,)), step.operator), _norm(plain, name)]
        mean, variance = found
        file_names = module.file_names_of(node.inputs[1])
        module.store(f"{name}.scale", torch.sqrt(variance + _EPSILON), is_trained=True, file_names=file_names)
        module.store(f"{name}.bias", mean.clone(), is_trained=True, file_names=file_names)
        module.store(f"{name}.mean", mean, is_trained=False, file_names=file_names)
        module.store(f"{name}.variance", variance, is_trained=False, file_names=file_names)
    module.steps = tuple(steps)


def _norm(source: str, name: str) -> Step:
    inputs = (source, *(f"{name}.{part}" for part in ("scale", "bias", "mean", "variance")))
    node = Node(
        operator=_NORM, inputs=inputs, outputs=(name,), name=f"{name}.norm", opset=_OPSET,
        attributes={"epsilon": _EPSILON},
    )  # fmt: skip
    operator = operator_for(node)
    assert operator is not None
    return Step(node, operator)


def _without_norms(module: OnnxModule) -> list[str]:
    """Return the outputs of convolutions with a bias, next to no batch norm, with weights before each output."""
    nodes = [step.node for step in module.steps]
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    makers = {name: node for node in nodes for name in node.outputs}
    leads_to_weights: dict[str, bool] = {}
    for node in reversed(nodes):
        for name in node.outputs:
            leads_to_weights[name] = name not in module.outputs and all(
                reader.operator in _WEIGHTED or all(leads_to_weights[one] for one in reader.outputs if one)
                for reader in readers.get(name, ())
            )
    found = []
    for node in nodes:
        if node.operator not in _CONVOLUTIONS or len(node.inputs) < 3 or not node.inputs[2]:
            continue
        before = makers.get(node.inputs[0])
        near = [*readers.get(node.outputs[0], ()), *([before] if before else [])]
        if leads_to_weights[node.outputs[0]] and all(one.operator != _NORM for one in near):
            found.append(node.outputs[0])
    return found
