"""Layers of a network as ONNX Runtime runs them, fused: the file's nodes behind each profiled node, and their widths.

On loading, ONNX Runtime fuses nodes and adds others (layout changes). The template's node names show where a profiled
node comes from; a node without such a name belongs to the layer that ran before it. In: the template's file and
profiles of it at several widths. Out: a ``Layer`` with its times for each node that ran.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import onnx

from edgeopt.bench.nodes import FileTime, NodeTime
from edgeopt.errors import StepError
from edgeopt.latency.width_template import (
    LATENCY_TABLE_STAGE,
    NODE_PREFIX,
    ScaledSize,
    SizeResolver,
    describe_node,
)
from edgeopt.records.groups import Dimension
from edgeopt.records.latency import Layer, LayerTime

_NAME = re.compile(NODE_PREFIX + r"(\d+)_")


class Segment(NamedTuple):
    """A layer's part of one run."""

    operator: str
    ns: float
    nodes: int
    """How many nodes ran."""


def parse_node_number(name: str) -> int | None:
    """Return the number of the file's node that a profiled node comes from, or None if its name holds none."""
    match = _NAME.search(name)
    return int(match.group(1)) if match else None


class FusedLayers:
    """A network's nodes in the order of the file.

    Args:
        model: The template's file.
        sizes: Resolves sizes to dimensions of the network.
        shapes: The nodes of the files that the template was learned from, run without optimization.
    """

    def __init__(self, model: onnx.ModelProto, sizes: SizeResolver, shapes: Sequence[Sequence[NodeTime]]) -> None:
        self.nodes = list(model.graph.node)
        self.producers = {name: index for index, node in enumerate(self.nodes) for name in node.output}
        self.readers: dict[int, list[str]] = {}
        for node in self.nodes:
            for name in node.input:
                if name in self.producers:
                    self.readers.setdefault(self.producers[name], []).append(node.op_type)
        self.shapes: dict[int, list[list[tuple[int, ScaledSize | None]]]] = {}
        numbered_runs = ([node for node in run if parse_node_number(node.name) is not None] for run in shapes)
        for nodes in zip(*numbered_runs, strict=True):
            number = parse_node_number(nodes[0].name)
            assert number is not None
            tensors = zip(*([*node.inputs, *node.outputs] for node in nodes), strict=True)
            self.shapes[number] = [
                [(values[0], sizes.resolve(values)) for values in zip(*tensor, strict=True)] for tensor in tensors
            ]

    def layers(self, probes: Sequence[Mapping[str, int]], files: Sequence[FileTime]) -> tuple[Layer, ...]:
        """Return the layers with their times, less the profiler's overhead.

        Which nodes ONNX Runtime fuses may depend on widths. A layer that did not run in a file took no time there: its
        time is in the layer that it was fused into.

        Args:
            probes: Widths of each file.
            files: The files that were timed, the original first.
        """
        runs = [split_into_segments(file.nodes) for file in files]
        operators = {number: segment.operator for run in reversed(runs) for number, segment in run.items()}
        overhead_ns = statistics.median(
            (sum(segment.ns for segment in run.values()) - file.ns) / sum(segment.nodes for segment in run.values())
            for run, file in zip(runs, files, strict=True)
        )
        layers = []
        for number, operator in sorted(operators.items()):
            members = self._members(number, operator, operators)
            dimensions = self._dimensions(members)
            segments = [run.get(number, Segment(operator, 0.0, 0)) for run in runs]
            times = tuple(
                LayerTime(
                    sizes=tuple(dimension.size(probes[file.file]) for dimension in dimensions),
                    ns=segment.ns - overhead_ns * segment.nodes,
                )
                for segment, file in zip(segments, files, strict=True)
            )
            layers.append(
                Layer(
                    name=self.nodes[number].name,
                    operator=operator,
                    shape=self._shape(members, dimensions),
                    dimensions=dimensions,
                    times=times,
                )
            )
        return tuple(layers)

    def _members(self, number: int, operator: str, timed: Iterable[int]) -> list[int]:
        """Return the file's nodes that run as one fused node, in order.

        A fused node has the name of its last member. If its operator differs, the earlier members are the nodes that
        did not run themselves, back to the node with that operator.
        """
        members, pending = [number], [number]
        while pending:
            index = pending.pop()
            if self.nodes[index].op_type in operator:
                continue
            for name in self.nodes[index].input:
                source = self.producers.get(name)
                if source is not None and source not in timed and source not in members:
                    members.append(source)
                    pending.append(source)
        return sorted(members)

    def _dimensions(self, members: Sequence[int]) -> tuple[Dimension, ...]:
        """Return the dimensions that the layer's sizes follow, those of its input first."""
        dimensions: list[Dimension] = []
        for index in members:
            for tensor in self.shapes.get(index, []):
                for _, size in tensor:
                    if size is not None and size.dimension not in dimensions:
                        dimensions.append(size.dimension)
        return tuple(dimensions)

    def _shape(self, members: Sequence[int], dimensions: Sequence[Dimension]) -> str:
        """Describe a layer so that equal layers of other networks have the same text."""
        parts = []
        for index in members:
            tensors = [
                "x".join(
                    str(value) if size is None else f"{size.factor}{chr(97 + dimensions.index(size.dimension))}"
                    for value, size in tensor
                )
                for tensor in self.shapes.get(index, [])
            ]
            parts.append(f"{describe_node(self.nodes[index])} {' '.join(tensors)}")
        return f"{' + '.join(parts)} -> {' '.join(sorted(self.readers.get(members[-1], [])))}"


def split_into_segments(nodes: Sequence[NodeTime]) -> dict[int, Segment]:
    """Split a run into layers: each begins with the node that has its number.

    Raises:
        StepError: no node has a number.
    """
    segments: dict[int, Segment] = {}
    current = next((number for node in nodes if (number := parse_node_number(node.name)) is not None), None)
    if current is None:
        raise StepError(LATENCY_TABLE_STAGE, "the profile names none of the file's nodes.")
    for node in nodes:
        number = parse_node_number(node.name)
        current = current if number is None else number
        so_far = segments.get(current, Segment(node.operator, 0.0, 0))
        segments[current] = Segment(so_far.operator, so_far.ns + node.ns, so_far.nodes + 1)
    return segments
