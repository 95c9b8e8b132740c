"""Flush denormals: weights too small for a normal float become zero.

A denormal operand takes a slow path in many processors (onnxruntime#7448 saw a factor of 40). As a weight of a product
it is so small that the network's output is the same with zero. Elsewhere it may be the constant that keeps a division
from 0 / 0, and stays.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgeopt.graph.model import walk_graphs
from edgeopt.model_files.tensors import tensor_values

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")


def flush_denormals(model: onnx.ModelProto) -> int:
    """Set denormal weights of products to zero, in place; return their number."""
    count = 0
    weights, others = _read_by_products(model.graph)
    for graph in walk_graphs(model.graph):
        for tensor in graph.initializer:
            if tensor.data_type not in _FLOATS or tensor.name not in weights - others:
                continue
            values = tensor_values(tensor)
            tiny = np.finfo(values.dtype).tiny
            denormal = (np.abs(values) < tiny) & (values != 0)
            if denormal.any():
                count += int(denormal.sum())
                tensor.CopyFrom(
                    numpy_helper.from_array(np.where(denormal, 0, values).astype(values.dtype), tensor.name)
                )
    return count


def _read_by_products(graph: onnx.GraphProto) -> tuple[set[str], set[str]]:
    """Return the values that products read, and those that other nodes read."""
    products: set[str] = set()
    others: set[str] = set()
    for inner in walk_graphs(graph):
        for node in inner.node:
            (products if node.op_type in _PRODUCTS else others).update(node.input)
    return products, others
