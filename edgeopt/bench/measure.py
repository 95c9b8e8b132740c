"""Measuring one file on one device: a model and a profile in, a ``Measurement`` of raw samples out."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgeopt.bench.memory import measure_memory
from edgeopt.bench.requests import file_sha256, run_request, runtime_request
from edgeopt.bench.run_target import RunTarget
from edgeopt.device.base import Device, WorkerRequest
from edgeopt.records.measurement import DeviceInfo, Measurement, Timing
from edgeopt.records.profile import TimingRule
from edgeopt.statistics import MIN_PROCESSES, is_precise_enough, required_runs

CONTENDED_RATIO = 1.05
"""Above this ratio of wall to CPU time of one thread, other load disturbed the process (quiet machines: within 1 %)."""

_STAGE = "measure"


def measure(
    model: Path,
    target: RunTarget,
    *,
    percentile: float,
    max_latency_ms: float | None,
    progress: Callable[[str], None],
) -> Measurement:
    """Time a model in several fresh processes, one after the other, and measure its memory in further ones.

    Timing ends early when ``edgeopt.statistics.is_precise_enough`` says so.

    Args:
        model: An ``.onnx`` file.
        target: Where and how it runs.
        percentile: The percentile that matters; a high one takes more runs than the profile's ``min_runs``.
        max_latency_ms: The latency limit; None if there is none.
        progress: Called with a few words on the current step.

    Raises:
        ProviderError: a provider of the profile is not available or runs nothing, and no fallback was allowed.
        StepError: ONNX Runtime cannot load or run the model.
        InputError: no random inputs can be made for the model, or the inputs file does not fit.
        DeviceError: a worker died or hung.
    """
    request = runtime_request("time", model, target)
    device, profile = target.device, target.profile
    sha256 = file_sha256(model, _STAGE)
    name, environment = device.describe()
    max_latency_ns = None if max_latency_ms is None else max_latency_ms * 1e6
    timings, node_counts = _time_processes(device, request, profile.timing, percentile, max_latency_ns, progress)
    memory = measure_memory(device, request, _STAGE, progress)
    return Measurement(
        sha256=sha256,
        batch_size=target.batch_size,
        timings=timings,
        memory=memory,
        providers=node_counts,
        threads=profile.threads,
        runtime=profile.runtime,
        rule=profile.timing,
        device=DeviceInfo(uri=device.uri, kind=target.kind, id=name),
        environment=environment,
    )


def _time_processes(
    device: Device,
    request: WorkerRequest,
    rule: TimingRule,
    percentile: float,
    max_latency_ns: float | None,
    progress: Callable[[str], None],
) -> tuple[tuple[Timing, ...], dict[str, int]]:
    """Run processes until enough is known; return their timings and how many nodes each provider runs."""
    runs = math.ceil(required_runs(percentile) / min(MIN_PROCESSES, rule.processes))
    request = msgspec.structs.replace(request, min_runs=max(runs, rule.min_runs))
    timings: list[Timing] = []
    node_counts: dict[str, int] = {}
    for index in range(rule.processes):
        progress(f"timing, process {index + 1} of at most {rule.processes}")
        fields = run_request(device, request, _STAGE, seconds=3 * request.max_seconds)
        node_counts = fields.pop("nodes")
        one_thread = request.threads == 1 and set(node_counts) <= {"CPUExecutionProvider"}
        timings.append(_timing(fields, one_thread=one_thread))
        if is_precise_enough([timing.wall_ns for timing in timings], percentile, max_latency_ns):
            break
    return tuple(timings), node_counts


def _timing(fields: dict[str, Any], one_thread: bool) -> Timing:
    wall, cpu = tuple(fields.pop("wall_ns")), tuple(fields.pop("cpu_ns"))
    contended = one_thread and sum(wall) > CONTENDED_RATIO * sum(cpu)
    return Timing(wall_ns=wall, cpu_ns=cpu, contended=contended, **fields)
