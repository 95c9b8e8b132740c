"""Half: weights and activations in float16. Runs in a process of its own (``edgeopt.graph.subprocess_worker``)."""

from __future__ import annotations

import warnings

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in float16; its inputs and outputs stay float32, values beyond float16's range are clamped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one for each value that is clamped
        half: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    OnnxModel.graph_topological_sort(half.graph, is_deterministic=True)  # its casts come last
    return half
