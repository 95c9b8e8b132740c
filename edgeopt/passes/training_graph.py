"""The graph that is trained: a traced graph with everything in training mode that evaluation switches off."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase

from edgeopt.passes.stochastic import ATTENTION_DROPOUT, drop_samples

_FLAGS = ("training", "train", "use_input_stats")
"""Arguments of normalizations, dropouts and recurrent layers that are True in training."""
_MOMENTUM = 0.1
"""PyTorch's default."""


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


@contextlib.contextmanager
def moving_averages(model: nn.Module) -> Iterator[None]:
    """Let statistics that are averaged over all batches (``momentum=None``) be traced as moving averages.

    A trace of the evaluation holds a momentum of 0 for them: in training they would stand still.
    """
    norms: list[Any] = [part for part in model.modules() if isinstance(part, _NormBase) and part.momentum is None]
    try:
        for part in norms:
            part.momentum = _MOMENTUM
        yield
    finally:
        for part in norms:
            part.momentum = None


def _set(node: fx.Node, index: int, name: str, value: bool | float) -> None:
    if index < len(node.args):
        node.update_arg(index, value)
    else:
        node.update_kwarg(name, value)
