"""Operators of ONNX Runtime's own domain that its tools write into files of transformers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeopt.onnx_module.node import Node, Operator


def _fast_gelu(_node: Node, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


def _skip_layer_norm(
    node: Node, x: Tensor, skip: Tensor, gamma: Tensor, beta: Tensor | None = None, bias: Tensor | None = None
) -> Tensor | tuple[Tensor | None, ...]:
    total = x + skip if bias is None else x + skip + bias
    normed = F.layer_norm(total, list(gamma.shape), gamma, beta, node.get("epsilon", 1e-5))
    return (normed, None, None, total) if node.wants(3) else normed


def _fused_matmul(node: Node, a: Tensor, b: Tensor) -> Tensor:
    if node.get("transBatchA", 0) or node.get("transBatchB", 0):
        raise node.refuse("transposes its batch, which is not supported.")
    left = a.transpose(-1, -2) if node.get("transA", 0) else a
    right = b.transpose(-1, -2) if node.get("transB", 0) else b
    alpha: float = node.get("alpha", 1.0)
    return torch.matmul(left, right) * alpha


TABLE: dict[str, Operator] = {
    "Gelu": Operator(lambda _node, x: F.gelu(x)),
    "QuickGelu": Operator(lambda node, x: x * torch.sigmoid(node.get("alpha", 1.702) * x)),
    "FastGelu": Operator(_fast_gelu, weights=(1,)),
    "BiasGelu": Operator(lambda _node, x, bias: F.gelu(x + bias), weights=(1,)),
    "FusedMatMul": Operator(_fused_matmul, weights=(0, 1)),
    "SkipLayerNormalization": Operator(_skip_layer_norm, weights=(2, 3, 4)),
}
