"""Packs 4-bit integers as ``MatMulNBits`` stores them: two in a byte, the first in the lower four bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from edgeopt.model_files.tensors import tensor_values

Bytes = NDArray[np.uint8]


def pack_bits(values: Bytes, bits: int) -> Bytes:
    """Pack values of ``bits`` (4 or 8) along the last axis; an odd number of values is padded with a zero.

    Example: ``[1, 2, 3]`` of 4 bits becomes ``[0x21, 0x03]``.
    """
    if bits == 8:
        return values
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], 1), np.uint8)], axis=-1)
    return (values[..., 0::2] | (values[..., 1::2] << 4)).astype(np.uint8)


def unpack_bits(packed: Bytes, bits: int) -> Bytes:
    """Undo ``pack_bits``; the padding stays."""
    if bits == 8:
        return packed
    return np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def count_packed_weights(node: onnx.NodeProto, tensors: Mapping[str, onnx.TensorProto]) -> tuple[int, int]:
    """Return how many weights a ``MatMulNBits`` or ``MatMulBnb4`` node has, and how many of them are not zero.

    Args:
        node: The node; without zero points they are in the middle of the range, as ONNX Runtime has it.
        tensors: What the graph stores. If the integers are not there, all count as not zero.
    """
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    depth, columns, bits = (int(attributes.get(name, default)) for name, default in (("K", 0), ("N", 0), ("bits", 4)))
    stored = tensors.get(node.input[1])
    if node.op_type != "MatMulNBits" or stored is None or bits not in (4, 8):
        return depth * columns, depth * columns
    values = unpack_bits(tensor_values(stored).reshape(columns, -1), bits)
    blocks = -(-depth // int(attributes["block_size"]))
    points = tensors.get(node.input[3]) if len(node.input) > 3 and node.input[3] else None
    zeros: NDArray[Any] = np.full((columns, blocks), 2 ** (bits - 1))
    if points is not None and points.data_type == onnx.TensorProto.UINT8:
        zeros = unpack_bits(tensor_values(points).reshape(columns, -1), bits)[:, :blocks]
    elif points is not None:
        zeros = tensor_values(points).reshape(columns, blocks)
    is_zero = values.reshape(columns, blocks, -1) == zeros[..., None]
    return depth * columns, depth * columns - int(is_zero.reshape(columns, -1)[:, :depth].sum())
