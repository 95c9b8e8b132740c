"""LSTM, GRU and RNN over whole sequences.

The conversion puts an operator of our own before each, which brings the weights into torch's form: one matrix per
direction, gates in torch's order. Constants are brought into it once, and are the parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgeopt.onnx_module.node import Node, Operator
from edgeopt.onnx_module.values import Value

_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""The position in ONNX of each gate in torch's order; ONNX has input, output, forget, cell; update, reset, hidden."""
_ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}
PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
"""The tensors of one direction, in the order in which torch takes them."""


def directions_of(node: Node) -> int:
    """Return the number of directions."""
    return 2 if node.get("direction", "forward") == "bidirectional" else 1


def find_unsupported(node: Node) -> str | None:
    """Return what an LSTM, GRU or RNN has that torch's layers have not; None if there is nothing."""
    given = [name.lower() for name in node.get("activations", [])]
    usual = _ACTIVATIONS.get(node.operator)
    if usual is None:
        fine = not given or (len(set(given)) == 1 and given[0] in ("tanh", "relu"))
    else:
        fine = not given or given == usual * directions_of(node)
    if not fine:
        return f"has the activations {', '.join(node.get('activations'))}"
    if node.get("clip") or node.get("input_forget", 0):
        return "clips its gates or couples them"
    if len(node.inputs) > 7 and node.inputs[7]:
        return "has peepholes"
    return None


def _weights(node: Node, w: Tensor, r: Tensor, b: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return the tensors of each direction in torch's form.

    Args:
        node: The node, with the layer's kind as ``layer``.
        w: Weights of the input, [directions, gates * hidden, features].
        r: Weights of the state, [directions, gates * hidden, hidden].
        b: Both biases, [directions, 2 * gates * hidden]; None for zeros.
    """
    order = _GATES[node.get("layer")]

    def arrange(value: Tensor) -> Tensor:
        gates = value.chunk(len(order))
        return torch.cat([gates[position] for position in order])

    found: list[Tensor] = []
    for direction in range(w.shape[0]):
        size = w.shape[1]
        biases = w.new_zeros(2 * size) if b is None else b[direction]
        found += [arrange(w[direction]), arrange(r[direction]), arrange(biases[:size]), arrange(biases[size:])]
    return tuple(found)


def _recurrent(
    node: Node, x: Tensor, lengths: Value | None, first: Tensor | None, cell: Tensor | None, *params: Tensor
) -> tuple[Tensor, ...]:
    """Run a layer: ``x`` is [time, batch, features], or with ``layout`` 1 [batch, time, features]."""
    count = directions_of(node)
    if isinstance(lengths, Tensor):
        raise node.refuse("has sequence lengths that its inputs decide, which is not supported.")
    batch_first = bool(node.get("layout", 0))
    x = x.transpose(0, 1) if batch_first else x
    if lengths is not None and any(int(length) != x.shape[0] for length in lengths):
        raise node.refuse("has sequence lengths other than that of the sequence, which is not supported.")
    backwards = node.get("direction", "forward") == "reverse"
    hidden = params[1].shape[1]
    given = [value.transpose(0, 1) if batch_first and value is not None else value for value in (first, cell)]
    states = [x.new_zeros(count, x.shape[1], hidden) if value is None else value for value in given]
    for state in states:  # torch does not check it, and computes something else
        if state.shape[1] != x.shape[1]:
            raise node.refuse(f"has an initial state for {state.shape[1]} samples, but gets {x.shape[1]}.")
    out, *last = _run(node, x.flip(0) if backwards else x, states, list(params), count)
    out = out.flip(0) if backwards else out
    y = out.reshape(*out.shape[:2], count, hidden)  # [time, batch, direction, hidden]
    if batch_first:
        return (y.transpose(0, 1), *(state.transpose(0, 1) for state in last))
    return (y.transpose(1, 2), *last)


def _run(node: Node, x: Tensor, states: list[Tensor], params: list[Tensor], count: int) -> tuple[Tensor, ...]:
    both = count == 2
    functions: Any = torch._VF
    if node.operator == "LSTM":
        found = functions.lstm(x, states, params, True, 1, 0.0, False, both, False)
    elif node.operator == "RNN":
        kind = (node.get("activations") or ["tanh"])[0].lower()
        layer = functions.rnn_relu if kind == "relu" else functions.rnn_tanh
        found = layer(x, states[0], params, True, 1, 0.0, False, both, False)
    elif node.get("linear_before_reset", 0):
        found = functions.gru(x, states[0], params, True, 1, 0.0, False, both, False)
    else:
        lines = [_reset_first(x.flip(0) if place else x, states[0][place], params[4 * place : 4 * place + 4])
                 for place in range(count)]  # fmt: skip
        outs = [out.flip(0) if place else out for place, (out, _) in enumerate(lines)]
        found = torch.cat(outs, -1), torch.stack([state for _, state in lines])
    return tuple(found)


def _reset_first(x: Tensor, state: Tensor, params: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Run a GRU that applies its reset gate before the product with the state (``linear_before_reset`` 0).

    Torch's layer applies it afterwards, so here are the steps one by one.
    """
    w, r, b, c = params
    hidden = r.shape[1]
    inputs = torch.nn.functional.linear(x, w, b)
    steps = []
    for step in range(x.shape[0]):
        gates = inputs[step, :, : 2 * hidden] + torch.nn.functional.linear(state, r[: 2 * hidden], c[: 2 * hidden])
        reset, update = torch.sigmoid(gates).chunk(2, -1)
        products = torch.nn.functional.linear(reset * state, r[2 * hidden :], c[2 * hidden :])
        fresh = torch.tanh(inputs[step, :, 2 * hidden :] + products)
        state = (1 - update) * fresh + update * state
        steps.append(state)
    return torch.stack(steps), state


TABLE: dict[str, Operator] = {kind: Operator(_recurrent) for kind in _GATES}
OWN_TABLE: dict[str, Operator] = {
    "RecurrentWeights": Operator(_weights),
    **{kind: Operator(_recurrent, either=(1,), weights=tuple(range(4, 12))) for kind in _GATES},
}
