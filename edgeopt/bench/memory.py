"""Peak memory of loading and running a model, measured in fresh processes that time nothing.

In: a device and a timing request. Out: a ``Memory``, in bytes.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from edgeopt.bench.requests import run_request
from edgeopt.device.base import Device, WorkerRequest
from edgeopt.records.measurement import Memory

STEADY_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc moves its threshold between heap and mmap at run time, so peaks differ by 15 % between processes. With fixed
thresholds they repeat within 0.2 %."""

PROCESSES = 3
"""Processes for each setting; their median counts."""

_THRESHOLDS: tuple[dict[str, str], ...] = (STEADY_MALLOC, {})
_LIGHT_SECONDS = 4.0
"""Of the first two processes: slower models would not get all their runs next to another process."""
_LIGHT_BYTES = 2**27
RUNS = 5
"""Runs in each process: ONNX Runtime plans its arena in the first run and reaches its peak in the second."""


def measure_memory(
    device: Device, request: WorkerRequest, stage: str, progress: Callable[[str], None]
) -> Memory | None:
    """Return the peaks above a process without a session, or None if the device can't measure them.

    Args:
        device: Where the workers run.
        request: The timing request of the same model.
        stage: Named in errors.
        progress: Called with a few words on the current step.

    Raises:
        ProviderError, StepError, InputError, DeviceError: see ``edgeopt.bench.requests.run_request``.
    """
    request = msgspec.structs.replace(request, mode="memory", min_runs=RUNS, min_seconds=0.0)
    steady: list[dict[str, Any]] = []
    default: list[dict[str, Any]] = []
    side_by_side = False
    for index in range(PROCESSES):
        progress(f"memory, process {index + 1} of {PROCESSES}")
        begin = time.monotonic()
        pair = _run_side_by_side if side_by_side else _run_in_turn
        for answers, answer in zip((steady, default), pair(device, request, stage), strict=False):
            answers.append(answer)
        if not steady[-1]["supported"]:
            return None
        side_by_side = _is_light(device, request, time.monotonic() - begin)
    devices = [answer["device_peak_bytes"] for answer in steady if answer["device_peak_bytes"] is not None]
    return Memory(
        load_peak_bytes=median_of(steady, "load_peak_bytes"),
        run_peak_bytes=median_of(steady, "run_peak_bytes"),
        default_load_peak_bytes=median_of(default, "load_peak_bytes"),
        default_run_peak_bytes=median_of(default, "run_peak_bytes"),
        device_peak_bytes=int(statistics.median(devices)) if devices else None,
    )


def _run_in_turn(device: Device, request: WorkerRequest, stage: str) -> Iterator[dict[str, Any]]:
    """Yield the answers with steady and with default thresholds; only the first if the device cannot measure."""
    for variables in _THRESHOLDS:
        answer = run_request(device, request, stage, seconds=request.max_seconds, variables=variables)
        yield answer
        if not answer["supported"]:
            return


def _run_side_by_side(device: Device, request: WorkerRequest, stage: str) -> Iterator[dict[str, Any]]:
    """Yield the same answers of two processes that run at the same time."""
    with ThreadPoolExecutor(len(_THRESHOLDS)) as pool:
        run = functools.partial(run_request, device, request, stage, seconds=request.max_seconds)
        futures = [pool.submit(run, variables=variables) for variables in _THRESHOLDS]
        yield from [future.result() for future in futures]


def _is_light(device: Device, request: WorkerRequest, seconds: float) -> bool:
    """Tell whether two processes of a model fit side by side: here, with all their runs, and far from all memory."""
    is_here = device.uri.startswith("local:") and request.providers == ("CPUExecutionProvider",)
    return is_here and seconds < _LIGHT_SECONDS and Path(request.model).stat().st_size < _LIGHT_BYTES


def median_of(answers: Sequence[Mapping[str, Any]], key: str) -> int:
    """Return the median of a number in the answers of several processes."""
    return int(statistics.median(answer[key] for answer in answers))
