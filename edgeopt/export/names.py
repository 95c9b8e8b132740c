"""Gives the inputs and outputs of an exported graph their names, also if an inner value has one of them already.

PyTorch's exporters rename an output without looking: if a value of the trace is called ``conv2d_19``, an output of that
name makes an invalid file. They are given names of our own, which are replaced afterwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import onnx


def placeholder_names(kind: str, count: int) -> list[str]:
    """Return names that no trace gives to a value."""
    return [f"edgeopt::{kind}_{number}" for number in range(count)]


def set_names(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Replace placeholders by names, in place; inner values with one of these names get another one.

    Args:
        model: Exported with ``placeholder_names``.
        inputs: One name for each input.
        outputs: One name for each output.
    """
    wanted = {
        old: new
        for kind, names in (("input", inputs), ("output", outputs))
        for old, new in zip(placeholder_names(kind, len(names)), names, strict=True)
    }
    known = {name for graph in _graphs(model.graph) for name in _names(graph)}
    taken, changed = known | set(wanted.values()), dict(wanted)
    for name in sorted(known & set(wanted.values())):
        numbered = (f"{name}_{number}" for number in itertools.count(2))
        changed[name] = next(new for new in numbered if new not in taken)
        taken.add(changed[name])
    for graph in _graphs(model.graph):
        _rename(graph, changed)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(inner)


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        yield from node.output
    for value in (*graph.input, *graph.output, *graph.initializer):
        yield value.name


def _rename(graph: onnx.GraphProto, changed: Mapping[str, str]) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = changed.get(name, name)
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = changed.get(value.name, value.name)
