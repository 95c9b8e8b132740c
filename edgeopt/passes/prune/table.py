"""``build_group_table``: a network, its groups and their scores go in, the record that the search reads comes out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, fx

from edgeopt.passes.aten import aten
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import Groups
from edgeopt.passes.prune.interpret import Shapes, read_name, shapes_of, tensor_names
from edgeopt.records.groups import ChannelGroup, Dimension, GroupTable, WeightShape


def build_group_table(
    network: Network,
    groups: Groups,
    scores: Mapping[str, npt.NDArray[np.float64]],
    example_inputs: Sequence[Tensor] | None = None,
) -> GroupTable:
    """Build the table from which the search decides widths.

    Args:
        network: The network.
        groups: The result of ``analyse``.
        scores: The result of ``score_channels``.
        example_inputs: Inputs whose sizes set how often a weight is used; None for the inputs of the trace.
    """
    inputs = network.example_inputs if example_inputs is None else tuple(example_inputs)
    shapes = network.shapes() if example_inputs is None else shapes_of(network.eval_module, inputs)
    uses = _count_uses(network.eval_module, shapes, inputs[0].shape[0])
    scaled = _count_scaled_values(network.eval_module, shapes, inputs[0].shape[0])
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
            WeightShape(name=name, dims=tuple(dims), macs_per_weight=uses[name], values_per_weight=scaled[name])
        )
    return GroupTable(
        groups=tuple(
            ChannelGroup(
                name=group.name,
                channels=group.channels,
                importance=tuple(float(score) for score in scores.get(group.name, ())),
                frozen_by=None if group.frozen_by is None else str(group.frozen_by),
            )
            for group in groups.groups.values()
        ),
        tensors=tuple(tensors),
    )


def _count_uses(module: fx.GraphModule, shapes: Shapes, batch: int) -> Counter[str]:
    """Count, for each weight, how often one sample multiplies each of its numbers."""
    names = tensor_names(module)
    uses: Counter[str] = Counter()
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
            weight = left if left.op == "get_attr" else right
            count = math.prod(shape) * shapes[left.name][-1] // math.prod(shapes[weight.name])
        else:
            continue
        if (name := read_name(names, weight)) is not None:
            uses[name] += count // batch
    return uses


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
