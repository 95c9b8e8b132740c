"""Whether an int8 file gives the same numbers on x86 processors without VNNI.

There ONNX Runtime multiplies uint8 activations by int8 weights with ``vpmaddubsw``, which adds two neighbouring
products in 16 bits and saturates. Which weights are neighbours hangs on the kernel's layout, so the bound here takes
the two worst of each output channel: where 255 times their sum fits, no input can saturate on any processor. Weights of
7 bits (-64 to 64) always fit: 255 * (64 + 64) = 32,640.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeopt.graph.model import Arrays, arrays

LARGEST = 32_767
"""Of a signed 16-bit sum."""
LARGEST_ACTIVATION = 255


class _Weight(NamedTuple):
    """Where an operator keeps a weight: its input, the zero point of its activations, the axis of output channels."""

    place: int
    zero_point: int | None
    """None where the operator always makes uint8 activations."""
    axis: int


_WEIGHTS: dict[str, tuple[_Weight, ...]] = {
    "QLinearConv": (_Weight(3, 2, 0),),
    "QLinearMatMul": (_Weight(3, 2, -1),),
    "QGemm": (_Weight(3, 2, -1),),
    "ConvInteger": (_Weight(1, 2, 0),),
    "MatMulInteger": (_Weight(1, None, -1),),
    "DynamicQuantizeMatMul": (_Weight(1, None, -1),),
    "DynamicQuantizeLSTM": (_Weight(1, None, -1), _Weight(2, None, -1)),
}


def largest_pair_sum(weight: NDArray[np.int8], axis: int) -> int:
    """Return the largest magnitude that two products of one output channel can add up to, with any uint8 inputs."""
    rows = np.moveaxis(weight.astype(np.int32), axis, 0).reshape(weight.shape[axis], -1)
    ordered = np.sort(rows, axis=1)
    top, bottom = np.maximum(ordered[:, -2:], 0).sum(1), np.minimum(ordered[:, :2], 0).sum(1)
    return LARGEST_ACTIVATION * int(max(top.max(initial=0), -bottom.min(initial=0)))


def saturating_nodes(model: onnx.ModelProto) -> tuple[tuple[str, int], ...]:
    """Return the outputs of nodes whose sums can leave 16 bits, each with its bound; empty says that none can.

    Quantize-dequantize pairs are seen through: the runtime makes integer operators of them.
    """
    constants = arrays(model.graph)
    dequantized = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    found = []
    for node in model.graph.node:
        bounds = [
            largest_pair_sum(constants[node.input[weight.place]], weight.axis)
            for weight in _WEIGHTS.get(node.op_type, ())
            if _is_unsigned(node, weight, constants) and _is_int8(node.input[weight.place], constants)
        ]
        if node.op_type in ("Conv", "Gemm", "MatMul") and all(name in dequantized for name in node.input[:2]):
            values = dequantized[node.input[1]].input[0]
            turned = node.op_type == "Conv" or any(one.name == "transB" and one.i for one in node.attribute)
            if _is_int8(values, constants):
                bounds.append(largest_pair_sum(constants[values], 0 if turned else -1))
        if max(bounds, default=0) > LARGEST:
            found.append((node.output[0], max(bounds)))
    return tuple(found)


def _is_unsigned(node: onnx.NodeProto, weight: _Weight, constants: Arrays) -> bool:
    if weight.zero_point is None or len(node.input) <= weight.zero_point:
        return True
    zero = constants.get(node.input[weight.zero_point])
    return zero is None or zero.dtype == np.uint8


def _is_int8(name: str, constants: Arrays) -> bool:
    return name in constants and constants[name].dtype == np.int8
