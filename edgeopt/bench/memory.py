"""Peak memory of loading and running a model, measured in fresh processes that time nothing.

In: a device and a timing request. Out: a ``Memory``, in bytes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
    is_cpu_here = device.uri.startswith("local:") and request.providers == ("CPUExecutionProvider",)
    with ThreadPoolExecutor(2 if is_cpu_here else 1) as pool:  # a peak does not depend on what else runs
        for index in range(PROCESSES):
            progress(f"memory, process {index + 1} of {PROCESSES}")
            pair = [
                pool.submit(run_request, device, request, stage, seconds=request.max_seconds, variables=variables)
                for variables in (STEADY_MALLOC, {})
            ]
            for answers, future in zip((steady, default), pair, strict=True):
                answers.append(future.result())
            if not steady[-1]["supported"]:
                return None
    devices = [answer["device_peak_bytes"] for answer in steady if answer["device_peak_bytes"] is not None]
    return Memory(
        load_peak_bytes=_median(steady, "load_peak_bytes"),
        run_peak_bytes=_median(steady, "run_peak_bytes"),
        default_load_peak_bytes=_median(default, "load_peak_bytes"),
        default_run_peak_bytes=_median(default, "run_peak_bytes"),
        device_peak_bytes=int(statistics.median(devices)) if devices else None,
    )


def _median(answers: list[dict[str, Any]], key: str) -> int:
    return int(statistics.median(answer[key] for answer in answers))
