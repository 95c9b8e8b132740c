"""Writes in place, kept from values that a gradient needs as they were before.

In: an exported graph. Out: the same graph, in which such a write goes to a copy. PyTorch refuses to train otherwise. A
model may run so in evaluation only, as FasterNet does with ``x[:, :n] = conv(x[:, :n])``, or write in an
``autograd.Function`` with a gradient of its own, as the softmax of DeBERTa does: the graph has the operators of its
forward pass.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from edgeopt.passes.aten import aten, plain_form

_NEED_THEIR_RESULT = tuple(
    getattr(aten, name)
    for name in ("softmax", "_softmax", "log_softmax", "sigmoid", "tanh", "exp", "sqrt", "rsqrt", "reciprocal", "relu")
)
"""Operators whose gradient is computed from their result."""
_NEED_NOTHING = (
    *_NEED_THEIR_RESULT, aten.add, aten.sub, aten.rsub, aten.neg, aten.sum, aten.mean, aten.cat, aten.stack, aten.clone,
    aten.contiguous, aten.to, aten._to_copy, aten.copy, aten.zeros_like, aten.ones_like, aten.full_like,
    aten.empty_like, aten.sym_size, aten.avg_pool2d, aten.adaptive_avg_pool2d, aten.pad, aten.constant_pad_nd,
)  # fmt: skip
"""Operators whose gradient is computed from no tensor that they read."""


def copy_before_writing(graph: fx.Graph) -> None:
    """Let each write in place go to a copy if a gradient needs the value before; views then show the copy."""
    for node in list(graph.nodes):
        if not _is_write(node) or not isinstance(node.args[0], fx.Node):
            continue
        root = _find_root(node.args[0])
        if root.op == "call_function":
            order = {other: number for number, other in enumerate(graph.nodes)}
            aliases = _find_aliases(root)
            if _is_needed(root, aliases, [other for other in order if order[other] < order[node]]):
                _write_to_copy(graph, node, root, aliases, order)


def _is_needed(root: fx.Node, aliases: set[fx.Node], before: list[fx.Node]) -> bool:
    """Tell whether a gradient needs a value in the memory of ``root``, as it is after these nodes."""
    if any(_plain_packet(node) in _NEED_THEIR_RESULT for node in aliases.intersection(before)):
        return True
    readers = [node for node in before if node not in aliases and aliases.intersection(node.all_input_nodes)]
    return any(_plain_packet(node) not in _NEED_NOTHING for node in readers)


def _write_to_copy(
    graph: fx.Graph, write: fx.Node, root: fx.Node, aliases: set[fx.Node], order: dict[fx.Node, int]
) -> None:
    """Copy ``root`` right before a write; this one and all nodes after it see the copy, through views of it."""
    with graph.inserting_before(write):
        copied = graph.call_function(aten.clone.default, (root,))
    copied.meta = dict(root.meta)
    made = {root: copied}

    def recreate(alias: fx.Node) -> fx.Node:
        if alias not in made:
            source = recreate(alias.args[0])  # type: ignore[arg-type]
            if _is_write(alias):
                made[alias] = source  # it returns what it wrote into
            else:
                with graph.inserting_before(write):
                    made[alias] = graph.node_copy(alias, lambda used: source if used is alias.args[0] else used)
        return made[alias]

    for alias in sorted((alias for alias in aliases if order[alias] < order[write]), key=order.__getitem__):
        for user in [user for user in alias.users if order.get(user, -1) >= order[write]]:
            user.replace_input_with(alias, recreate(alias))


def _find_root(node: fx.Node) -> fx.Node:
    """Return the node whose memory a value lies in."""
    while _is_alias(node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _find_aliases(root: fx.Node) -> set[fx.Node]:
    """Return all nodes whose value lies in the memory of ``root``, with itself."""
    found = {root}
    waiting = [root]
    while waiting:
        node = waiting.pop()
        new = {user for user in node.users if _is_alias(user) and user.args[0] is node} - found
        found |= new
        waiting += new
    return found


def _is_alias(node: fx.Node) -> bool:
    """Tell whether an operator's result, or a part of it, may lie in the memory of its input."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and _is_alias(node.args[0])
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(value.alias_info is not None for value in schema.returns)


def _is_write(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name.endswith("_") and schema.is_mutable and bool(node.args)


def _plain_packet(node: fx.Node) -> Any:
    packet = getattr(node.target, "overloadpacket", None)
    return packet if packet is None or not isinstance(node.target, torch._ops.OpOverload) else plain_form(packet)
