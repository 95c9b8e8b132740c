"""Recurrent layers: LSTM, GRU and plain RNN, over whole sequences or for one step."""

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


def recurrent_rule(gates: int) -> Rule:
    """Make the rule of a recurrent layer with ``gates`` blocks of units.

    A unit is a row of every gate and a column of the weights that read the state. All levels and directions have the
    same size, that of ``hx``, so the j-th unit goes from all of them.
    """

    def rule(labels: Labels, call: Call) -> list[Layers]:
        states = call["hx"] if isinstance(call["hx"], list | tuple) else [call["hx"]]
        if "input" not in call.arguments:
            labels.freeze([layer for operand in call.operands for layer in operand.layers], "a packed sequence")
            return [() for _ in call.shape]
        directions, has_biases = 1 + bool(call["bidirectional"]), bool(call["has_biases"])
        count = 2 + 2 * has_biases + (gates == 4 and states[0].shape[-1] != states[-1].shape[-1])
        parts = [call["params"][start : start + count] for start in range(0, len(call["params"]), count)]
        hidden = [_state_labels(labels, state) for state in states]
        x = Marked(call.input.shape[-1:], tuple(layer.reshape(-1) for layer in _feature_layers(labels, call.input)))
        for level in range(int(call["num_layers"])):
            lines = [
                _tie_cell(labels, x, hidden, part, gates, has_biases)
                for part in parts[level * directions : (level + 1) * directions]
            ]
            out = torch.cat(lines)
            x = Marked(tuple(out.shape), (out,))
        return [(x.layers[0].reshape(1, 1, -1),), *((line.reshape(1, 1, -1),) for line in hidden)]

    return rule


def step_rule(gates: int) -> Rule:
    """Make the rule of one step of a recurrent cell."""

    def rule(labels: Labels, call: Call) -> list[Layers]:
        states = call["hx"] if isinstance(call["hx"], list | tuple) else [call["hx"]]
        hidden = [_state_labels(labels, state) for state in states]
        x = Marked(call.input.shape[-1:], tuple(layer.reshape(-1) for layer in _feature_layers(labels, call.input)))
        part = [call[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh") if call[name] is not None]
        _tie_cell(labels, x, hidden, part, gates, len(part) == 4)
        return [(line.reshape(1, -1),) for line in hidden]

    return rule


def _tie_cell(
    labels: Labels, x: Marked, hidden: Sequence[Tensor], part: Sequence[Marked], gates: int, has_biases: bool
) -> Tensor:
    """Tie the weights of one level and direction to the state; return the labels of the output."""
    units = hidden[-1]
    state = Marked(tuple(hidden[0].shape), (hidden[0],))
    sums = [
        contract(labels, [read, weight], ["k", "nk"], "n") for read, weight in zip((x, state), part[:2], strict=True)
    ]
    rows = Marked(part[0].shape[:1], (units.repeat(gates),))
    for layers in [*sums, *(bias.layers for bias in part[2 : 2 + 2 * has_biases])]:
        match(labels, [rows, Marked(rows.shape, layers)], rows.shape)
    if len(part) == 3 + 2 * has_biases:
        cell = Marked(tuple(units.shape), (units,))
        projected = contract(labels, [cell, part[-1]], ["k", "nk"], "n")
        match(labels, [state, Marked(state.shape, projected)], state.shape)
    else:
        labels.unite(hidden[0], units)
    return hidden[0]


def _state_labels(labels: Labels, state: Marked) -> Tensor:
    """Return the labels of a state's units. A state without labels cannot be cut."""
    lines = _feature_layers(labels, state)
    return lines[0].reshape(-1) if lines else torch.zeros(state.shape[-1], dtype=torch.int64)


def _feature_layers(labels: Labels, value: Marked) -> list[Tensor]:
    """Return the layers that depend only on the last dimension; freeze the others: sequences mix their positions."""
    lines = [layer for layer in value.layers if layer.shape[-1] == layer.numel()]
    labels.freeze([layer for layer in value.layers if layer.shape[-1] != layer.numel()])
    return lines


def single_state_step_rule(gates: int) -> Rule:
    """Make the rule of one step of a cell with a single state."""

    def rule(labels: Labels, call: Call) -> Layers:
        [layers] = step_rule(gates)(labels, call)
        return layers  # type: ignore[return-value]

    return rule


RULES: dict[Any, Rule] = {
    aten.lstm: recurrent_rule(4),
    aten.gru: recurrent_rule(3),
    aten.rnn_tanh: recurrent_rule(1),
    aten.rnn_relu: recurrent_rule(1),
    aten.lstm_cell: step_rule(4),
    aten.gru_cell: single_state_step_rule(3),
    aten.rnn_tanh_cell: single_state_step_rule(1),
    aten.rnn_relu_cell: single_state_step_rule(1),
}
