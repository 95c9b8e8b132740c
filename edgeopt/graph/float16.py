"""Float16: weights and activations in half precision. Runs in a subprocess (``edgeopt.graph.subprocess_worker``)."""

from __future__ import annotations

import warnings

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel


def convert_to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in float16. Inputs and outputs stay float32; values outside float16's range are clamped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one per clamped value
        converted: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    OnnxModel.graph_topological_sort(converted.graph, is_deterministic=True)  # the new casts come last
    return converted
