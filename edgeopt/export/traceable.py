"""Graphs of ``torch.export`` in a form that TorchScript can trace.

A trace records only calls of PyTorch's Python functions and methods: an operator that is called by its overload takes
traced sizes for constants. TorchScript has no complex numbers either.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

_aten = torch.ops.aten
_METHODS = {
    _aten.sym_size.int: "size",
    _aten.view.default: "view",
    _aten.reshape.default: "reshape",
    _aten.expand.default: "expand",
    _aten.repeat.default: "repeat",
}
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    _aten.zeros.default: torch.zeros,
    _aten.ones.default: torch.ones,
    _aten.full.default: torch.full,
    _aten.arange.default: torch.arange,
    _aten.arange.start: torch.arange,
    _aten.arange.start_step: torch.arange,
}


def make_traceable(module: nn.Module, *, has_complex: bool) -> nn.Module:
    """Return a module that an exporter can trace; parameters are shared, not copied.

    Graphs of ``torch.export`` have guards that tracing cannot run. Their operators on sizes become constants in a
    trace, while the methods and functions of the same names stay dynamic.

    Args:
        module: Any module; only a graph is changed.
        has_complex: Whether the exporter knows complex numbers. If it doesn't, Fourier transforms give pairs of real
            numbers, as far as everything that reads them can.
    """
    if not isinstance(module, fx.GraphModule):
        return module
    graph = copy.deepcopy(module.graph)
    if not has_complex:
        _write_pairs(graph)
    for node in list(graph.nodes):
        if node.target in ("_guards_fn", _aten._assert_tensor_metadata.default):
            graph.erase_node(node)
        elif node.target in _METHODS:
            node.op, node.target = "call_method", _METHODS[node.target]
        elif node.target in _FUNCTIONS:
            node.target = _FUNCTIONS[node.target]
    traceable = fx.GraphModule(module, graph)
    traceable.training = False
    return traceable


# -- complex numbers as pairs on a last axis ---------------------------------------------------------------------------


def _absolute(pairs: Tensor) -> Tensor:
    return pairs.square().sum(-1).sqrt()


def _angle(pairs: Tensor) -> Tensor:
    return torch.atan2(pairs[..., 1], pairs[..., 0])


def _pairs(pairs: Tensor) -> Tensor:
    return pairs


def _before_pairs(dim: int) -> int:
    """Return a dimension of a complex tensor as one of its pairs, which have another at the end."""
    return dim if dim >= 0 else dim - 1


def _at_dim(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0], _before_pairs(args[1]), *args[2:]) if len(args) > 1 else args


def _transposed(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return args[0], _before_pairs(args[1]), _before_pairs(args[2])


def _permuted(args: tuple[Any, ...]) -> tuple[Any, ...]:
    rank = len(args[1])
    return args[0], [*(dim % rank for dim in args[1]), rank]


def _reshaped(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return args[0], [*args[1], 2]


_REAL_RESULTS: dict[Any, Callable[[Tensor], Tensor]] = {
    _aten.abs.default: _absolute,
    _aten.angle.default: _angle,
    _aten.view_as_real.default: _pairs,
}
_COMPLEX_RESULTS: dict[Any, Callable[[tuple[Any, ...]], tuple[Any, ...]]] = {
    _aten.transpose.int: _transposed,
    _aten.permute.default: _permuted,
    _aten.view.default: _reshaped,
    _aten.reshape.default: _reshaped,
    _aten.select.int: _at_dim,
    _aten.slice.Tensor: _at_dim,
}
"""How the arguments change if the tensor has its pairs on a last axis."""


def _write_pairs(graph: fx.Graph) -> None:
    """Let each Fourier transform give pairs, unless something that reads it needs complex numbers."""
    for node in graph.find_nodes(op="call_function", target=_aten.stft.default):
        arguments = _named_arguments(node)
        found = _complex_nodes(node) if arguments.get("return_complex") else None
        if found is None:
            continue
        node.args, node.kwargs = (), {**arguments, "return_complex": False}
        for moved in found[1:]:
            moved.args = _COMPLEX_RESULTS[moved.target](moved.args)
        for reader in [user for one in found for user in one.users if user.target in _REAL_RESULTS]:
            reader.target = _REAL_RESULTS[reader.target]


def _named_arguments(node: fx.Node) -> dict[str, Any]:
    names = [one.name for one in node.target._schema.arguments]  # type: ignore[union-attr]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _complex_nodes(transform: fx.Node) -> list[fx.Node] | None:
    """Return a transform and the nodes that move its values; None if another operator reads complex numbers."""
    found = [transform]
    for node in found:
        for user in node.users:
            if user.target in _COMPLEX_RESULTS and not user.kwargs and user.args[0] is node:
                found.append(user)
            elif user.target not in _REAL_RESULTS:
                return None
    return found
