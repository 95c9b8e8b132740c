"""Measuring one file on one device: a model and a profile in, a ``Measurement`` of raw samples out."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgeopt.bench.memory import measure_memory
from edgeopt.bench.requests import file_sha256, run_request, runtime_request
from edgeopt.device.base import Device, WorkerRequest
from edgeopt.records.measurement import DeviceInfo as DeviceRecord
from edgeopt.records.measurement import DeviceKind, Measurement, Timing
from edgeopt.records.profile import Profile, TimingRule
from edgeopt.statistics import LEAST_PROCESSES, is_measured, least_runs

CONTENDED_RATIO = 1.05
"""Wall over CPU time of one thread above this: other load disturbed the process (quiet machines were within 1 %)."""

_STAGE = "measure"


def measure(
    model: Path,
    device: Device,
    profile: Profile,
    *,
    batch_size: int = 1,
    allow_fallback: tuple[str, ...] = (),
    inputs: Path | None = None,
    kind: DeviceKind,
    percentile: float,
    max_latency_ms: float | None,
    progress: Callable[[str], None],
) -> Measurement:
    """Time a model in several fresh processes, one after the other, and weigh its memory in others.

    It ends early when ``edgeopt.statistics.is_measured`` says so.

    Args:
        model: An ``.onnx`` file.
        device: Where the workers run.
        profile: Providers, threads and the timing rule.
        batch_size: Samples a run.
        allow_fallback: Providers that may run nodes where the profile's are not there.
        inputs: A ``.npz`` with one array for each graph input; None for random values.
        kind: What the device is to the target.
        percentile: Which one has to be known well; a high one takes more runs than the profile's least.
        max_latency_ms: The limit that it will be held against; None where there is none.
        progress: Is told in a few words what happens now.

    Raises:
        ProviderError: a provider of the profile is not there, or runs nothing, and no fall-back was allowed.
        StepError: ONNX Runtime cannot load or run the model.
        InputError: the model's inputs cannot be made up, or the inputs file does not fit.
        DeviceError: a worker died or hung.
    """
    request = runtime_request(
        "time",
        str(model),
        profile,
        allow_fallback=allow_fallback,
        batch_size=batch_size,
        inputs=str(inputs) if inputs else "",
    )
    sha256 = file_sha256(model, _STAGE)
    name, environment = device.describe()
    max_latency_ns = None if max_latency_ms is None else max_latency_ms * 1e6
    timings, nodes = _time(device, request, profile.timing, percentile, max_latency_ns, progress)
    memory = measure_memory(device, request, _STAGE, progress)
    return Measurement(
        sha256=sha256,
        batch_size=batch_size,
        timings=timings,
        memory=memory,
        providers=nodes,
        threads=profile.threads,
        runtime=profile.runtime,
        rule=profile.timing,
        device=DeviceRecord(uri=device.uri, kind=kind, id=name),
        environment=environment,
    )


def _time(
    device: Device,
    request: WorkerRequest,
    rule: TimingRule,
    percentile: float,
    max_latency_ns: float | None,
    progress: Callable[[str], None],
) -> tuple[tuple[Timing, ...], dict[str, int]]:
    """Run processes until enough is known; return them, and the number of nodes of each provider."""
    least = math.ceil(least_runs(percentile) / min(LEAST_PROCESSES, rule.processes))
    request = msgspec.structs.replace(request, min_runs=max(least, rule.min_runs))
    timings: list[Timing] = []
    nodes: dict[str, int] = {}
    for index in range(rule.processes):
        progress(f"timing, process {index + 1} of at most {rule.processes}")
        fields = run_request(device, request, _STAGE, seconds=3 * request.max_seconds)
        nodes = fields.pop("nodes")
        one_thread = request.threads == 1 and set(nodes) <= {"CPUExecutionProvider"}
        timings.append(_timing(fields, one_thread=one_thread))
        if is_measured([timing.wall_ns for timing in timings], percentile, max_latency_ns):
            break
    return tuple(timings), nodes


def _timing(fields: dict[str, Any], one_thread: bool) -> Timing:
    wall, cpu = tuple(fields.pop("wall_ns")), tuple(fields.pop("cpu_ns"))
    contended = one_thread and sum(wall) > CONTENDED_RATIO * sum(cpu)
    return Timing(wall_ns=wall, cpu_ns=cpu, contended=contended, **fields)
