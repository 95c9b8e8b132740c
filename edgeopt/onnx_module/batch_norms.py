"""``restore_batch_norms``: a network whose batch norms were folded into its convolutions gets them back to be trained.

Exporters fold them. The file computes the same, but once channels are cut, nothing brings the values between layers
back to their sizes while it trains. Each convolution that may have had a batch norm gets one with the mean and
the variance of its own outputs, and with the scale and the bias that undo it. In inference it changes nothing, and an
export folds it again.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from edgeopt.onnx_module.module import OnnxModule
from edgeopt.onnx_module.node import Node
from edgeopt.onnx_module.operators import operator_for
from edgeopt.onnx_module.scope import Step

_EPSILON = 1e-5
_OPSET = 15
_WEIGHTED = ("Conv", "ConvTranspose", "Linear", "LSTM", "GRU", "RNN")
_NORM = "BatchNormalization"
_NORMS = (_NORM, "InstanceNormalization", "GroupNormalization", "LayerNormalization", "LRN")
_ENOUGH_VALUES = 5000
"""Of a channel: more change its mean and variance little."""

Statistics = Mapping[str, Tensor]
"""By the output of a convolution: the means of its channels, and below them the variances: [2, channels]."""


def measure_convolutions(module: OnnxModule, batches: Iterable[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """Return the statistics of the convolutions that may have had a batch norm.

    Those have a bias and more than one position in every sample, stand next to no norm, and are not a last layer:
    an output is reached only through further weights.

    Args:
        module: In inference mode.
        batches: Inputs in order, of the smallest sample first; as many are run as the statistics need.
    """
    names = _without_norms(module)
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(names, 0)
    single: set[str] = set()
    dtypes: dict[str, torch.dtype] = {}
    for inputs in batches if names else ():
        for name, values in module.compute_values(inputs, names).items():
            dtypes[name] = values.dtype
            single |= {name} if math.prod(values.shape[2:]) == 1 else set()
            by_channel = values.transpose(0, 1).flatten(1).double()
            counts[name] += by_channel.shape[1]
            sums[name] = sums.get(name, torch.zeros(())) + torch.stack([by_channel.sum(1), (by_channel**2).sum(1)])
        if min(counts.values()) >= _ENOUGH_VALUES:
            break
    found = {name: total / counts[name] for name, total in sums.items() if name not in single}
    return {
        name: torch.stack([mean, (square - mean**2).clamp_min(0)]).to(dtypes[name])
        for name, (mean, square) in found.items()
    }


def restore_batch_norms(module: OnnxModule, statistics: Statistics) -> None:
    """Put a batch norm that changes nothing after each convolution with statistics.

    Args:
        module: Changed in place.
        statistics: Of ``measure_convolutions``.
    """
    steps: list[Step] = []
    taken = {name for step in module.steps for name in (*step.node.inputs, *step.node.outputs)}
    for step in module.steps:
        node = step.node
        found = statistics.get(node.outputs[0]) if node.operator == "Conv" else None
        if found is None:
            steps.append(step)
            continue
        norm = _norm(f"{node.outputs[0]}.restored_norm", node.outputs[0], taken)
        taken |= set(norm.node.inputs)
        steps += [Step(replace(node, outputs=norm.node.inputs[:1]), step.operator), norm]
        mean, variance = found
        values = (torch.sqrt(variance + _EPSILON), mean.clone(), mean, variance)
        file_names = module.file_names_of(node.inputs[1])
        for index, (name, value) in enumerate(zip(norm.node.inputs[1:], values, strict=True)):
            module.store(name, value, is_trained=index < 2, file_names=file_names)
    module.steps = tuple(steps)


def _norm(prefix: str, output: str, taken: Collection[str]) -> Step:
    """Return a batch norm whose inputs have names that nothing has yet."""
    parts = ("input", "scale", "bias", "mean", "variance")
    while any(f"{prefix}.{part}" in taken for part in parts):
        prefix += "_"
    node = Node(
        operator=_NORM, inputs=tuple(f"{prefix}.{part}" for part in parts), outputs=(output,), name=prefix,
        opset=_OPSET, attributes={"epsilon": _EPSILON},
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
        if node.operator != "Conv" or len(node.inputs) < 3 or not node.inputs[2]:
            continue
        if any(len(readers[name]) > 1 or not module.is_stored(name) for name in node.inputs[1:3]):
            continue
        before = makers.get(node.inputs[0])
        near = [*readers.get(node.outputs[0], ()), *([before] if before else [])]
        if leads_to_weights[node.outputs[0]] and all(one.operator not in _NORMS for one in near):
            found.append(node.outputs[0])
    return found
