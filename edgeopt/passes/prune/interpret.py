"""The run on labels: a graph and the shapes of its values go in, the labels of every value come out."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from edgeopt.passes.prune.labels import NO_RULE, Labels, Marked, Reason, compress, varying_dims
from edgeopt.passes.prune.rules import rule_for
from edgeopt.passes.prune.rules.call import Call, Layers
from edgeopt.passes.prune.rules.elementwise import simplify_layers
from edgeopt.passes.prune.rules.movement import create, create_identity
from edgeopt.passes.prune.rules.picking import find_places

_CREATING = (create, create_identity)
"""Rules that label a tensor that the graph itself creates, from numbers only."""
Shapes = dict[str, Any]
"""Node name to the shape of its tensor, to a list of shapes for several tensors, or to a plain number."""


@dataclass(frozen=True)
class Marks:
    """The result of running a graph on labels."""

    labels: Labels
    values: dict[str, Any]
    """Node name to ``Marked``, to a list of them, or to a plain number."""


def execute(
    module: fx.GraphModule, inputs: Sequence[Tensor], interpreter: fx.Interpreter | None = None
) -> Iterator[tuple[fx.Node, Any]]:
    """Run a graph and yield each node with its value, before the next node can change the value in place."""
    interpreter = interpreter or fx.Interpreter(module)
    interpreter.args_iter = iter(inputs)
    for node in module.graph.nodes:
        with torch.no_grad():
            interpreter.env[node] = interpreter.run_node(node)
        yield node, interpreter.env[node]
        for finished in interpreter.user_to_last_uses.get(node, []):
            del interpreter.env[finished]


def shapes_of(module: fx.GraphModule, inputs: Sequence[Tensor]) -> Shapes:
    """Run a graph and return the shape of every node's value."""
    return {node.name: _shape(value) for node, value in execute(module, inputs)}


def tensor_names(module: fx.GraphModule) -> dict[str, str]:
    """Map each attribute that a graph reads to the first name of its tensor, so tied weights share one name."""
    first: dict[int, str] = {}
    names = {}
    for target in dict.fromkeys(str(node.target) for node in module.graph.nodes if node.op == "get_attr"):
        names[target] = first.setdefault(id(operator.attrgetter(target)(module)), target)
    return names


def read_name(names: Mapping[str, str], argument: Any) -> str | None:
    """Return the name of the tensor that an argument of a node reads; None if there is none or it is computed."""
    return names[str(argument.target)] if isinstance(argument, fx.Node) and argument.op == "get_attr" else None


def mark(module: fx.GraphModule, shapes: Shapes) -> Marks:
    """Run a graph on labels.

    An operator without a rule freezes all its inputs, and its outputs count as having a fixed size.
    """
    labels = Labels()
    names = tensor_names(module)
    values: dict[str, Any] = {}
    for node in module.graph.nodes:
        labels.reason = Reason(str(getattr(node.target, "overloadpacket", node.target)), node.name, "")
        shape = shapes[node.name]
        if node.op == "get_attr" and isinstance(shape, tuple):
            values[node.name] = labels.label_parameter(names[str(node.target)], shape)
            continue
        arguments = fx.map_arg((node.args, node.kwargs), lambda used: values[used.name])
        if node.op == "output":
            outputs = collect_marked(arguments)
            labels.freeze([layer for value in outputs for layer in value.layers], "the model's output")
            labels.freeze([value.places for value in outputs if value.places is not None], "the model's output")
        elif node.target is operator.getitem:
            values[node.name] = arguments[0][0][arguments[0][1]]
        elif node.op == "call_function" and (collect_marked(arguments) or rule_for(node.target) in _CREATING):
            values[node.name] = _apply(labels, Call.of(node, *arguments, shape), shape)
        else:
            values[node.name] = _without_layers(shape)
    return Marks(labels, values)


def collect_marked(arguments: Any) -> list[Marked]:
    """Collect every ``Marked`` in nested tuples, lists and dicts."""
    if isinstance(arguments, Marked):
        return [arguments]
    if isinstance(arguments, dict):
        arguments = list(arguments.values())
    return (
        [found for item in arguments for found in collect_marked(item)] if isinstance(arguments, (tuple, list)) else []
    )


def _apply(labels: Labels, call: Call, shape: Any) -> Any:
    """Apply an operator's rule; freeze the inputs of an operator without one."""
    layers = [layer for value in call.operands for layer in value.layers]
    rule = rule_for(call.target)
    if rule is None:
        labels.freeze([*layers, *(one.places for one in call.operands if one.places is not None)], NO_RULE)
        return _without_layers(shape)
    result, places = rule(labels, call), find_places(labels, call)
    if not isinstance(shape, (tuple, list)):
        return shape
    if isinstance(shape, tuple):
        assert isinstance(result, tuple), f"the rule of {call.target} returns several results for one"
        return replace(_finish_layers(labels, result, shape), places=places.get(0))
    if not isinstance(result, list):
        result = [result] * len(shape)
    finished = [_finish_layers(labels, one, one_shape) for one, one_shape in zip(result, shape, strict=True)]
    return [replace(one, places=places.get(number)) for number, one in enumerate(finished)]


def _finish_layers(labels: Labels, layers: Layers, shape: tuple[int, ...]) -> Marked:
    """Compress the layers of a rule's result. A single label for the whole tensor freezes: the tensor must stay."""
    kept = []
    for layer in map(compress, layers):
        dims = varying_dims(layer)
        if not dims:
            labels.freeze(layer, "one label for a whole tensor")
            continue
        if len(dims) > 1:
            labels.choose(None, layer)
        kept.append(layer)
    return Marked(shape, simplify_layers(labels, kept))


def _shape(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, (tuple, list)):
        return [_shape(item) for item in value]
    return value


def _without_layers(shape: Any) -> Any:
    if isinstance(shape, tuple):
        return Marked(shape)
    if isinstance(shape, list):
        return [_without_layers(item) for item in shape]
    return shape
