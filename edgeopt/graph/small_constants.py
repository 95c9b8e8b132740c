"""Nodes that compute with a constant too small for float16 and int8, such as the ``1e-9`` of a division.

In float16 the constant would become another one (float16 ends at 6e-8) and its root or reciprocal overflow; int8 would
round the sum with it to zero.
"""

from __future__ import annotations

import numpy as np
import onnx

from edgeopt.graph.model import find_consumers, read_initializers

_SMALLEST = float(np.finfo(np.float16).tiny)
"""Smallest normal number of float16, 6.1e-5."""
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "BatchNormalization")
"""Their small constants are weights, which count for little."""
_CARRIES_RANGE = ("Sqrt", "Reciprocal", "Pow", "Expand", "Unsqueeze", "Squeeze", "Reshape", "Identity", "Clip", "Max")
_ENDS_RANGE = ("Div", "Mul", "Log")
_SUMS = ("ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Abs", *_CARRIES_RANGE)


def find_small_constant_nodes(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the nodes that read a constant below float16's smallest normal number, and of those around.

    These are the sums and squares that the constant is added to, and the roots, quotients and logarithms after it.

    Args:
        graph: A float32 graph whose nodes have names.
    """
    small = {
        name
        for name, values in read_initializers(graph).items()
        if values.dtype == np.float32 and values.any() and float(np.abs(values).max()) < _SMALLEST
    }
    readers = find_consumers(graph)
    producers = {name: node for node in graph.node for name in node.output}
    seeds = [node for node in graph.node if node.op_type not in _PRODUCTS and small & set(node.input)]
    found = {node.name for node in seeds}
    waiting = list(seeds)
    while waiting:
        for user in (user for name in waiting.pop().output for user, _ in readers.get(name, [])):
            if user.op_type in (*_CARRIES_RANGE, *_ENDS_RANGE) and user.name not in found:
                found.add(user.name)
                waiting += [user] if user.op_type in _CARRIES_RANGE else []
    waiting = list(seeds)
    while waiting:
        for source in (producers[name] for name in waiting.pop().input if name in producers):
            squares = source.op_type == "Mul" and len(set(source.input)) == 1
            if (source.op_type in _SUMS or squares) and source.name not in found:
                found.add(source.name)
                waiting.append(source)
    return [node.name for node in graph.node if node.name in found]
