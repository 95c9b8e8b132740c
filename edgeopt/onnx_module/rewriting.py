"""Nodes that are written in another form before they are computed, so that constants get the form that torch has.

A product with a constant matrix becomes a linear layer, whose weight is [outputs, inputs]; a recurrent layer gets an
operator before it that brings its weights into torch's order. The new operators on constants are then folded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from edgeopt.onnx_module.node import OWN_DOMAIN, Node
from edgeopt.onnx_module.operators.recurrent import PARTS, directions_of, find_unsupported

_RECURRENT = ("LSTM", "GRU", "RNN")


def rewrite(node: Node, constants: Mapping[str, Tensor]) -> list[Node]:
    """Return the nodes that take a node's place, or the node itself.

    Raises:
        StepError: a recurrent layer computes something that torch's layers do not.
    """
    if node.domain:
        return [node]
    if node.operator == "MatMul":
        return _linear(node, constants, node.inputs[1], transposed=False)
    if node.operator == "Gemm" and _is_linear(node, constants):
        return _linear(node, constants, node.inputs[1], transposed=bool(node.get("transB", 0)))
    return _recurrent(node) if node.operator in _RECURRENT else [node]


def _is_linear(node: Node, constants: Mapping[str, Tensor]) -> bool:
    bias = constants.get(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    weight = constants.get(node.inputs[1])
    if weight is None or node.get("transA", 0) or node.get("alpha", 1.0) != 1 or node.get("beta", 1.0) != 1:
        return False
    has_bias = len(node.inputs) > 2 and bool(node.inputs[2])
    outputs = weight.shape[0 if node.get("transB", 0) else 1]
    return not has_bias or (bias is not None and bias.shape == (outputs,))


def _linear(node: Node, constants: Mapping[str, Tensor], weight: str, *, transposed: bool) -> list[Node]:
    stored = constants.get(weight)
    if stored is None or stored.dim() != 2 or not stored.is_floating_point():
        return [node]
    name = weight if transposed else f"{weight}.transposed"
    linear = dataclasses.replace(
        node, operator="Linear", domain=OWN_DOMAIN, inputs=(node.inputs[0], name, *node.inputs[2:]), attributes={}
    )
    if transposed:
        return [linear]
    return [Node(operator="Transpose", inputs=(weight,), outputs=(name,), name=node.name, opset=node.opset), linear]


def _recurrent(node: Node) -> list[Node]:
    problem = find_unsupported(node)
    if problem is not None:
        raise node.refuse(f"{problem}, which torch's recurrent layers do not.")
    x, w, r, b, lengths, first, cell = (*node.inputs, "", "", "", "")[:7]
    prefix = node.name or w
    names = tuple(f"{prefix}.{part}{suffix}" for suffix in ("", "_reverse")[: directions_of(node)] for part in PARTS)
    weights = Node(
        operator="RecurrentWeights", domain=OWN_DOMAIN, name=node.name, inputs=(w, r, *([b] if b else [])),
        outputs=names, attributes={"layer": node.operator},
    )  # fmt: skip
    layer = dataclasses.replace(node, domain=OWN_DOMAIN, inputs=(x, lengths, first, cell, *names))
    return [weights, layer]
