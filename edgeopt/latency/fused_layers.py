"""Layers of a network in the chain: which node of the file a node of the profile is, and what widths it follows.

ONNX Runtime fuses nodes and adds others (layout changes) on loading. The template's names say where a node of the
profile comes from; what has no such name belongs to the layer that ran before it.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import onnx

from edgeopt.bench.nodes import FileTime, NodeTime
from edgeopt.errors import StepError
from edgeopt.latency.width_template import LATENCY_TABLE_STAGE, MARK, Size, Sizes, describe_node
from edgeopt.records.groups import Dimension
from edgeopt.records.latency import Layer, LayerTime

_NAME = re.compile(MARK + r"(\d+)_")


class Segment(NamedTuple):
    """A layer's part of one run."""

    operator: str
    ns: float
    nodes: int
    """How many nodes ran."""


def number_of(name: str) -> int | None:
    """Return the number of the file's node that a node of the profile comes from."""
    found = _NAME.search(name)
    return int(found.group(1)) if found else None


class FusedLayers:
    """A network's nodes in the order of the file.

    Args:
        model: The template's file.
        sizes: What sizes follow.
        shapes: The nodes of the files that taught the template, run without optimization.
    """

    def __init__(self, model: onnx.ModelProto, sizes: Sizes, shapes: Sequence[Sequence[NodeTime]]) -> None:
        self.nodes = list(model.graph.node)
        self.producers = {name: index for index, node in enumerate(self.nodes) for name in node.output}
        self.readers: dict[int, list[str]] = {}
        for node in self.nodes:
            for name in node.input:
                if name in self.producers:
                    self.readers.setdefault(self.producers[name], []).append(node.op_type)
        self.shapes: dict[int, list[list[tuple[int, Size | None]]]] = {}
        for nodes in zip(*([node for node in run if number_of(node.name) is not None] for run in shapes), strict=True):
            number = number_of(nodes[0].name)
            assert number is not None
            tensors = zip(*([*node.inputs, *node.outputs] for node in nodes), strict=True)
            self.shapes[number] = [
                [(values[0], sizes.follow(values)) for values in zip(*tensor, strict=True)] for tensor in tensors
            ]

    def layers(self, probes: Sequence[Mapping[str, int]], files: Sequence[FileTime]) -> tuple[Layer, ...]:
        """Return the layers with their times, free of the profiler's own.

        Which nodes ONNX Runtime fuses may depend on widths. A layer that did not run in a file took no time there: what
        it is fused into took it.

        Args:
            probes: Widths of each file.
            files: Those that were timed, the original first.
        """
        runs = [segments(one.nodes) for one in files]
        operators = {number: part.operator for run in reversed(runs) for number, part in run.items()}
        own = statistics.median(
            (sum(part.ns for part in run.values()) - one.ns) / sum(part.nodes for part in run.values())
            for run, one in zip(runs, files, strict=True)
        )
        found = []
        for number, operator in sorted(operators.items()):
            members = self._members(number, operator, operators)
            dimensions = self._dimensions(members)
            parts = [run.get(number, Segment(operator, 0.0, 0)) for run in runs]
            times = tuple(
                LayerTime(
                    sizes=tuple(dimension.size(probes[one.file]) for dimension in dimensions),
                    ns=part.ns - own * part.nodes,
                )
                for part, one in zip(parts, files, strict=True)
            )
            found.append(
                Layer(
                    name=self.nodes[number].name,
                    operator=operator,
                    shape=self._shape(members, dimensions),
                    dimensions=dimensions,
                    times=times,
                )
            )
        return tuple(found)

    def _members(self, number: int, operator: str, timed: Iterable[int]) -> list[int]:
        """Return the file's nodes that run as one, in order.

        A fused node has the name of its last part: where its operator is another, the parts before it are those that
        did not run themselves, back to the one with that operator.
        """
        members, border = [number], [number]
        while border:
            index = border.pop()
            if self.nodes[index].op_type in operator:
                continue
            for name in self.nodes[index].input:
                source = self.producers.get(name)
                if source is not None and source not in timed and source not in members:
                    members.append(source)
                    border.append(source)
        return sorted(members)

    def _dimensions(self, members: Sequence[int]) -> tuple[Dimension, ...]:
        """Return what the layer's sizes follow, those of its input first."""
        found: list[Dimension] = []
        for index in members:
            for tensor in self.shapes.get(index, []):
                for _, size in tensor:
                    if size is not None and size.dimension not in found:
                        found.append(size.dimension)
        return tuple(found)

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


def segments(nodes: Sequence[NodeTime]) -> dict[int, Segment]:
    """Part a run by layers: each begins with the node that bears its number.

    Raises:
        StepError: no node bears a number.
    """
    found: dict[int, Segment] = {}
    current = next((number for node in nodes if (number := number_of(node.name)) is not None), None)
    if current is None:
        raise StepError(LATENCY_TABLE_STAGE, "the profile names no node of the file.")
    for node in nodes:
        number = number_of(node.name)
        current = current if number is None else number
        known = found.get(current, Segment(node.operator, 0.0, 0))
        found[current] = Segment(known.operator, known.ns + node.ns, known.nodes + 1)
    return found
