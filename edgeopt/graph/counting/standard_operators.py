"""Replaces operators of ONNX Runtime by standard ones of the same shapes, so that ONNX can infer these.

The graph computes something else then: only its shapes are used.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from edgeopt.graph.model import MICROSOFT_DOMAIN

_STANDARD: dict[str, tuple[str, tuple[int, ...], tuple[str, ...]]] = {
    # the standard operator, the inputs that it keeps, the attributes that it keeps
    "QLinearAdd": ("Add", (0, 3), ()),
    "QLinearMul": ("Mul", (0, 3), ()),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,), ()),
    "QLinearSigmoid": ("Identity", (0,), ()),
    "QLinearLeakyRelu": ("Identity", (0,), ()),
    "QLinearSoftmax": ("Identity", (0,), ()),
    "QLinearReduceMean": ("ReduceMean", (0,), ("axes", "keepdims")),
    "QGemm": ("Gemm", (0, 3), ("transA", "transB")),
    "FusedConv": ("Conv", (0, 1), ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")),
    "FusedGemm": ("Gemm", (0, 1), ("transA", "transB")),
    "MatMulIntegerToFloat": ("MatMul", (0, 1), ()),
    "DynamicQuantizeMatMul": ("MatMul", (0, 1), ()),
    "DynamicQuantizeLSTM": ("LSTM", (0, 1, 2), ("hidden_size", "direction", "layout")),
    "BiasGelu": ("Identity", (0,), ()),
    "FastGelu": ("Identity", (0,), ()),
    "Gelu": ("Identity", (0,), ()),
    "QuickGelu": ("Identity", (0,), ()),
    "SkipLayerNormalization": ("Identity", (0,), ()),
    "SkipSimplifiedLayerNormalization": ("Identity", (0,), ()),
    "SimplifiedLayerNormalization": ("Identity", (0,), ()),
    "MultiHeadAttention": ("Identity", (0,), ()),
    "Scaler": ("Identity", (0,), ()),
    "Normalizer": ("Identity", (0,), ()),
}
_FEWER_OUTPUTS = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "MultiHeadAttention")
"""The others are means, or states for a next step."""


def use_standard_operators(graph: onnx.GraphProto) -> None:
    """Replace the operators of ONNX Runtime in a graph, in place."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type in ("MatMulNBits", "MatMulBnb4"):
            _replace_with_product(node, graph, [attributes["K"].i, attributes["N"].i])
        elif node.op_type == "FusedMatMul":
            _replace_with_transposed_product(node, graph, stored)
        elif node.op_type in ("Attention", "QAttention") and node.domain == MICROSOFT_DOMAIN:
            _replace_with_heads(node, graph, stored)
        elif node.op_type in _STANDARD:
            standard, indices, kept = _STANDARD[node.op_type]
            outputs = node.output[:1] if node.op_type in _FEWER_OUTPUTS else node.output
            replaced = helper.make_node(standard, [node.input[place] for place in indices], list(outputs))
            replaced.attribute.extend(attributes[name] for name in kept if name in attributes)
            node.CopyFrom(replaced)


def _replace_with_product(node: onnx.NodeProto, graph: onnx.GraphProto, shape: list[int]) -> None:
    """Replace a node with a ``MatMul`` of its first input with weights of a shape."""
    weights = f"{node.output[0]}_weights"
    graph.input.append(helper.make_tensor_value_info(weights, TensorProto.FLOAT, shape))
    node.CopyFrom(helper.make_node("MatMul", [node.input[0], weights], [node.output[0]]))


def _replace_with_heads(node: onnx.NodeProto, graph: onnx.GraphProto, stored: dict[str, TensorProto]) -> None:
    """Replace an attention, whose weights ``(i, 3 h)`` project queries, keys and values of the same size."""
    weights = stored.get(node.input[1])
    if weights is not None:
        _replace_with_product(node, graph, [weights.dims[0], weights.dims[1] // 3])


def _replace_with_transposed_product(
    node: onnx.NodeProto, graph: onnx.GraphProto, stored: dict[str, TensorProto]
) -> None:
    """Replace a product of matrices of which the second may be transposed; others are left."""
    flags = {attribute.name: attribute.i for attribute in node.attribute}
    if flags.get("transA") or flags.get("transBatchA") or flags.get("transBatchB"):
        return
    weights = stored.get(node.input[1])
    if not flags.get("transB"):
        node.CopyFrom(helper.make_node("MatMul", list(node.input), list(node.output)))
    elif weights is not None and len(weights.dims) == 2:
        _replace_with_product(node, graph, [*reversed(weights.dims)])
