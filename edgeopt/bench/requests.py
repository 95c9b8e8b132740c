"""Requests to a device: from a profile's settings to a request, from a worker's refusal to one of edgeopt's errors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from edgeopt.bench.providers import INSTALL_HINTS, PROCESSOR
from edgeopt.bench.run_target import RunTarget
from edgeopt.device.base import Device, Worker, WorkerRefused, WorkerRequest
from edgeopt.errors import ConfigError, DeviceError, InputError, ProviderError, StepError

LOAD_SECONDS = 600.0
"""Longest time for a process to start and a session to load; small devices are slow to re-pack large models."""


def runtime_request(
    mode: Literal["time", "memory", "outputs", "serve", "nodes"],
    model: Path | str,
    target: RunTarget,
    *,
    outputs: Path | None = None,
) -> WorkerRequest:
    """Return a request with the target's runtime settings, inputs and timing rule."""
    profile = target.profile
    rule = profile.timing
    return WorkerRequest(
        mode=mode,
        model=str(model),
        inputs=str(target.inputs or ""),
        outputs=str(outputs or ""),
        providers=profile.providers,
        provider_libraries=profile.provider_libraries,
        allow_fallback=tuple(expand_provider_name(name) for name in target.allow_fallback),
        threads=profile.threads,
        affinity=profile.affinity,
        allow_spinning=profile.allow_spinning,
        memory_arena=profile.memory_arena,
        graph_level=profile.graph_level,
        states=dict(target.states),
        batch_size=target.batch_size,
        warmup_runs=rule.warmup_runs,
        warmup_seconds=rule.warmup_seconds,
        min_runs=rule.min_runs,
        min_seconds=rule.min_seconds,
        max_seconds=rule.max_seconds,
    )


def expand_provider_name(name: str) -> str:
    """Return ONNX Runtime's name of a provider; ``cpu`` and ``cuda``, in any case, are accepted as short forms."""
    short_names = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    return short_names.get(name.lower(), name)


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
        request: Its work.
        stage: Named in errors.
        seconds: How long the work may take, not counting the loading.
        variables: Environment variables of the process.

    Raises:
        ProviderError: a provider is not available or runs nothing, and no fallback was allowed.
        StepError: ONNX Runtime cannot load or run the model.
        InputError: no random inputs can be made for the model, or the inputs file does not fit.
        ConfigError: the profile asks for something that the device can't do.
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
    """Send one message to a long-running worker and return the answer's fields; raises as ``run_request``."""
    try:
        return worker.ask(message, LOAD_SECONDS + seconds)
    except WorkerRefused as refused:
        raise _as_error(refused, stage, request) from refused
    except DeviceError as error:
        raise type(error)(f"{request.model}: {error}") from error


def _as_error(refused: WorkerRefused, stage: str, request: WorkerRequest) -> DeviceError | InputError | StepError:
    if refused.kind in ("provider", "plugin", "nodes"):
        return ProviderError(f"{refused.reason.rstrip('.')}. {_provider_advice(refused, request)}")
    if refused.kind == "profile":
        return ConfigError(f"{refused.reason}.")
    if refused.kind == "input":
        return InputError(f"{request.model}: {refused.reason}.")
    return StepError(stage, f"ONNX Runtime cannot run {request.model}: {refused.reason}")


def _provider_advice(refused: WorkerRefused, request: WorkerRequest) -> str:
    fallback = f"with `--allow-fallback {PROCESSOR}`."
    if refused.kind == "nodes":
        return f"Let the processor run them {fallback}"
    named = [name for name in request.providers if name in refused.reason] or [*request.providers, ""][:1]
    name = min(named, key=refused.reason.find)  # a reason begins with the one that it is about
    if refused.kind == "provider":
        advice = INSTALL_HINTS.get(name, f"Use a build of onnxruntime that has {name}")
    else:
        where = "library that provider_libraries names" if name in request.provider_libraries else "package"
        advice = f"Check the {where} and the driver of the hardware"
    other = "use the onnxruntime of another Python environment with `--device 'local:?python=PATH'`"
    return f"{advice}, {other}, or let the processor run it {fallback}"


def file_sha256(path: Path, stage: str) -> str:
    """Return the file's SHA-256 in hex digits.

    Raises:
        StepError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise StepError(stage, f"cannot read {path}: {error.strerror}") from error
