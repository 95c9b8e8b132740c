"""Asking a device: requests from a profile, and refusals as edgeopt's errors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from edgeopt.device.base import Device, Worker, WorkerRefused, WorkerRequest
from edgeopt.errors import ConfigError, DeviceError, InputError, ProviderError, StepError
from edgeopt.records.profile import Profile

LOAD_SECONDS = 600.0
"""Longest time for a process to start and a session to load: large models are re-packed slowly on small devices."""

INSTALL = {
    "CUDAExecutionProvider": "Install onnxruntime-gpu (in place of onnxruntime) and an NVIDIA driver",
    "TensorrtExecutionProvider": "Install onnxruntime-gpu (in place of onnxruntime), TensorRT and an NVIDIA driver",
    "OpenVINOExecutionProvider": "Install onnxruntime-openvino (in place of onnxruntime)",
    "QNNExecutionProvider": "Install onnxruntime-qnn",
    "DmlExecutionProvider": "Install onnxruntime-directml (in place of onnxruntime), on Windows",
    "CoreMLExecutionProvider": "Run on macOS, where onnxruntime has it",
}


def runtime_request(
    mode: Literal["time", "memory", "outputs", "serve", "nodes"],
    model: str,
    profile: Profile,
    *,
    allow_fallback: tuple[str, ...],
    batch_size: int = 1,
    inputs: str = "",
    outputs: str = "",
) -> WorkerRequest:
    """Return a request with the profile's runtime settings and timing rule."""
    rule = profile.timing
    return WorkerRequest(
        mode=mode,
        model=model,
        inputs=inputs,
        outputs=outputs,
        providers=profile.providers,
        allow_fallback=tuple(full_provider_name(name) for name in allow_fallback),
        threads=profile.threads,
        affinity=profile.affinity,
        allow_spinning=profile.allow_spinning,
        memory_arena=profile.memory_arena,
        graph_level=profile.graph_level,
        batch_size=batch_size,
        warmup_runs=rule.warmup_runs,
        warmup_seconds=rule.warmup_seconds,
        min_runs=rule.min_runs,
        min_seconds=rule.min_seconds,
        max_seconds=rule.max_seconds,
    )


def full_provider_name(name: str) -> str:
    """Return ONNX Runtime's name of a provider; ``cpu`` and ``CUDA`` are short for the two that people type."""
    short = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    return short.get(name.lower(), name)


def run_request(
    device: Device,
    request: WorkerRequest,
    stage: str,
    *,
    seconds: float = 0.0,
    variables: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run one worker process and return the answer's fields.

    Args:
        device: Where it runs.
        request: What it does.
        stage: Named by errors.
        seconds: How long the work may take, beside the loading.
        variables: Environment variables of the process.

    Raises:
        ProviderError: a provider is not there, or runs nothing, and no fall-back was allowed.
        StepError: ONNX Runtime cannot load or run the model.
        InputError: the model's inputs cannot be made up, or the inputs file does not fit.
        DeviceError: the worker died or hung.
    """
    try:
        return device.run(request, LOAD_SECONDS + seconds, variables or {})
    except WorkerRefused as refused:
        raise _as_error(refused, stage, request) from refused
    except DeviceError as error:
        raise type(error)(f"{request.model}: {error}") from error


def ask_worker(
    worker: Worker, message: Mapping[str, Any] | WorkerRequest, request: WorkerRequest, stage: str, *, seconds: float
) -> dict[str, Any]:
    """Send one message to a worker that stays, and return the answer's fields; raises as ``run_request``."""
    try:
        return worker.ask(message, LOAD_SECONDS + seconds)
    except WorkerRefused as refused:
        raise _as_error(refused, stage, request) from refused
    except DeviceError as error:
        raise type(error)(f"{request.model}: {error}") from error


def _as_error(refused: WorkerRefused, stage: str, request: WorkerRequest) -> DeviceError | InputError | StepError:
    if refused.kind == "provider":
        missing = next(iter(request.providers), "")
        advice = INSTALL.get(missing, f"Use a build of onnxruntime that has {missing}")
        return ProviderError(
            f"{refused.reason}. {advice}; `--device 'local:?python=PATH'` takes the onnxruntime of another Python "
            f"environment, and `--allow-fallback CPUExecutionProvider` lets the processor run instead."
        )
    if refused.kind == "profile":
        return ConfigError(f"{refused.reason}.")
    if refused.kind == "input":
        return InputError(f"{request.model}: {refused.reason}.")
    return StepError(stage, f"ONNX Runtime cannot run {request.model}: {refused.reason}")


def file_sha256(path: Path, stage: str) -> str:
    """Return the file's sha256 in hex digits.

    Raises:
        StepError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise StepError(stage, f"cannot read {path}: {error.strerror}") from error
