"""Branches that are added to what goes around them, and can be left out whole: ``x + branch(x)`` becomes ``x``.

In: a graph. Out: its branches, or the graph without some of them. A branch is found by what the graph computes, not by
the names of classes: all that only one operand of a sum needs, such as the convolutions of a residual block (He et al.,
2016) or the attention of a transformer's layer. Leaving it out is the same as a branch whose value is zero.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from edgeopt.passes.aten import aten, plain_form, writes_into
from edgeopt.passes.prune.interpret import Shapes, tensor_names

_FACTORS: dict[Any, slice] = {
    **dict.fromkeys(
        (aten.conv1d, aten.conv2d, aten.conv3d, aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d,
         aten.linear),
        slice(1, 2),
    ),
    **dict.fromkeys((aten.matmul, aten.mm, aten.bmm), slice(0, 2)),
    aten.addmm: slice(1, 3),
}  # fmt: skip
"""Operators that multiply, and which of their arguments may be weights; a branch without one saves nothing worth a
choice."""
_TURNS: tuple[Any, ...] = (aten.t, aten.transpose, aten.permute)
"""Operators between a stored weight and a product with it."""
_CLAMPS: tuple[Any, ...] = (aten.relu, aten.relu6, aten.hardtanh, aten.clamp)
"""Operators that change nothing the second time in a row."""


@dataclass(frozen=True, eq=False)
class ResidualBranch:
    """One operand of a sum, with all that only it needs."""

    name: str
    """Of the module that all of its weights are in, or of its first weight."""
    sum: str
    """Name of the node that adds it. Pruning and factorizing keep the names of nodes."""
    operand: int
    """Place of the branch among the sum's two operands."""
    nodes: frozenset[str]
    tensors: frozenset[str]
    """Parameters and buffers that only its nodes read."""


def find_branches(module: fx.GraphModule, shapes: Shapes) -> list[ResidualBranch]:
    """Return the branches of a graph in evaluation mode, in its order; of each sum at most one operand.

    If either operand could go, such as a block's convolutions and the projection around them, it is the one with more
    nodes. A branch inside of another one is found, the other one too. An operand that reads a parameter which
    other nodes read too is left alone: without it, the parameter would have another first name.

    Args:
        module: The graph.
        shapes: Of its values.
    """
    names, parameters = tensor_names(module), dict(module.named_parameters())
    found: list[ResidualBranch] = []
    for node in module.graph.nodes:
        if not _is_plain_sum(node, shapes):
            continue
        needed = [_only_for(node, operand) for operand in node.args[:2]]
        operand = int(len(needed[1]) > len(needed[0]))
        nodes = needed[operand]
        weights = [names[str(one.target)] for one in module.graph.nodes if one in nodes and one.op == "get_attr"]
        multiplied = [name for name in weights if _is_multiplied(name, nodes, names)]
        tensors = set(weights) & _tensors_only_of(nodes, module, names)
        read = {names[str(one.target)] for each in nodes for one in each.all_input_nodes if one.op == "get_attr"}
        if not multiplied or not parameters.keys().isdisjoint(read - tensors):
            continue
        name = _unique(_common_module(multiplied), [branch.name for branch in found])
        found.append(ResidualBranch(name, node.name, operand, frozenset(one.name for one in nodes), frozenset(tensors)))
    return found


def without_branches(graph: fx.Graph, sums: Iterable[tuple[str, int]]) -> None:
    """Leave branches out of a graph, in place, and what only they need.

    Args:
        graph: A graph, in evaluation mode.
        sums: For each branch the name of the sum, and the operand that goes.
    """
    nodes = {node.name: node for node in graph.nodes}
    for name, operand in sums:
        node = nodes[name]
        around, branch = node.args[1 - operand], node.args[operand]
        assert isinstance(around, fx.Node), "both operands of a sum are values"
        _drop_second_clamps(around, node)
        if any(writes_into(user, one) for one in (around, node) for user in one.users if user is not node):
            # the sum was a value of its own, but what goes around the branch is read elsewhere too
            with graph.inserting_before(node):
                around = graph.call_function(aten.clone.default, (around,))
        node.replace_all_uses_with(around)
        graph.erase_node(node)
        _erase_unused(graph, branch)


def left_out(before: fx.Graph, after: fx.Graph) -> set[str]:
    """Return the names of nodes that a graph had before, and does not have after."""
    return {node.name for node in before.nodes} - {node.name for node in after.nodes}


def _is_plain_sum(node: fx.Node, shapes: Shapes) -> bool:
    """Tell whether a node adds two values of its own shape, each once."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet is None or plain_form(packet) is not aten.add or len(node.args) != 2 or node.kwargs:
        return False
    operands = [one for one in node.args if isinstance(one, fx.Node)]
    return len(operands) == 2 and operands[0] is not operands[1] and all(
        isinstance(shapes.get(one.name), tuple) and shapes[one.name] == shapes[node.name] for one in operands
    )  # fmt: skip


def _only_for(reader: fx.Node, operand: Any) -> set[fx.Node]:
    """Return the nodes that only one operand of a node needs."""
    found: set[fx.Node] = set()
    waiting = [operand]
    while waiting:
        node = waiting.pop()
        allowed = {reader} if node is operand else found
        if node in found or node.op == "placeholder" or any(user not in allowed for user in node.users):
            continue
        if any(writes_into(node, one) and len(one.users) > 1 for one in node.all_input_nodes):
            return set()  # what it writes into may be read by others
        found.add(node)
        waiting += node.all_input_nodes
    return found


def _tensors_only_of(nodes: Collection[fx.Node], module: fx.GraphModule, names: dict[str, str]) -> set[str]:
    """Return the tensors that no other node reads."""
    reads = Counter(names[str(node.target)] for node in module.graph.nodes if node.op == "get_attr" and node.users)
    inside = Counter(names[str(node.target)] for node in nodes if node.op == "get_attr")
    return {name for name, count in inside.items() if count == reads[name]}


def _is_multiplied(name: str, nodes: Collection[fx.Node], names: dict[str, str]) -> bool:
    """Tell whether a tensor is a factor in one of some nodes, or what a transposed weight is made of."""
    factors = [one for node in nodes for one in node.args[_FACTORS.get(_packet(node), slice(0))]]
    sources = [one.args[0] if isinstance(one, fx.Node) and _packet(one) in _TURNS else one for one in factors]
    return any(isinstance(one, fx.Node) and one.op == "get_attr" and names[str(one.target)] == name for one in sources)


def _packet(node: fx.Node) -> Any:
    return getattr(node.target, "overloadpacket", None)


def _erase_unused(graph: fx.Graph, last: Any) -> None:
    """Erase a node and all that only it needed."""
    waiting = [last]
    while waiting:
        node = waiting.pop()
        if node.users or node.op == "placeholder" or node not in graph.nodes:
            continue
        inputs = node.all_input_nodes
        graph.erase_node(node)
        waiting += inputs


def _drop_second_clamps(value: fx.Node, sum_: fx.Node) -> None:
    """Drop a ReLU of a sum without its branch, if what goes around the branch is what such a ReLU gave."""
    packet = getattr(value.target, "overloadpacket", None)
    if packet is None or plain_form(packet) not in _CLAMPS:
        return
    for user in list(sum_.users):
        other = getattr(user.target, "overloadpacket", None)
        if other is not None and plain_form(other) is plain_form(packet) and user.args[1:] == value.args[1:]:
            user.replace_all_uses_with(sum_)
            user.graph.erase_node(user)


def _common_module(names: Sequence[str]) -> str:
    """Return the module that all tensors are in; of a single one, the name without ``.weight``."""
    if len(names) == 1:
        return names[0].removesuffix(".weight")
    parts = [name.split(".")[:-1] for name in names]
    common = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common) or names[0].removesuffix(".weight")


def _unique(name: str, taken: Collection[str]) -> str:
    if name not in taken:
        return name
    return next(other for number in range(2, len(taken) + 3) if (other := f"{name}#{number}") not in taken)


def copy_without(module: fx.GraphModule, sums: Sequence[tuple[str, int]]) -> fx.GraphModule:
    """Return a graph without branches, over the same tensors."""
    graph = copy.deepcopy(module.graph)
    without_branches(graph, sums)
    return fx.GraphModule(module, graph)
