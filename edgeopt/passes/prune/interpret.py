"""The run on labels: a graph and the shapes of its nodes go in, what every node carries comes out."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from edgeopt.passes.prune.labels import NO_RULE, Labels, Marked, Reason, compressed, varying
from edgeopt.passes.prune.rules import rule_for
from edgeopt.passes.prune.rules.call import Call, Layers
from edgeopt.passes.prune.rules.elementwise import simplest
from edgeopt.passes.prune.rules.movement import made

Shapes = dict[str, Any]
"""Node name to the shape of its tensor, a list of shapes for several tensors, or a plain number."""


@dataclass(frozen=True)
class Marks:
    """A graph run on labels: the labels, what each node carries, and the first name of every tensor."""

    labels: Labels
    values: dict[str, Any]
    """Node name to ``Marked``, a list of them, or a plain number."""


def execute(
    module: fx.GraphModule, inputs: Sequence[Tensor], interpreter: fx.Interpreter | None = None
) -> Iterator[tuple[fx.Node, Any]]:
    """Run a graph and hand out every node with its value, before the next one runs (it may change it in place)."""
    interpreter = interpreter or fx.Interpreter(module)
    interpreter.args_iter = iter(inputs)
    for node in module.graph.nodes:
        with torch.no_grad():
            interpreter.env[node] = interpreter.run_node(node)
        yield node, interpreter.env[node]
        for finished in interpreter.user_to_last_uses.get(node, []):
            del interpreter.env[finished]


def shapes_of(module: fx.GraphModule, inputs: Sequence[Tensor]) -> Shapes:
    """Run a graph and note the shape of every node's value."""
    return {node.name: _shape(value) for node, value in execute(module, inputs)}


def tensor_names(module: fx.GraphModule) -> dict[str, str]:
    """Map each attribute that a graph reads to the first name of its tensor, so that tied weights have one name."""
    first: dict[int, str] = {}
    names = {}
    for target in dict.fromkeys(str(node.target) for node in module.graph.nodes if node.op == "get_attr"):
        names[target] = first.setdefault(id(operator.attrgetter(target)(module)), target)
    return names


def mark(module: fx.GraphModule, shapes: Shapes) -> Marks:
    """Run a graph on labels.

    An operator without a rule freezes all that reaches it; what it gives counts as having a fixed size.
    """
    labels = Labels()
    names = tensor_names(module)
    values: dict[str, Any] = {}
    for node in module.graph.nodes:
        labels.reason = Reason(str(getattr(node.target, "overloadpacket", node.target)), node.name, "")
        shape = shapes[node.name]
        if node.op == "get_attr" and isinstance(shape, tuple):
            values[node.name] = labels.of_parameter(names[str(node.target)], shape)
            continue
        arguments = fx.map_arg((node.args, node.kwargs), lambda used: values[used.name])
        if node.op == "output":
            labels.freeze([layer for value in marked_in(arguments) for layer in value.layers], "the model's output")
        elif node.target is operator.getitem:
            values[node.name] = arguments[0][0][arguments[0][1]]
        elif node.op == "call_function" and (marked_in(arguments) or rule_for(node.target) is made):
            values[node.name] = _apply(labels, Call.of(node, *arguments, shape), shape)
        else:
            values[node.name] = _without_layers(shape)
    return Marks(labels, values)


def marked_in(arguments: Any) -> list[Marked]:
    """Collect every ``Marked`` in nested tuples, lists and dicts."""
    if isinstance(arguments, Marked):
        return [arguments]
    if isinstance(arguments, dict):
        arguments = list(arguments.values())
    return [found for item in arguments for found in marked_in(item)] if isinstance(arguments, (tuple, list)) else []


def _apply(labels: Labels, call: Call, shape: Any) -> Any:
    """Apply an operator's rule; freeze what an unknown one reads."""
    layers = [layer for value in call.operands for layer in value.layers]
    rule = rule_for(call.target)
    if rule is None:
        labels.freeze(layers, NO_RULE)
        return _without_layers(shape)
    result = rule(labels, call)
    if not isinstance(shape, (tuple, list)):
        return shape
    if isinstance(shape, tuple):
        assert isinstance(result, tuple), f"the rule of {call.target} gives several results for one"
        return _settled(labels, result, shape)
    if not isinstance(result, list):
        result = [result] * len(shape)
    return [_settled(labels, one, its_shape) for one, its_shape in zip(result, shape, strict=True)]


def _settled(labels: Labels, layers: Layers, shape: tuple[int, ...]) -> Marked:
    """Compress a rule's layers. One that depends on nothing would make the whole tensor vanish: it freezes."""
    kept = []
    for layer in map(compressed, layers):
        dims = varying(layer)
        if not dims:
            labels.freeze(layer, "one label for a whole tensor")
            continue
        if len(dims) > 1:
            labels.choose(None, layer)
        kept.append(layer)
    return Marked(shape, simplest(labels, kept))


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
