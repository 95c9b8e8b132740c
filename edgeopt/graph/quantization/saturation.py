"""Tells whether an int8 file gives the same numbers on x86 processors without VNNI.

There ONNX Runtime multiplies uint8 activations by int8 weights with ``vpmaddubsw``, which adds two neighbouring
products in 16 bits and saturates. The kernel's layout decides which weights are neighbours, so the bound here takes the
two worst of each output channel: if 255 times their sum fits, no input can saturate on any processor. Weights of 7 bits
(-64 to 64) always fit: 255 * (64 + 64) = 32,640.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeopt.graph.model import Arrays, read_initializers

MAX_INT16_SUM = 32_767
_MAX_ACTIVATION = 255


class _WeightInput(NamedTuple):
    """An input that is a weight; ``axis`` is that of the output channels."""

    input_index: int
    zero_point_index: int | None
    """Of the activations; None if the operator always makes them uint8."""
    axis: int


_WEIGHTS: dict[str, tuple[_WeightInput, ...]] = {
    "QLinearConv": (_WeightInput(3, 2, 0),),
    "QLinearMatMul": (_WeightInput(3, 2, -1),),
    "QGemm": (_WeightInput(3, 2, -1),),
    "ConvInteger": (_WeightInput(1, 2, 0),),
    "MatMulInteger": (_WeightInput(1, None, -1),),
    "DynamicQuantizeMatMul": (_WeightInput(1, None, -1),),
    "DynamicQuantizeLSTM": (_WeightInput(1, None, -1), _WeightInput(2, None, -1)),
}


def compute_max_pair_sum(weight: NDArray[np.int8], axis: int) -> int:
    """Return the largest magnitude that two products of one output channel can add up to, with any uint8 inputs."""
    rows = np.moveaxis(weight.astype(np.int32), axis, 0).reshape(weight.shape[axis], -1)
    ordered = np.sort(rows, axis=1)
    top, bottom = np.maximum(ordered[:, -2:], 0).sum(1), np.minimum(ordered[:, :2], 0).sum(1)
    return _MAX_ACTIVATION * int(max(top.max(initial=0), -bottom.min(initial=0)))


def find_saturating_nodes(model: onnx.ModelProto) -> tuple[tuple[str, int], ...]:
    """Return the outputs of nodes whose sums can exceed 16 bits, each with its bound.

    Quantize-dequantize pairs count as the integer operators that the runtime makes of them.
    """
    constants = read_initializers(model.graph)
    dequantized = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    saturating = []
    for node in model.graph.node:
        bounds = [
            compute_max_pair_sum(constants[node.input[weight.input_index]], weight.axis)
            for weight in _WEIGHTS.get(node.op_type, ())
            if _is_unsigned(node, weight, constants) and _is_int8(node.input[weight.input_index], constants)
        ]
        if node.op_type in ("Conv", "Gemm", "MatMul") and all(name in dequantized for name in node.input[:2]):
            values = dequantized[node.input[1]].input[0]
            rows_first = node.op_type == "Conv" or any(
                attribute.name == "transB" and attribute.i for attribute in node.attribute
            )
            if _is_int8(values, constants):
                bounds.append(compute_max_pair_sum(constants[values], 0 if rows_first else -1))
        if max(bounds, default=0) > MAX_INT16_SUM:
            saturating.append((node.output[0], max(bounds)))
    return tuple(saturating)


def _is_unsigned(node: onnx.NodeProto, weight: _WeightInput, constants: Arrays) -> bool:
    if weight.zero_point_index is None or len(node.input) <= weight.zero_point_index:
        return True
    zero = constants.get(node.input[weight.zero_point_index])
    return zero is None or zero.dtype == np.uint8


def _is_int8(name: str, constants: Arrays) -> bool:
    return name in constants and constants[name].dtype == np.int8
