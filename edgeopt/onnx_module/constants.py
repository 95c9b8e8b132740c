"""Tensors that a graph stores, as torch tensors; data types of ONNX as those of torch."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from torch import Tensor

from edgeopt.model_files.tensors import tensor_values

TYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.BOOL: torch.bool,
}
"""Types that torch computes with. Others, such as strings, larger unsigned integers and 8-bit floats, are refused."""


def read_tensor(proto: onnx.TensorProto) -> Tensor | None:
    """Return a stored tensor, or None if torch has no such type."""
    if proto.data_type not in TYPES:
        return None
    array = np.array(tensor_values(proto))
    if proto.data_type == onnx.TensorProto.BFLOAT16:
        return torch.from_numpy(array.astype(np.float32)).bfloat16()
    return torch.from_numpy(array)


def name_type(number: int) -> str:
    """Return an ONNX type's name, such as ``FLOAT16``."""
    known = number in onnx.TensorProto.DataType.values()
    return str(onnx.TensorProto.DataType.Name(number)) if known else f"type {number}"
