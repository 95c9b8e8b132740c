"""Float16: weights and activations in half precision. Runs in a subprocess (``edgeopt.graph.subprocess_worker``)."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from edgeopt.errors import StepError
from edgeopt.graph.model import read_initializers

_LARGEST = 65504.0


def convert_to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in float16. Inputs and outputs stay float32.

    Raises:
        StepError: a weight is outside float16's range, and would be clamped.
    """
    for name, values in read_initializers(model.graph).items():
        largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0)) if values.dtype == np.float32 else 0.0
        if largest > _LARGEST:
            raise StepError(
                "float16", f"'{name}' holds {largest:g}, which is beyond the largest number of float16, {_LARGEST:g}."
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one per clamped value
        converted: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    OnnxModel.graph_topological_sort(converted.graph, is_deterministic=True)  # the new casts come last
    return converted
