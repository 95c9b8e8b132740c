"""Execution providers of a device by name, and how far their outputs are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import InputError

PROCESSOR = "CPUExecutionProvider"
INSTALL_HINTS = {
    "CUDAExecutionProvider": "Install onnxruntime-gpu (instead of onnxruntime) and an NVIDIA driver",
    "TensorrtExecutionProvider": "Install onnxruntime-gpu (instead of onnxruntime), TensorRT and an NVIDIA driver",
    "NvTensorRTRTXExecutionProvider": "Install onnxruntime-ep-nv-tensorrt-rtx and an NVIDIA driver",
    "OpenVINOExecutionProvider": "Install onnxruntime-ep-openvino, a plug-in for Intel's hardware",
    "QNNExecutionProvider": "Install onnxruntime-qnn",
    "WebGpuExecutionProvider": "Install onnxruntime-ep-webgpu and a driver of a GPU",
    "DmlExecutionProvider": "Install onnxruntime-directml (instead of onnxruntime), on Windows",
    "CoreMLExecutionProvider": "Run on macOS, where onnxruntime includes CoreML",
}
_REMOTE_PROVIDER = "AzureExecutionProvider"
"""Sends inputs to a server."""
_OTHER_HINT = "Install a package of onnxruntime that has it"


def find_providers(wanted: Sequence[str], available: Sequence[str], uri: str) -> list[str]:
    """Return execution providers by their full names, the processor's first: the others are compared with it.

    Args:
        wanted: As the user names them: ``CUDAExecutionProvider`` or ``cuda``; empty for all.
        available: Those of the device.
        uri: Of the device.

    Raises:
        InputError: one of them is not there.
    """
    here = {_short(name): name for name in available if name != _REMOTE_PROVIDER}
    missing = [name for name in wanted if _short(name) not in here]
    if missing or not here:
        shown = ", ".join(here.values()) or "no execution providers that it reports"
        hints = {_short(name): hint for name, hint in INSTALL_HINTS.items()}
        hint = next((hints[_short(name)] for name in missing if _short(name) in hints), _OTHER_HINT)
        raise InputError(
            f"--providers {','.join(missing) or 'all'}: {uri} has {shown}. {hint}, best in a separate environment, and "
            "name that with --device 'local:?python=PATH'."
        )
    names = [here[_short(name)] for name in wanted] if wanted else list(here.values())
    return [PROCESSOR, *(name for name in dict.fromkeys(names) if name != PROCESSOR)]


def _short(name: str) -> str:
    return name.lower().removesuffix("executionprovider")


def relative_difference(expected: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]]) -> float | None:
    """Return the largest difference of an output from what is expected, over the largest expected value.

    Infinite if one of them is not finite and the other is; None if nothing was run, or no output has numbers.
    """
    ratios = []
    for one, other in zip(expected, found, strict=True):
        if one.dtype.kind not in "fiub" or not one.size:
            continue
        exact, values = one.astype(np.float64), other.astype(np.float64)
        largest = float(np.abs(exact[np.isfinite(exact)]).max(initial=0.0)) or 1.0
        is_equal = (exact == values) | (np.isnan(exact) & np.isnan(values))
        with np.errstate(invalid="ignore"):
            apart = np.where(is_equal, 0.0, np.abs(exact - values))
        ratios.append(float(np.where(np.isnan(apart), np.inf, apart).max()) / largest)
    return max(ratios, default=None)
