"""Matrix products, and linear layers that the conversion writes for products with constant matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeopt.onnx_module.node import Node, Operator


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    left, right = a.t() if node.get("transA", 0) else a, b.t() if node.get("transB", 0) else b
    product = torch.matmul(left, right)
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    product = product if alpha == 1 else product * alpha
    if c is None or beta == 0:
        return product
    return product + (c if beta == 1 else c * beta)


def _linear(_node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


TABLE: dict[str, Operator] = {
    "MatMul": Operator(lambda _node, a, b: torch.matmul(a, b), weights=(0, 1)),
    "Gemm": Operator(_gemm, weights=(0, 1, 2)),
    "Einsum": Operator(lambda node, *values: torch.einsum(node.get("equation"), *values), weights=(0, 1)),
    "Det": Operator(lambda _node, x: torch.linalg.det(x)),
}
OWN_TABLE: dict[str, Operator] = {"Linear": Operator(_linear, weights=(1, 2))}
