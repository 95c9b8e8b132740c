"""Calibration of a target: small networks on its device and on this host; and the estimate that follows for a file."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
import onnx

from edgeopt.bench.compare import clock_of
from edgeopt.bench.nodes import FileTime, ProfilingTurns, profile_nodes, with_input_shapes
from edgeopt.bench.requests import run_request, runtime_request
from edgeopt.bench.sustained import sustain
from edgeopt.config.calibrations import calibration_path, read_calibration, why_not
from edgeopt.device.base import Device
from edgeopt.device.local import LocalDevice
from edgeopt.errors import ConfigError, StepError
from edgeopt.latency.probe_models import ProbeModel
from edgeopt.latency.transfer import (
    MAX_UNSEEN_RATIO,
    MIN_WHOLE_NETWORKS,
    NETWORK_PRECISION,
    class_times,
    estimate,
    fit_ratios,
    unseen_ratio,
)
from edgeopt.records.calibration import Calibration, Probe
from edgeopt.records.measurement import DeviceInfo as DeviceRecord
from edgeopt.records.measurement import Estimate, Measurement
from edgeopt.records.profile import Profile, TimingRule

_STAGE = "calibrate"
RULE = TimingRule(processes=3, warmup_runs=3, warmup_seconds=0.1, min_runs=20, min_seconds=0.2, max_seconds=5.0)
"""Of each network on the device; processes of all networks take turns, so that a slow minute reaches all alike."""
QUICK_RULE = msgspec.structs.replace(RULE, processes=1)
HOST_TURNS = ProfilingTurns(rounds=3, seconds=0.05, budget_seconds=300.0, min_models=1000)


ProcessTimes = tuple[tuple[int, ...], tuple[int, ...]]
"""Wall and CPU time of a process's runs."""


def calibrate_device(
    target: Profile,
    device: Device,
    models: Sequence[ProbeModel],
    *,
    rule: TimingRule = RULE,
    turns: ProfilingTurns = HOST_TURNS,
    sustained_seconds: float | None,
    allow_fallback: tuple[str, ...],
    progress: Callable[[str], None],
) -> Calibration:
    """Run every model on the device and on this machine.

    Args:
        target: The profile: how the device runs. This host runs on its processor alone.
        device: The target's device.
        models: ``edgeopt.latency.probe_models.calibration_models``, or some of them.
        rule: When a process on the device has seen enough.
        turns: How long each model runs on the host.
        sustained_seconds: How long a whole network also runs there without a pause; None for not at all.
        allow_fallback: As in ``edgeopt.bench.measure.measure``.
        progress: Is told in a few words what happens now.

    Raises:
        ProviderError, StepError, DeviceError: the device or this host cannot run a model.
    """
    host, profile = LocalDevice(), msgspec.structs.replace(target, timing=rule)
    device_id, device_environment = device.describe()
    host_id, host_environment = host.describe()
    with tempfile.TemporaryDirectory(prefix="edgeopt-calibrate-") as folder:
        files = [Path(folder) / f"{index}.onnx" for index in range(len(models))]
        for model, file in zip(models, files, strict=True):
            model.write(file, target.activation_type)
        on_device = _on_device(files, device, profile, allow_fallback, progress)
        progress(f"{len(models)} networks on this host")
        timed = _on_host(files, host, target, turns)
        lasting = None
        if sustained_seconds is not None:
            file = next(file for model, file in zip(models, files, strict=True) if model.role == "whole")
            lasting = sustain(
                file, device, profile, seconds=sustained_seconds, kind="measured", batch_size=1,
                allow_fallback=allow_fallback, inputs=None, progress=progress,
            )  # fmt: skip
    return Calibration(
        schema="edgeopt/calibration-1",
        target=target.name,
        runtime=target.runtime,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        host=DeviceRecord(uri=host.uri, kind="stand-in", id=host_id),
        host_environment=host_environment,
        device=DeviceRecord(uri=device.uri, kind="measured", id=device_id),
        device_environment=device_environment,
        clock=clock_of(profile, runtime_request("time", "", profile, allow_fallback=allow_fallback)),
        probes=_probes(models, timed, on_device),
        sustained=lasting,
    )


def _on_device(
    files: Sequence[Path],
    device: Device,
    profile: Profile,
    allow_fallback: tuple[str, ...],
    progress: Callable[[str], None],
) -> list[list[ProcessTimes]]:
    found: list[list[ProcessTimes]] = [[] for _ in files]
    total = profile.timing.processes * len(files)
    for process in range(profile.timing.processes):
        for index, file in enumerate(files):
            progress(f"on {device.uri}, process {process * len(files) + index + 1} of {total}")
            request = runtime_request("time", str(file), profile, allow_fallback=allow_fallback)
            answer = run_request(device, request, _STAGE, seconds=3 * request.max_seconds)
            found[index].append((tuple(answer["wall_ns"]), tuple(answer["cpu_ns"])))
    return found


def _on_host(files: Sequence[Path], host: Device, target: Profile, turns: ProfilingTurns, inputs: Path | None = None,
             batch_size: int = 1) -> list[FileTime]:  # fmt: skip
    timed = profile_nodes(files, host, target.on_host, batch_size, (), inputs, turns)
    return with_input_shapes(timed, files, host, target.on_host, batch_size, inputs)


def _probes(
    models: Sequence[ProbeModel], timed: Sequence[FileTime], on_device: Sequence[Sequence[ProcessTimes]]
) -> tuple[Probe, ...]:
    """Pair what each model took here, by class of operator, with its runs on the device."""
    empty = next(one.ns for model, one in zip(models, timed, strict=True) if model.role == "empty")
    return tuple(
        Probe(
            name=model.name,
            role=model.role,
            host_ns=class_times(
                one, "fp16" if model.precision == "fp16" else "fp32", empty if model.role != "empty" else 0.0
            ),
            device_wall_ns=tuple(wall for wall, _ in ran),
            device_cpu_ns=tuple(cpu for _, cpu in ran),
        )
        for model, one, ran in zip(models, timed, on_device, strict=True)
    )


class CalibrationSearch(NamedTuple):
    """What there is to foretell a target with."""

    calibration: Calibration | None
    path: Path
    refused: str | None
    """Why a calibration that is there does not hold."""


def find_calibration(target: str, profile: Profile) -> CalibrationSearch:
    """Look for the calibration of a target, and whether it holds on this host.

    Raises:
        DataError: the file is broken, or of another version of edgeopt.
    """
    path = calibration_path(target)
    calibration = read_calibration(path)
    if calibration is None:
        return CalibrationSearch(None, path, None)
    host_id, environment = LocalDevice().describe()
    reason = why_not(calibration, profile, host_id, environment.onnxruntime)
    wholes = sum(probe.role == "whole" for probe in calibration.probes)
    if reason is None and wholes < MIN_WHOLE_NETWORKS:
        reason = f"it holds out {wholes} whole networks; an interval needs {MIN_WHOLE_NETWORKS}"
    if reason is None:
        return CalibrationSearch(calibration, path, None)
    said = (
        f"the calibration {path} of {calibration.made_at[:10]} does not hold: {reason}. Nothing is estimated; make it "
        f"anew with `edgeopt targets calibrate {target} --device {calibration.device.uri}`."
    )
    return CalibrationSearch(None, path, said)


def calibration_for(target: str, profile: Profile, device: str | None, wanted: bool) -> CalibrationSearch:
    """Return what foretells a target whose device nobody named, if there is anything.

    Args:
        target: A name or a path, as on the command line.
        profile: What it names.
        device: As on the command line; a device that is there is measured, not foretold.
        wanted: The user asked for the estimate; without, it is made where this machine only stands in.

    Raises:
        ConfigError: it was asked for and cannot be had.
        DataError: the file is broken, or of another version of edgeopt.
    """
    if wanted and device is not None:
        raise ConfigError("--estimate is for a build or a bench without the device: leave --device out.")
    if wanted:
        return CalibrationSearch(need_calibration(target, profile), calibration_path(target), None)
    if device is None and profile.stand_in:
        return find_calibration(target, profile)
    return CalibrationSearch(None, calibration_path(target), None)


def need_calibration(target: str, profile: Profile) -> Calibration:
    """Return the calibration, or refuse.

    Raises:
        ConfigError: there is none that holds here.
    """
    found = find_calibration(target, profile)
    if found.calibration is None:
        raise ConfigError(
            found.refused
            or f"there is no calibration of '{target}' ({found.path}). Make one with `edgeopt targets calibrate "
            f"{target} --device URI`, once, where the device is at hand."
        )
    return found.calibration


def add_estimate(
    measurement: Measurement,
    model: Path,
    profile: Profile,
    calibration: Calibration,
    percentile: int,
    inputs: Path | None,
) -> Measurement:
    """Return a measurement of this host with the estimate of the target's latency.

    Raises:
        StepError: too much of the file's time is in operators that the calibration lacks.
        ProviderError, DeviceError: this host cannot run it.
    """
    (timed,) = _on_host([model], LocalDevice(), profile, HOST_TURNS, inputs, measurement.batch_size)
    empty = next(sum(probe.host_ns.values()) for probe in calibration.probes if probe.role == "empty")
    times, found = class_times(timed, stored_precision(model), empty), fit_ratios(calibration)
    if unseen_ratio(found, times) > MAX_UNSEEN_RATIO:
        unseen = sorted(name for name in times if name not in found.ratios)
        raise StepError(
            "estimate",
            f"{model}: {unseen_ratio(found, times):.0%} of the time goes to {', '.join(unseen)}, which the "
            f"calibration of '{calibration.target}' lacks: measure on the device (--device {calibration.device.uri}).",
        )
    guess: Estimate = estimate(calibration, times, sorted({50, 90, 99, percentile}))
    device = msgspec.structs.replace(measurement.device, kind="estimated")
    return msgspec.structs.replace(measurement, device=device, estimate=guess)


def stored_precision(model: Path) -> NETWORK_PRECISION:
    """Return ``fp16`` where most of a file's float weights are."""
    graph = onnx.load(model, load_external_data=False).graph
    bits = {onnx.TensorProto.FLOAT: 0, onnx.TensorProto.FLOAT16: 0}
    for tensor in graph.initializer:
        if tensor.data_type in bits:
            bits[tensor.data_type] += int(max(1, math.prod(tensor.dims)))
    return "fp16" if bits[onnx.TensorProto.FLOAT16] > bits[onnx.TensorProto.FLOAT] else "fp32"
