"""Recurrent layers over sequences, for ``torch.export``.

PyTorch computes the shape of a recurrent layer's result by running it step by step, so an export takes the length of
the sequence for a constant, and needs minutes for a long one. Here the layers are traced as operators of our own, which
know the shape of their result, and become PyTorch's own operators again in the exported graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

_ARGUMENTS = (
    "Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, bool batch_first"
)
_OPERATORS = {
    "gru": (f"(Tensor input, Tensor hx, {_ARGUMENTS}) -> (Tensor, Tensor)", torch.ops.aten.gru.input),
    "rnn_tanh": (f"(Tensor input, Tensor hx, {_ARGUMENTS}) -> (Tensor, Tensor)", torch.ops.aten.rnn_tanh.input),
    "rnn_relu": (f"(Tensor input, Tensor hx, {_ARGUMENTS}) -> (Tensor, Tensor)", torch.ops.aten.rnn_relu.input),
    "lstm": (f"(Tensor input, Tensor[] hx, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)", torch.ops.aten.lstm.input),
}
"""PyTorch's names, with schemas and the operators for sequences that are not packed."""
_LIBRARY = "edgeopt_recurrent"


@contextmanager
def recurrent_layers_as_one() -> Iterator[None]:
    """Let a recurrent layer be traced as one operator, however long its sequence is, for the length of a block."""
    functions = torch._VF
    before = {name: functions.__dict__.get(name) for name in _OPERATORS}
    try:
        for name in _OPERATORS:
            setattr(functions, name, _traceable(name, getattr(functions, name)))
        yield
    finally:
        for name, function in before.items():
            if function is None:
                delattr(functions, name)
            else:
                setattr(functions, name, function)


def restore_recurrent_layers(graph: fx.Graph) -> None:
    """Replace the operators of a trace by PyTorch's own."""
    for node in graph.nodes:
        namespace, _, name = getattr(node.target, "_name", "").partition("::")
        if namespace == _LIBRARY:
            node.target = _OPERATORS[name.partition(".")[0]][1]


def _traceable(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        sequence = len(args) == 9 and isinstance(args[3], bool)  # packed sequences have other arguments
        return _operator(name)(*args) if sequence else original(*args)

    return call


@cache
def _operator(name: str) -> Any:
    """Define the operator that stands for a recurrent layer in a trace."""
    schema, aten = _OPERATORS[name]
    torch.library.define(f"{_LIBRARY}::{name}", schema)

    def compute(*args: Any) -> Any:
        return tuple(value.clone() for value in aten(*args))

    def infer(*args: Any) -> Any:
        states = list(args[1]) if isinstance(args[1], list | tuple) else [args[1]]
        return _result_like(args[0], states, bidirectional=args[7])

    torch.library.impl(f"{_LIBRARY}::{name}", "CompositeExplicitAutograd", compute)
    torch.library.register_fake(f"{_LIBRARY}::{name}", infer)
    return getattr(getattr(torch.ops, _LIBRARY), name).default


def _result_like(x: Tensor, states: list[Tensor], *, bidirectional: bool) -> tuple[Tensor, ...]:
    """Return empty results: all outputs of the last layer, and the last states."""
    directions = 2 if bidirectional else 1
    return (x.new_empty((*x.shape[:-1], directions * states[0].shape[-1])), *map(torch.empty_like, states))
