"""Brings a graph to another operator set, with ``onnx.version_converter``, and checks that it computes the same.

With inputs to check on it opens ONNX Runtime sessions, so that it runs in a subprocess
(``edgeopt.graph.jobs``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeopt.graph.model import lower_ir, read_opset
from edgeopt.graph.preparation.attempts import attempt
from edgeopt.model_files.tensors import weights_as_inputs

_SAME_RATIO = 1e-4
"""Of an output's largest value: converted operators may add in another order."""


def convert_operator_set(
    model: onnx.ModelProto, version: int, batch: Mapping[str, NDArray[Any]] | None
) -> tuple[onnx.ModelProto | None, str]:
    """Return the model in another operator set, or None and the reason if no conversion can be trusted.

    Args:
        model: The model; it is not changed.
        version: Of the standard operator set.
        batch: Inputs on which both have to compute the same; None to leave this check to the caller.
    """
    converted, reason = attempt(lambda: _convert(model, version))
    if converted is None:
        return None, reason or ""
    if batch is None:
        return converted, ""
    outputs, reason = attempt(lambda: (_run(model, batch), _run(converted, batch)))
    if outputs is None:
        return None, reason or ""
    if all(are_same_outputs(one, other) for one, other in zip(*outputs, strict=True)):
        return converted, ""
    return None, f"operator set {version} computes something else than {read_opset(model)}"


def _convert(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    converted: onnx.ModelProto = onnx.version_converter.convert_version(model, version)
    lower_ir(converted)
    onnx.checker.check_model(weights_as_inputs(converted))
    return converted


def _run(model: onnx.ModelProto, batch: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    import onnxruntime  # only where a session is opened: no process holds both it and torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, dict(batch))]


def are_same_outputs(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Tell whether an output before and after a conversion is the same but for the order of sums."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.kind != "f":
        return bool((one == other).all())
    largest = float(np.abs(one[np.isfinite(one)]).max(initial=0.0)) or 1.0
    return bool(np.allclose(one, other, rtol=0, atol=_SAME_RATIO * largest, equal_nan=True))
