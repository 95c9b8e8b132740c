"""The graph that is trained: a traced graph with everything in training mode that evaluation switches off."""

from __future__ import annotations

import copy

from torch import fx

from edgeopt.passes.stochastic import ATTENTION_DROPOUT, drop_samples

_FLAGS = ("training", "train", "use_input_stats")
"""Arguments of normalizations, dropouts and recurrent layers that are True in training."""


def training_graph(module: fx.GraphModule) -> fx.GraphModule:
    """Return the graph in training mode, over the same tensors."""
    graph = copy.deepcopy(module.graph)
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        for index, argument in enumerate(schema.arguments if schema is not None else ()):
            if argument.name in _FLAGS:
                _set(node, index, argument.name, True)
            elif argument.name == "dropout_p" and ATTENTION_DROPOUT in node.meta:
                _set(node, index, argument.name, node.meta[ATTENTION_DROPOUT])
    drop_samples(graph)
    return fx.GraphModule(module, graph)


def _set(node: fx.Node, index: int, name: str, value: bool | float) -> None:
    if index < len(node.args):
        node.update_arg(index, value)
    else:
        node.update_kwarg(name, value)
