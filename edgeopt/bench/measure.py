"""Measuring one file on one device: a model and a profile in, a ``Measurement`` of raw samples out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeopt.bench.asking import file_sha256, run_request, runtime_request
from edgeopt.bench.memory import weigh
from edgeopt.device.base import Device
from edgeopt.records.measurement import Device as DeviceRecord
from edgeopt.records.measurement import DeviceKind, Measurement, Timing
from edgeopt.records.profile import Profile

CONTENDED_RATIO = 1.05
"""Wall over CPU time of one thread above this: other load disturbed the process (quiet machines were within 1 %)."""

STAGE = "measure"


def measure(
    model: Path,
    device: Device,
    profile: Profile,
    *,
    batch_size: int = 1,
    allow_fallback: tuple[str, ...] = (),
    inputs: Path | None = None,
    kind: DeviceKind,
    progress: Callable[[str], None],
) -> Measurement:
    """Time a model in several fresh processes, one after the other, and weigh its memory in others.

    Args:
        model: An ``.onnx`` file.
        device: Where the workers run.
        profile: Providers, threads and the timing rule.
        batch_size: Samples a run.
        allow_fallback: Providers that may run nodes where the profile's are not there.
        inputs: A ``.npz`` with one array for each graph input; None for random values.
        kind: What the device is to the target.
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
    sha256 = file_sha256(model, STAGE)
    name, environment = device.describe()
    timings: list[Timing] = []
    nodes: dict[str, int] = {}
    for index in range(profile.timing.processes):
        progress(f"timing, process {index + 1} of {profile.timing.processes}")
        fields = run_request(device, request, STAGE, seconds=2 * request.max_seconds)
        nodes = fields.pop("nodes")
        timings.append(_timing(fields, one_thread=profile.threads == 1 and set(nodes) <= {"CPUExecutionProvider"}))
    memory = weigh(device, request, STAGE, progress)
    return Measurement(
        sha256=sha256,
        batch_size=batch_size,
        timings=tuple(timings),
        memory=memory,
        providers=nodes,
        threads=profile.threads,
        rule=profile.timing,
        device=DeviceRecord(uri=device.uri, kind=kind, id=name),
        environment=environment,
    )


def _timing(fields: dict[str, Any], one_thread: bool) -> Timing:
    wall, cpu = tuple(fields.pop("wall_ns")), tuple(fields.pop("cpu_ns"))
    contended = one_thread and sum(wall) > CONTENDED_RATIO * sum(cpu)
    return Timing(wall_ns=wall, cpu_ns=cpu, contended=contended, **fields)
