"""``build_group_table``: a network, its groups and their scores go in, the record that the search reads comes out."""

from __future__ import annotations

import math
import operator
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, fx

from edgeopt.passes.aten import aten
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import Group, Groups
from edgeopt.passes.prune.depth import BranchLoss, inner_branches
from edgeopt.passes.prune.interpret import Shapes, read_name, shapes_of, tensor_names
from edgeopt.passes.prune.labels import Integers
from edgeopt.records.groups import Branch, ChannelGroup, Dimension, GroupTable, WeightShape


def build_group_table(
    network: Network,
    groups: Groups,
    scores: Mapping[str, npt.NDArray[np.float64]],
    example_inputs: Sequence[Tensor] | None = None,
    losses: Mapping[str, BranchLoss] | None = None,
) -> GroupTable:
    """Build the table from which the search decides widths.

    Args:
        network: The network.
        groups: The result of ``analyse``.
        scores: The result of ``score_channels``.
        example_inputs: Inputs whose sizes set how often a weight is used; None for the inputs of the trace.
        losses: The result of ``measure_branches``; branches without one are not offered.
    """
    inputs = network.example_inputs if example_inputs is None else tuple(example_inputs)
    shapes = network.shapes() if example_inputs is None else shapes_of(network.eval_module, inputs)
    uses = _count_uses(network.eval_module, shapes, inputs[0].shape[0])
    scaled = _count_scaled_values(network.eval_module, shapes, inputs[0].shape[0])
    convolutions = _convolution_weights(network.eval_module)
    outputs = _output_dims(network.eval_module)
    owned: dict[tuple[str, int], dict[str, int]] = {}
    for group in groups.groups.values():
        for slot, indices in group.slots.items():
            owned.setdefault(slot, {})[group.name] = indices.shape[1]
    tensors = []
    for name, parameter in network.parameters().items():
        dims = []
        for dim, size in enumerate(parameter.shape):
            per_channel = owned.get((name, dim), {})
            moving = sum(count * groups.groups[group].channels for group, count in per_channel.items())
            dims.append(Dimension(fixed=size - moving, per_channel=per_channel))
        tensors.append(
            WeightShape(
                name=name,
                dims=tuple(dims),
                macs_per_weight=uses.get(name, 0.0),
                values_per_weight=scaled[name],
                output_dim=0 if parameter.ndim == 1 else outputs.get(name),
            )
        )
    return GroupTable(
        groups=tuple(
            ChannelGroup(
                name=group.name,
                channels=group.channels,
                importance=tuple(float(score) for score in scores.get(group.name, ())),
                frozen_by=None if group.frozen_by is None else str(group.frozen_by),
                unit=find_unit(group, uses),
                least=group.least,
                in_convolution=not convolutions.isdisjoint(name for name, _ in group.slots),
            )
            for group in groups.groups.values()
        ),
        tensors=tuple(tensors),
        branches=_measured_branches(network, groups, losses or {}),
    )


def _measured_branches(network: Network, groups: Groups, losses: Mapping[str, BranchLoss]) -> tuple[Branch, ...]:
    found = inner_branches(network, groups) if losses else []
    return tuple(
        Branch(
            name=branch.name,
            groups=names,
            frozen_groups=frozen,
            tensors=tuple(sorted(branch.tensors)),
            loss=losses[branch.name].without,
            half_loss=losses[branch.name].half,
        )
        for branch, names, frozen in found
        if branch.name in losses
    )


def find_unit(group: Group, uses: Mapping[str, float]) -> int:
    """Return how many neighbouring indices each channel has in the weights that are multiplied.

    A head of depth 32 has runs of 32 in the projections. A channel that is flattened with its 49 positions has a run of
    49 in the linear layer after it, but of 1 in the convolution before it, so 1 is its unit.

    Args:
        group: The channels.
        uses: Multiplications by each number of a weight, by the weight's name; 0 for biases and norms.
    """
    multiplied = {slot: indices for slot, indices in group.slots.items() if uses.get(slot[0], 0)}
    return math.gcd(*(_run_length(indices) for indices in (multiplied or group.slots).values()))


def _run_length(indices: Integers) -> int:
    """Return the greatest common divisor of the lengths of runs of neighbouring indices, in rows of indices."""
    ends = np.diff(np.sort(indices, axis=1), axis=1) != 1
    lengths = [np.diff(np.flatnonzero(np.concatenate([[True], row, [True]]))) for row in ends]
    return int(np.gcd.reduce(np.concatenate(lengths)))


def _convolution_weights(module: fx.GraphModule) -> set[str]:
    names = tensor_names(module)
    return {
        names[str(node.args[1].target)]
        for node in module.graph.nodes
        if getattr(node.target, "overloadpacket", None) in (*_CONVOLUTIONS, *_TRANSPOSED_CONVOLUTIONS)
        and node.args[1].op == "get_attr"
    }


def _output_dims(module: fx.GraphModule) -> dict[str, int]:
    """Return for each weight of a known layer the dimension of its output channels, by the weight's name."""
    names = tensor_names(module)
    found = {}
    for node in module.graph.nodes:
        packet = getattr(node.target, "overloadpacket", None)
        weight, dim = _OUTPUT_DIMS.get(packet, (-1, 0))
        if weight >= 0 and node.args[weight].op == "get_attr":
            found[names[str(node.args[weight].target)]] = dim
    return found


def _count_uses(module: fx.GraphModule, shapes: Shapes, batch: int) -> dict[str, float]:
    """Count, for each weight, how often one sample multiplies each of its numbers: the mean, if parts of it differ."""
    names = tensor_names(module)
    uses: dict[str, Fraction] = defaultdict(Fraction)
    for node in module.graph.nodes:
        packet = getattr(node.target, "overloadpacket", None)
        shape = shapes[node.name]
        if packet in _CONVOLUTIONS:
            weight, count = node.args[1], math.prod(shape) // shape[1]
        elif packet in _TRANSPOSED_CONVOLUTIONS:
            shape = shapes[node.args[0].name]
            weight, count = node.args[1], math.prod(shape) // shape[1]
        elif packet is aten.linear:
            weight, count = node.args[1], math.prod(shape[:-1])
        elif packet in _MATRIX_PRODUCTS:
            left, right = node.args[-2:]
            weight = left if _whole_weight(left) is not None else right
            count = math.prod(shape) * shapes[left.name][-1] // math.prod(shapes[weight.name])
        else:
            continue
        if (whole := _whole_weight(weight)) is not None:
            part = Fraction(math.prod(shapes[weight.name]), math.prod(shapes[whole.name]))
            uses[names[str(whole.target)]] += count // batch * part
    return {name: float(count) for name, count in uses.items()}


def _whole_weight(node: Any) -> fx.Node | None:
    """Return the tensor that a node reads, or reads a part or another view of; None if it is computed."""
    while isinstance(node, fx.Node) and node.op != "get_attr":
        is_view = node.target is operator.getitem or getattr(node.target, "overloadpacket", None) in _VIEWS
        node = node.args[0] if is_view else None
    return node if isinstance(node, fx.Node) else None


def _count_scaled_values(module: fx.GraphModule, shapes: Shapes, batch: int) -> Counter[str]:
    """Count, for each weight of a batch norm, the values of one sample that each of its numbers scales."""
    names = tensor_names(module)
    scaled: Counter[str] = Counter()
    for node in module.graph.nodes:
        if getattr(node.target, "overloadpacket", None) is aten.batch_norm:
            shape, name = shapes[node.name], read_name(names, node.args[1])
            if name is not None:
                scaled[name] += math.prod(shape) // shape[1] // batch
    return scaled


_CONVOLUTIONS: tuple[Any, ...] = (aten.conv1d, aten.conv2d, aten.conv3d)
_TRANSPOSED_CONVOLUTIONS: tuple[Any, ...] = (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
_MATRIX_PRODUCTS: tuple[Any, ...] = (aten.matmul, aten.mm, aten.bmm, aten.addmm)
_VIEWS = frozenset({
    aten.t, aten.transpose, aten.permute, aten.view, aten.reshape, aten.flatten, aten.unflatten, aten.squeeze,
    aten.unsqueeze, aten.contiguous, aten.clone, aten.slice, aten.narrow, aten.select, aten.split,
    aten.split_with_sizes, aten.chunk, aten.tensor_split, aten.unbind, aten.alias,
})  # fmt: skip
"""Operators whose output has numbers of their first input, each once."""
_OUTPUT_DIMS: dict[Any, tuple[int, int]] = {
    **dict.fromkeys((*_CONVOLUTIONS, aten.linear), (1, 0)),
    **dict.fromkeys(_TRANSPOSED_CONVOLUTIONS, (1, 1)),
    **dict.fromkeys((aten.matmul, aten.mm, aten.bmm), (1, -1)),
    aten.addmm: (2, -1),
    aten.embedding: (0, 1),
}
"""Operator to the position of its weight, and the dimension of the weight's output channels."""
