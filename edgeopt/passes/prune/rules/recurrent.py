"""Recurrent layers: LSTM, GRU and plain ones, whole sequences or one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgeopt.passes.aten import aten
from edgeopt.passes.prune.labels import Labels, Marked
from edgeopt.passes.prune.rules.call import Call, Layers, Rule
from edgeopt.passes.prune.rules.contraction import contract
from edgeopt.passes.prune.rules.elementwise import match


def recurrent(gates: int) -> Rule:
    """Make the rule of a recurrent layer over ``gates`` blocks of units.

    A unit is a row of every gate, and a column of the weights that read the state. All levels and directions have one
    size, as ``hx`` has, so the j-th unit goes from all of them.
    """

    def rule(labels: Labels, call: Call) -> list[Layers]:
        states = call["hx"] if isinstance(call["hx"], list | tuple) else [call["hx"]]
        if "input" not in call.arguments:
            labels.freeze([layer for operand in call.operands for layer in operand.layers], "a packed sequence")
            return [() for _ in call.shape]
        directions, biased = 1 + bool(call["bidirectional"]), bool(call["has_biases"])
        each = 2 + 2 * biased + (gates == 4 and states[0].shape[-1] != states[-1].shape[-1])
        parts = [call["params"][start : start + each] for start in range(0, len(call["params"]), each)]
        hidden = [_state(labels, state) for state in states]
        x = Marked(call.input.shape[-1:], tuple(layer.reshape(-1) for layer in _features(labels, call.input)))
        for level in range(int(call["num_layers"])):
            lines = [
                _cell(labels, x, hidden, part, gates, biased)
                for part in parts[level * directions : (level + 1) * directions]
            ]
            out = torch.cat(lines)
            x = Marked(tuple(out.shape), (out,))
        return [(x.layers[0].reshape(1, 1, -1),), *((line.reshape(1, 1, -1),) for line in hidden)]

    return rule


def step(gates: int) -> Rule:
    """Make the rule of one step of a cell."""

    def rule(labels: Labels, call: Call) -> list[Layers]:
        states = call["hx"] if isinstance(call["hx"], list | tuple) else [call["hx"]]
        hidden = [_state(labels, state) for state in states]
        x = Marked(call.input.shape[-1:], tuple(layer.reshape(-1) for layer in _features(labels, call.input)))
        part = [call[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh") if call[name] is not None]
        _cell(labels, x, hidden, part, gates, len(part) == 4)
        return [(line.reshape(1, -1),) for line in hidden]

    return rule


def _cell(
    labels: Labels, x: Marked, hidden: Sequence[Tensor], part: Sequence[Marked], gates: int, biased: bool
) -> Tensor:
    """Tie the weights of one level and direction to the state; return the labels of its output."""
    units = hidden[-1]
    state = Marked(tuple(hidden[0].shape), (hidden[0],))
    sums = [contract(labels, [read, by], ["k", "nk"], "n") for read, by in zip((x, state), part[:2], strict=True)]
    rows = Marked(part[0].shape[:1], (units.repeat(gates),))
    for layers in [*sums, *(bias.layers for bias in part[2 : 2 + 2 * biased])]:
        match(labels, [rows, Marked(rows.shape, layers)], rows.shape)
    if len(part) == 3 + 2 * biased:
        cell = Marked(tuple(units.shape), (units,))
        projected = contract(labels, [cell, part[-1]], ["k", "nk"], "n")
        match(labels, [state, Marked(state.shape, projected)], state.shape)
    else:
        labels.unite(hidden[0], units)
    return hidden[0]


def _state(labels: Labels, state: Marked) -> Tensor:
    """Return the labels of a state's units; a state without any cannot be cut."""
    lines = _features(labels, state)
    return lines[0].reshape(-1) if lines else torch.zeros(state.shape[-1], dtype=torch.int64)


def _features(labels: Labels, value: Marked) -> list[Tensor]:
    """Return layers that depend on the last dimension alone; the others freeze, for sequences mix all other places."""
    lines = [layer for layer in value.layers if layer.shape[-1] == layer.numel()]
    labels.freeze([layer for layer in value.layers if layer.shape[-1] != layer.numel()])
    return lines


def single(gates: int) -> Rule:
    """Make the rule of one step of a cell with one state."""

    def rule(labels: Labels, call: Call) -> Layers:
        [layers] = step(gates)(labels, call)
        return layers  # type: ignore[return-value]

    return rule


RULES: dict[Any, Rule] = {
    aten.lstm: recurrent(4),
    aten.gru: recurrent(3),
    aten.rnn_tanh: recurrent(1),
    aten.rnn_relu: recurrent(1),
    aten.lstm_cell: step(4),
    aten.gru_cell: single(3),
    aten.rnn_tanh_cell: single(1),
    aten.rnn_relu_cell: single(1),
}
