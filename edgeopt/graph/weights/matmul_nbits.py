"""Packs 4-bit integers as ``MatMulNBits`` stores them: two in a byte, the first in the lower four bits."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from edgeopt.graph.model import Arrays

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


def count_packed_weights(node: onnx.NodeProto, constants: Arrays) -> tuple[int, int]:
    """Return how many weights a ``MatMulNBits`` node has, and how many of them are not zero."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    depth, columns, bits = (int(attributes[name]) for name in ("K", "N", "bits"))
    values = unpack_bits(constants[node.input[1]].reshape(columns, -1), bits)
    blocks = -(-depth // int(attributes["block_size"]))
    zeros = unpack_bits(constants[node.input[3]].reshape(columns, -1), bits)[:, :blocks]
    is_zero = values.reshape(columns, blocks, -1) == zeros[..., None]
    return depth * columns, depth * columns - int(is_zero.reshape(columns, -1)[:, :depth].sum())
