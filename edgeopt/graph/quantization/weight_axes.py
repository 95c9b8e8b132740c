"""Weights that cannot have a scale for each channel, because their readers have the channels on different axes.

ONNX Runtime's kernels take a vector of scales as one for each column, whichever axis it belongs to. A square matrix
that one product reads transposed, and another as it is, then gives wrong numbers; batches of matrices fail.
"""

from __future__ import annotations

import onnx

from edgeopt.graph.model import find_consumers

_NO_WEIGHT = -1
"""Stands for the axis of a node whose second input is data like any other."""


def find_single_scale_weights(graph: onnx.GraphProto) -> list[str]:
    """Return the weights that get one scale for the whole tensor.

    Args:
        graph: A float graph.
    """
    readers = find_consumers(graph)
    found = []
    for tensor in graph.initializer:
        axes = {_channel_axis(node, len(tensor.dims)) for node, index in readers.get(tensor.name, ()) if index == 1}
        axes -= {_NO_WEIGHT}
        if len(axes) > 1 or None in axes:
            found.append(tensor.name)
    return found


def _channel_axis(node: onnx.NodeProto, rank: int) -> int | None:
    """Return the axis of the output channels in a node's weight; None if its kernel takes a single scale."""
    if node.op_type == "MatMul":
        return 1 if rank == 2 else None
    if node.op_type == "Gemm":
        return 0 if any(one.name == "transB" and one.i for one in node.attribute) else 1
    return {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, _NO_WEIGHT)
