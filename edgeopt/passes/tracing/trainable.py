"""Making every parameter of a traced network trainable: a network that was cut has to adapt as a whole.

In: a graph as ``trace`` makes it. Out: the same graph, in which each parameter of floating point gets a gradient.
"""

from __future__ import annotations

from torch import Tensor, fx, nn

from edgeopt.passes.aten import aten, read_attribute

FROZEN_NOTE = "are frozen (no gradient reaches them). Candidates train all of them, to adapt to the cut."
"""The end of the note on frozen parameters."""
_DETACHING = (aten.detach.default, aten.detach_.default)


def make_trainable(module: fx.GraphModule) -> tuple[str, ...]:
    """Let all parameters be trained, in place, and return notes on those that the user had frozen.

    A parameter is frozen if it does not require a gradient, or if every way from it to an output is detached (a
    backbone under ``torch.no_grad``). A detached value whose parameters also have another way stays detached: it may be
    a straight-through estimator.
    """
    parameters = {name: value for name, value in module.named_parameters() if value.is_floating_point()}
    frozen = {name for name, value in parameters.items() if not value.requires_grad}
    for value in parameters.values():
        value.requires_grad_(True)
    frozen |= _attach_blocked(module)
    if not frozen:
        return ()
    which = "All" if len(frozen) == len(parameters) else f"{len(frozen)} of {len(parameters)}"
    return (f"{which} parameters of the trained network {FROZEN_NOTE}",)


def _attach_blocked(module: fx.GraphModule) -> set[str]:
    """Remove the detaching nodes that keep parameters from any gradient; return the names of these parameters."""
    graph = module.graph
    reached = _ancestors([node for node in graph.nodes if node.op == "output"])
    blocked = {node for node in graph.nodes if _is_parameter(module, node) and node not in reached and node.users}
    blocked -= {node for node in blocked if not _reaches_output(node)}
    seen = {id(read_attribute(module, node)) for node in reached if _is_parameter(module, node)}
    blocked = {node for node in blocked if id(read_attribute(module, node)) not in seen}
    names = {str(node.target) for node in blocked}
    for node in list(graph.nodes):
        if node.target in _DETACHING and blocked & _ancestors([node.args[0]]):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    if names:
        module.recompile()
    return names


def _ancestors(nodes: list[fx.Node]) -> set[fx.Node]:
    """Return the nodes and everything that their gradients reach; detached values end the walk."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [] if node.target in _DETACHING else node.all_input_nodes
    return found


def _reaches_output(node: fx.Node) -> bool:
    """Tell whether an output depends on a node at all."""
    seen: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one.op == "output":
            return True
        if one not in seen:
            seen.add(one)
            waiting += one.users
    return False


def _is_parameter(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "get_attr":
        return False
    value = read_attribute(module, node)
    return isinstance(value, Tensor) and isinstance(value, nn.Parameter) and value.is_floating_point()
