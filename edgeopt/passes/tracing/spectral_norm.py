"""``fold_spectral_norms``: weights that are divided by their spectral norm become plain weights.

In: a graph as ``trace`` makes it. Out: the same graph without the norms. In evaluation mode a spectral norm (Miyato et
al., 2018) is ``u`` times the weight times ``v``, with two fixed vectors: a number. To compute it at each run is waste,
and a cut of the two vectors would change it, and with it the scale of the layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from edgeopt.passes.aten import aten, read_attribute

_PRODUCTS = (aten.dot.default, aten.vdot.default)
_VIEWS: tuple[Any, ...] = (aten.flatten, aten.reshape, aten.permute, aten.transpose, aten.t)


def fold_spectral_norms(module: fx.GraphModule) -> dict[str, tuple[str, ...]]:
    """Divide weights by their spectral norms, in place. A weight that is also used without its norm is left as it is.

    Returns:
        The name of each weight that was divided, with the names of the vectors of its norm.
    """
    divided: dict[int, list[fx.Node]] = {}
    for node in module.graph.find_nodes(op="call_function", target=aten.div.Tensor):
        if _is_divided_by_its_norm(module, node):
            divided.setdefault(id(read_attribute(module, _viewed(node.args[0]))), []).append(node)
    folded = [nodes for nodes in divided.values() if _are_all_uses(module, nodes)]
    found: dict[str, tuple[str, ...]] = {}
    for nodes in folded:
        leaves = [leaf for leaf in _ancestors(nodes[0].args[1]) if leaf.op == "get_attr"]
        vectors = tuple(str(leaf.target) for leaf in leaves if not _is_parameter(module, leaf))
        found[str(_viewed(nodes[0].args[0]).target)] = vectors
        with torch.no_grad():
            weight = read_attribute(module, _viewed(nodes[0].args[0]))
            weight.data = weight.data / _compute(module, nodes[0].args[1])  # the model may hold the same memory
        for node in nodes:
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            module.graph.erase_node(node)
    if folded:
        module.graph.eliminate_dead_code()
        module.recompile()
    return found


def _is_divided_by_its_norm(module: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node divides a parameter by a product of itself with two buffers."""
    weight, norm = _viewed(node.args[0]), node.args[1]
    if not isinstance(norm, fx.Node) or norm.target not in _PRODUCTS or not _is_parameter(module, weight):
        return False
    leaves = [leaf for leaf in _ancestors(norm) if not leaf.all_input_nodes]
    parameters = [leaf for leaf in leaves if _is_parameter(module, leaf)]
    return (
        all(leaf.op == "get_attr" for leaf in leaves)
        and len(leaves) == len(parameters) + 2
        and {id(read_attribute(module, leaf)) for leaf in parameters} == {id(read_attribute(module, weight))}
    )


def _are_all_uses(module: fx.GraphModule, nodes: list[fx.Node]) -> bool:
    """Tell whether a weight and its norm are used in nothing but these divisions."""
    weight = read_attribute(module, _viewed(nodes[0].args[0]))
    before = {ancestor for node in nodes for ancestor in _ancestors(node)}
    readers = {node for node in module.graph.find_nodes(op="get_attr") if read_attribute(module, node) is weight}
    return all(user in before or user in nodes for node in before | readers for user in node.users)


def _viewed(node: Any) -> Any:
    """Return the node that views show."""
    while getattr(getattr(node, "target", None), "overloadpacket", None) in _VIEWS:
        node = node.args[0]
    return node


def _ancestors(node: Any) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found


def _compute(module: fx.GraphModule, node: Any) -> Any:
    """Compute the value of a node that depends on no input."""
    if node.op == "get_attr":
        return read_attribute(module, node)
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: _compute(module, source))
    return node.target(*args, **kwargs)


def _is_parameter(module: fx.GraphModule, node: Any) -> bool:
    is_attribute = isinstance(node, fx.Node) and node.op == "get_attr"
    return is_attribute and isinstance(read_attribute(module, node), nn.Parameter)
