"""A network in float64: its graph for that, and its tensors, each converted when it is read."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn


class Float64Interpreter(fx.Interpreter):
    """Runs a network's graph in float64; at no time are there more tensors in float64 than those in use."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(float64_graph(module))

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network on inputs in float64."""
        with new_tensors_in_float64():
            return super().run(*args, **kwargs)

    def fetch_attr(self, target: str) -> Any:
        """Return a tensor of the network in float64."""
        return to_float64(super().fetch_attr(target))


def float64_graph(module: fx.GraphModule) -> fx.GraphModule:
    """Copy a network's graph for float64: casts to narrower numbers become casts to float64.

    The tensors stay as they are. Each is read right before its first use.
    """
    graph = copy.deepcopy(module.graph)
    order = {node: number for number, node in enumerate(graph.nodes)}
    for node in graph.find_nodes(op="get_attr"):
        if node.users:
            min(node.users, key=order.__getitem__).prepend(node)
    for node in graph.nodes:
        node.args = fx.node.map_aggregate(node.args, _widen_dtype)
        node.kwargs = fx.node.map_aggregate(node.kwargs, _widen_dtype)
    return fx.GraphModule(module, graph)


def to_float64(value: Any) -> Any:
    """Return a copy of a tensor or module in float64; of a tensor of integers a copy."""
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).double()
    assert isinstance(value, Tensor)
    return value.detach().to(_widen_dtype(value.dtype), copy=True)


def _widen_dtype(argument: Any) -> Any:
    if isinstance(argument, torch.dtype) and argument.is_floating_point:
        return torch.float64
    return torch.complex128 if isinstance(argument, torch.dtype) and argument.is_complex else argument


@contextmanager
def new_tensors_in_float64() -> Iterator[None]:
    """Let operators that create a tensor without naming a dtype create float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
