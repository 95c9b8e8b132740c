"""Calibration of a target, and estimates of a file's latency on it.

In: small networks that run on the target's device and on this host. Out: a ``Calibration``; with it, a measurement of a
file on this host gets an estimate of its latency on the target (``edgeopt.latency.transfer``).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import onnx

from edgeopt.bench.compare import choose_clock
from edgeopt.bench.nodes import FileTime, ProfilingTurns, add_input_shapes, profile_nodes
from edgeopt.bench.requests import run_request, runtime_request
from edgeopt.bench.run_target import RunTarget
from edgeopt.bench.sustained import run_sustained, sustained_ratio, sustained_verdict
from edgeopt.config.calibrations import calibration_path, find_mismatch, read_calibration
from edgeopt.device.base import Device
from edgeopt.device.local import LocalDevice
from edgeopt.errors import ConfigError, StepError
from edgeopt.latency.probe_models import ProbeModel
from edgeopt.latency.transfer import (
    MAX_UNSEEN_RATIO,
    MIN_WHOLE_NETWORKS,
    NetworkPrecision,
    class_times,
    contended_processes,
    estimate,
    fit_ratios,
    held_out_errors,
    median_ns,
    network_log_errors,
    predict_ns,
    unseen_ratio,
)
from edgeopt.records.calibration import Calibration, Probe
from edgeopt.records.measurement import DeviceInfo, Estimate, Measurement
from edgeopt.records.profile import Profile, TimingRule

_STAGE = "calibrate"
TIMING_RULE = TimingRule(processes=3, warmup_runs=3, warmup_seconds=0.1, min_runs=20, min_seconds=0.2, max_seconds=5.0)
"""For each network on the device; processes of all networks take turns, so that a slow minute affects all alike."""
QUICK_TIMING_RULE = msgspec.structs.replace(TIMING_RULE, processes=1)
HOST_TURNS = ProfilingTurns(rounds=3, seconds=0.05, budget_seconds=300.0, min_models=1000)

_ProcessTimes = tuple[tuple[int, ...], tuple[int, ...]]
"""Wall and CPU time of a process's runs, in ns."""


def calibrate_device(
    target: Profile,
    device: Device,
    models: Sequence[ProbeModel],
    *,
    rule: TimingRule = TIMING_RULE,
    turns: ProfilingTurns = HOST_TURNS,
    sustained_seconds: float | None,
    allow_fallback: tuple[str, ...],
    progress: Callable[[str], None],
) -> Calibration:
    """Run every model on the device and on this machine.

    Args:
        target: The profile, with the settings for the device. This host uses only its CPU.
        device: The target's device.
        models: ``edgeopt.latency.probe_models.calibration_models``, or some of them.
        rule: How many processes run each model on the device, and for how long.
        turns: How long each model runs on the host.
        sustained_seconds: How long a whole network also runs there without a pause; None to skip this.
        allow_fallback: Providers that may run nodes there if the target's are not available.
        progress: Called with a few words on the current step.

    Raises:
        ProviderError, StepError, DeviceError: the device or this host cannot run a model.
    """
    host, timed = LocalDevice(), msgspec.structs.replace(target, timing=rule)
    on_device = RunTarget(device=device, profile=timed, kind="measured", allow_fallback=allow_fallback)
    device_id, device_environment = device.describe()
    host_id, host_environment = host.describe()
    with tempfile.TemporaryDirectory(prefix="edgeopt-calibrate-") as folder:
        files = [Path(folder) / f"{index}.onnx" for index in range(len(models))]
        for model, file in zip(models, files, strict=True):
            model.write(file, target.activation_type)
        device_times = _time_on_device(files, on_device, progress)
        progress(f"{len(models)} networks on this host")
        host_times = _profile_on_host(files, target, turns)
        sustained = None
        if sustained_seconds is not None:
            whole = files[next(index for index, model in enumerate(models) if model.role == "whole")]
            sustained = run_sustained(whole, on_device, seconds=sustained_seconds, progress=progress)
    return Calibration(
        schema="edgeopt/calibration-1",
        target=target.name, runtime=target.runtime, made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        host=DeviceInfo(uri=host.uri, kind="stand-in", id=host_id), host_environment=host_environment,
        device=DeviceInfo(uri=device.uri, kind="measured", id=device_id), device_environment=device_environment,
        clock=choose_clock(on_device),
        probes=_make_probes(models, host_times, device_times),
        sustained=sustained,
    )  # fmt: skip


def _time_on_device(
    files: Sequence[Path], on_device: RunTarget, progress: Callable[[str], None]
) -> list[list[_ProcessTimes]]:
    times: list[list[_ProcessTimes]] = [[] for _ in files]
    processes = on_device.profile.timing.processes
    total = processes * len(files)
    for process in range(processes):
        for index, file in enumerate(files):
            progress(f"on {on_device.device.uri}, process {process * len(files) + index + 1} of {total}")
            request = runtime_request("time", file, on_device)
            answer = run_request(on_device.device, request, _STAGE, seconds=3 * request.max_seconds)
            times[index].append((tuple(answer["wall_ns"]), tuple(answer["cpu_ns"])))
    return times


def _profile_on_host(
    files: Sequence[Path], target: Profile, turns: ProfilingTurns, inputs: Path | None = None, batch_size: int = 1
) -> list[FileTime]:
    host = RunTarget(
        device=LocalDevice(), profile=target.on_host, kind="estimated", batch_size=batch_size, inputs=inputs
    )
    return add_input_shapes(profile_nodes(files, host, turns), files, host)


def _make_probes(
    models: Sequence[ProbeModel], host_times: Sequence[FileTime], device_times: Sequence[Sequence[_ProcessTimes]]
) -> tuple[Probe, ...]:
    """Pair each model's time on the host, by class of operator, with its runs on the device."""
    empty_ns = next(time.ns for model, time in zip(models, host_times, strict=True) if model.role == "empty")
    return tuple(
        Probe(
            name=model.name,
            role=model.role,
            host_ns=class_times(
                time, "fp16" if model.precision == "fp16" else "fp32", empty_ns if model.role != "empty" else 0.0
            ),
            device_wall_ns=tuple(wall for wall, _ in processes),
            device_cpu_ns=tuple(cpu for _, cpu in processes),
        )
        for model, time, processes in zip(models, host_times, device_times, strict=True)
    )


def summarize_calibration(calibration: Calibration) -> dict[str, Any]:
    """Return the fit and its errors, unrounded."""
    fitted = fit_ratios(calibration)
    errors = held_out_errors(network_log_errors(calibration, fitted))
    networks = {probe.name: probe for probe in calibration.probes if probe.role == "whole"}
    sustained = calibration.sustained
    return {
        "schema": "edgeopt/calibrated-1",
        "target": calibration.target,
        "device": calibration.device,
        "host": calibration.host,
        "onnxruntime": {
            "device": calibration.device_environment.onnxruntime,
            "host": calibration.host_environment.onnxruntime,
        },
        "empty_call_ms": fitted.empty_ns / 1e6,
        "contended_processes": contended_processes(calibration),
        "processes": sum(len(probe.device_wall_ns) for probe in calibration.probes),
        "classes": {
            name: {
                "ratio": ratio,
                "micro_models": len(fitted.errors[name]) or 1,
                "worst_error_ratio": max((math.exp(abs(error)) - 1 for error in fitted.errors[name]), default=None),
            }
            for name, ratio in fitted.ratios.items()
        },
        "held_out": {
            name: {
                "device_ms": median_ns(calibration, probe) / 1e6,
                "by_ratios_ms": predict_ns(fitted, probe.host_ns) / 1e6,
                "error_ratio": errors[name],
            }
            for name, probe in networks.items()
        },
        "sustained": sustained
        and {"seconds": sustained.seconds, "last_over_first": sustained_ratio(sustained)._asdict(),
             "verdict": sustained_verdict(sustained)},
    }  # fmt: skip


class CalibrationSearch(NamedTuple):
    """The result of looking for a target's calibration."""

    calibration: Calibration | None
    path: Path
    refused: str | None
    """Why a calibration that exists is not used."""


def find_calibration(target: str, profile: Profile) -> CalibrationSearch:
    """Look for the calibration of a target, and check that it holds on this host.

    Raises:
        DataError: the file is broken, or written by another version of edgeopt.
    """
    path = calibration_path(target)
    calibration = read_calibration(path)
    if calibration is None:
        return CalibrationSearch(None, path, None)
    host_id, environment = LocalDevice().describe()
    reason = find_mismatch(calibration, profile, host_id, environment.onnxruntime)
    held_out = sum(probe.role == "whole" for probe in calibration.probes)
    if reason is None and held_out < MIN_WHOLE_NETWORKS:
        reason = f"it has {held_out} held-out networks; an interval needs {MIN_WHOLE_NETWORKS}"
    if reason is None:
        return CalibrationSearch(calibration, path, None)
    refused = (
        f"the calibration {path} of {calibration.made_at[:10]} does not hold: {reason}. Nothing is estimated. Make a "
        f"new one with `edgeopt targets calibrate {target} --device {calibration.device.uri}`."
    )
    return CalibrationSearch(None, path, refused)


def choose_calibration(
    target: str, profile: Profile, device: str | None, estimate_requested: bool
) -> CalibrationSearch:
    """Find the calibration that predicts a target's latency, if its device is not measured.

    Args:
        target: A name or a path, as on the command line.
        profile: The profile of that target.
        device: As on the command line; a device that is named is measured.
        estimate_requested: Whether the user asked for an estimate. If not, there is one only if this machine is a
            stand-in and a calibration holds.

    Raises:
        ConfigError: an estimate was requested, but a device was named or no calibration holds.
        DataError: the file is broken, or written by another version of edgeopt.
    """
    if estimate_requested and device is not None:
        raise ConfigError("--estimate works without the device: leave --device out.")
    if estimate_requested:
        return CalibrationSearch(require_calibration(target, profile), calibration_path(target), None)
    if device is None and profile.stand_in:
        return find_calibration(target, profile)
    return CalibrationSearch(None, calibration_path(target), None)


def require_calibration(target: str, profile: Profile) -> Calibration:
    """Return a target's calibration.

    Raises:
        ConfigError: there is none, or it doesn't hold on this host.
        DataError: the file is broken, or written by another version of edgeopt.
    """
    search = find_calibration(target, profile)
    if search.calibration is None:
        raise ConfigError(
            search.refused
            or f"there is no calibration of '{target}' ({search.path}). Make one with `edgeopt targets calibrate "
            f"{target} --device URI`, once, with the device connected."
        )
    return search.calibration


def add_estimate(
    measurement: Measurement,
    model: Path,
    profile: Profile,
    calibration: Calibration,
    percentile: int,
    inputs: Path | None,
) -> Measurement:
    """Add an estimate of the target's latency to a measurement of this host.

    Args:
        measurement: Of the file on this host.
        model: The file.
        profile: The target's.
        calibration: As found by ``find_calibration``.
        percentile: Estimated besides 50, 90 and 99.
        inputs: A ``.npz`` with one array for each graph input; None for random values.

    Raises:
        StepError: too much of the file's time is in classes of operators that the calibration doesn't cover.
        ProviderError, DeviceError: this host cannot run it.
    """
    (time,) = _profile_on_host([model], profile, HOST_TURNS, inputs, measurement.batch_size)
    empty_ns = next(sum(probe.host_ns.values()) for probe in calibration.probes if probe.role == "empty")
    times, fit = class_times(time, _weight_precision(model), empty_ns), fit_ratios(calibration)
    if unseen_ratio(fit, times) > MAX_UNSEEN_RATIO:
        unseen = sorted(name for name in times if name not in fit.ratios)
        raise StepError(
            "estimate",
            f"{model}: {unseen_ratio(fit, times):.0%} of the time is spent in {', '.join(unseen)}, which the "
            f"calibration of '{calibration.target}' doesn't cover. Measure on the device: "
            f"--device {calibration.device.uri}.",
        )
    predicted: Estimate = estimate(calibration, times, sorted({50, 90, 99, percentile}))
    device = msgspec.structs.replace(measurement.device, kind="estimated")
    return msgspec.structs.replace(measurement, device=device, estimate=predicted)


def _weight_precision(model: Path) -> NetworkPrecision:
    """Return the type of most of a file's float weights."""
    graph = onnx.load(model, load_external_data=False).graph
    weights = {onnx.TensorProto.FLOAT: 0, onnx.TensorProto.FLOAT16: 0}
    for tensor in graph.initializer:
        if tensor.data_type in weights:
            weights[tensor.data_type] += int(max(1, math.prod(tensor.dims)))
    return "fp16" if weights[onnx.TensorProto.FLOAT16] > weights[onnx.TensorProto.FLOAT] else "fp32"
