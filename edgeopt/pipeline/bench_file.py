"""Everything that ``edgeopt bench`` measures of one file on one device.

In: a ``BenchRequest`` and a device. Out: a ``BenchResult`` with raw samples, and a summary of its statistics.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from edgeopt import statistics
from edgeopt.bench.changes import match_nodes
from edgeopt.bench.compare import compare
from edgeopt.bench.measure import measure
from edgeopt.bench.memory_modes import MemoryMode, measure_memory_modes
from edgeopt.bench.nodes import LONG_PROFILING_TURNS, count_operators, profile_nodes, provider_time_ratios
from edgeopt.bench.outputs import read_batches, run_model
from edgeopt.bench.providers import PROCESSOR, find_providers, relative_difference
from edgeopt.bench.requests import run_request
from edgeopt.bench.run_target import RunTarget
from edgeopt.bench.sustained import run_sustained, sustained_ratio, sustained_verdict
from edgeopt.config.shapes import InputShapes
from edgeopt.device.base import Device, WorkerRequest
from edgeopt.device.open import device_role
from edgeopt.errors import CannotProfileError, ProviderError, StepError
from edgeopt.pipeline.device_calibration import add_estimate
from edgeopt.pipeline.given_model import ReadyModel, open_given_model
from edgeopt.pipeline.verify.provider_score import ProviderScore, ProviderScorer
from edgeopt.records.calibration import Calibration
from edgeopt.records.measurement import Comparison, Measurement, NodeChange, Sustained
from edgeopt.records.profile import Profile

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchRequest:
    """A file, and what to measure of it."""

    model: Path
    profile: Profile
    """The target's."""
    calibration: Calibration | None
    """To estimate the target's latency from; None if the device itself is measured, or there is no calibration."""
    calibration_refused: str | None
    """Why a calibration that exists is not used."""
    against: Path | None
    """Another file, for an A/B comparison."""
    sustained_seconds: float | None
    memory_modes: bool
    batch_size: int
    inputs: str | None
    """What the user named; None for made-up values."""
    shapes: InputShapes
    """Of made-up inputs."""
    allow_fallback: tuple[str, ...]


@dataclass(frozen=True)
class BenchResult:
    """The raw samples; None for everything that was not asked for."""

    measurement: Measurement
    comparison: Comparison | None
    changes: list[NodeChange] | None
    """None also if the device cannot profile nodes."""
    provider_time_ratios: dict[str, float]
    """Ratio of the nodes' time by execution provider; empty if the device does not report providers."""
    provider_operators: dict[str, dict[str, int]]
    """If several execution providers run nodes: how many of each operator each of them runs."""
    sustained: Sustained | None
    memory_modes: tuple[MemoryMode, ...] | None
    size_bytes: int
    """Of the model's files."""
    notes: tuple[str, ...]
    """On the model's files and inputs."""


def bench_file(request: BenchRequest, device: Device, progress: Callable[[str], None]) -> BenchResult:
    """Measure everything that was asked for, one after the other.

    Raises:
        ConfigError: the device has no times.
        TaskError, DataError: see ``edgeopt.pipeline.given_model.open_given_model``.
        ProviderError, StepError, InputError, DeviceError: see ``edgeopt.bench.measure.measure``.
    """
    with ExitStack() as stack:
        ready = stack.enter_context(_open(request, request.model))
        other = None
        if request.against is not None:
            other = stack.enter_context(_open(request, request.against)).path
        opened = replace(request, model=ready.path, against=other)
        return _measure_all(opened, ready, device, progress)


def bench_settings(
    request: BenchRequest,
    device: Device,
    batch_sizes: Sequence[int],
    threads: Sequence[int],
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Measure a file with each batch size and number of threads, and return the statistics of each pair.

    Args:
        request: Of the file; its batch size and the target's threads do not count.
        device: Where it runs.
        batch_sizes: Samples in one run.
        threads: Of the session.
        progress: Called with a few words on the current step.

    Raises:
        ConfigError, TaskError, DataError, ProviderError, StepError, InputError, DeviceError: see ``bench_file``.
    """
    rows = []
    for batch_size, count in itertools.product(batch_sizes, threads):
        profile = msgspec.structs.replace(request.profile, threads=count)
        one = replace(request, batch_size=batch_size, profile=profile)
        result = bench_file(one, device, _naming(f"batch {batch_size}, {count} threads", progress))
        rows.append({"threads": count, **summarize_bench(one, result), "measurement": result.measurement})
    return rows


def bench_providers(
    request: BenchRequest,
    device: Device,
    wanted: Sequence[str],
    progress: Callable[[str], None],
    scorer: ProviderScorer | None = None,
) -> list[dict[str, Any]]:
    """Measure a file on several execution providers, each with the processor for what it does not run.

    Args:
        request: Of the file; the target's providers do not count.
        device: Where it runs.
        wanted: Names of providers; empty for all that the device has.
        progress: Called with a few words on the current step.
        scorer: Scores the file on each of them; None for no score.

    Returns:
        A row for each: ``provider``; ``error``, why it does not run the file, or None; then the statistics, the
        ``operators`` that the processor runs for it, ``difference``, the largest of an output from the processor's
        over its largest value, None if the processor does not run the file; and ``score``, None without a scorer.

    Raises:
        InputError: the device has none of a name.
        ConfigError, TaskError, DataError, DeviceError: see ``bench_file``; TaskError too if the score fails.
    """
    names = find_providers(wanted, device.describe()[1].providers, device.uri)
    with _open(request, request.model) as ready:
        rows, expected = list[dict[str, Any]](), None
        for name in names:
            profile = msgspec.structs.replace(request.profile, providers=tuple(dict.fromkeys((name, PROCESSOR))))
            one = replace(request, model=ready.path, profile=profile, allow_fallback=(PROCESSOR,))
            try:
                if name != PROCESSOR:  # a fallback would hide that it does not start
                    run_request(device, _start_request(profile, name), "bench")
                result = _measure_all(one, ready, device, _naming(name, progress))
                found = _run_once(one, ready, device)
                score = None if scorer is None else _score(scorer, one, device, name, progress)
            except (ProviderError, StepError) as error:
                rows.append({"provider": name, "error": str(error)})
                continue
            expected = found if name == PROCESSOR else expected
            row = summarize_bench(one, result) | {"model": str(request.model), "measurement": result.measurement}
            operators = {} if name == PROCESSOR else result.provider_operators.get(PROCESSOR, {})
            difference = None if expected is None else relative_difference(expected, found)
            row |= {"operators": operators, "difference": difference, "score": score}
            rows.append({"provider": name, "error": None, **row})
    return rows


def _naming(what: str, progress: Callable[[str], None]) -> Callable[[str], None]:
    """Return a progress display whose lines begin with what is measured."""
    return lambda text: progress(f"{what}: {text}")


def _start_request(profile: Profile, name: str) -> WorkerRequest:
    return WorkerRequest(mode="describe", providers=(name,), provider_libraries=profile.provider_libraries)


def _score(
    scorer: ProviderScorer, request: BenchRequest, device: Device, provider: str, progress: Callable[[str], None]
) -> ProviderScore:
    progress(f"{provider}: score on {scorer.samples:,} samples")
    return scorer.score(request.model, _output_target(request, device))


def _output_target(request: BenchRequest, device: Device) -> RunTarget:
    kind, profile = device_role(device.uri, request.profile, estimated=False)
    return RunTarget(device=device, profile=profile, kind=kind, allow_fallback=request.allow_fallback)


def _run_once(request: BenchRequest, ready: ReadyModel, device: Device) -> list[NDArray[Any]]:
    """Return the outputs of a run on the inputs that are timed."""
    target = _output_target(request, device)
    with tempfile.TemporaryDirectory(prefix="edgeopt-outputs-") as folder:
        inputs, outputs = ready.inputs, Path(folder) / "outputs.npz"
        if inputs is None:
            return []
        run_model(ready.path, inputs, outputs, target, stage="outputs")
        return [array for batch in read_batches(outputs) for array in batch.values()]


def _open(request: BenchRequest, model: Path) -> AbstractContextManager[ReadyModel]:
    return open_given_model(model, request.inputs, request.batch_size, is_run=True, shapes=request.shapes)


def _measure_all(
    request: BenchRequest, ready: ReadyModel, device: Device, progress: Callable[[str], None]
) -> BenchResult:
    kind, profile = device_role(device.uri, request.profile, estimated=request.calibration is not None)
    target = RunTarget(
        device=device, profile=profile, kind=kind, allow_fallback=request.allow_fallback,
        batch_size=request.batch_size, inputs=ready.inputs,
    )  # fmt: skip
    _logger.debug("bench %s for %s on %s (%s)", request.model, profile.name, device.uri, target.kind)
    sustained = None
    if request.sustained_seconds is not None:  # first, while the device is as cool as the user left it
        sustained = run_sustained(request.model, target, seconds=request.sustained_seconds, progress=progress)
    percentile = profile.limits.latency_percentile
    measurement = measure(
        request.model,
        target,
        percentile=percentile,
        max_latency_ms=profile.limits.max_latency_ms,
        progress=progress,
    )
    if request.calibration is not None:
        progress("estimating the target's latency")
        measurement = add_estimate(measurement, request.model, profile, request.calibration, percentile, ready.inputs)
    comparison = compare(request.model, request.against, target, progress=progress) if request.against else None
    changes, ratios, operators = None, None, dict[str, dict[str, int]]()
    if request.against or set(measurement.providers) - {profile.providers[0]}:
        progress("profiling nodes")
        files = [request.against, request.model] if request.against else [request.model]
        with contextlib.suppress(CannotProfileError):
            profiles = profile_nodes(files, target, LONG_PROFILING_TURNS)
            changes = match_nodes(profiles[0].nodes, profiles[1].nodes) if request.against else None
            ratios = provider_time_ratios(profiles[-1].nodes)
            operators = count_operators(profiles[-1].nodes)
    modes = measure_memory_modes(request.model, target, progress=progress) if request.memory_modes else None
    ratios = ratios or dict.fromkeys(measurement.providers, 1.0)
    return BenchResult(
        measurement, comparison, changes, ratios, operators, sustained, modes, ready.size_bytes, ready.notes
    )


def summarize_bench(request: BenchRequest, result: BenchResult) -> dict[str, Any]:
    """Return the statistics of a result, unrounded, under the names of ``choice.json``."""
    profile, measurement, comparison = request.profile, result.measurement, result.comparison
    percentile = profile.limits.latency_percentile
    limit = statistics.latency_interval_ms(measurement, percentile)
    memory = measurement.memory
    summary: dict[str, Any] = {
        "schema": "edgeopt/bench-1",
        "model": str(request.model),
        "target": profile.name,
        "size_bytes": result.size_bytes,
        "notes": result.notes,
        "batch_size": measurement.batch_size,
        "latency_ms": {f"p{p}": statistics.latency_interval_ms(measurement, p).value for p in (50, 90, 99)}
        | {"limit": limit.value, "limit_percentile": percentile, "limit_ci95": limit[1:]},
        "estimate": measurement.estimate,
        "calibration_refused": request.calibration_refused,
        "throughput_per_s": statistics.throughput_per_s(measurement),
        "load_ms": statistics.load_ms(measurement),
        "peak_memory_bytes": memory.peak_bytes if memory else None,
        "providers": measurement.providers,
        "provider_time_ratios": result.provider_time_ratios,
        "contended_processes": sum(timing.contended for timing in measurement.timings),
        "noise": statistics.find_noise(measurement, percentile),
        "sustained": _sustained_summary(result.sustained) if result.sustained else None,
        "memory_modes": result.memory_modes,
        "against": None,
    }
    if comparison is not None:
        ratio = statistics.comparison_ratio(comparison)
        summary["against"] = {
            "model": str(request.against),
            "latency_ratio": ratio.value,
            "ci95": ratio[1:],
            "verdict": statistics.verdict(comparison),
            "clock": comparison.clock,
        } | ({} if result.changes is None else {"nodes": result.changes})
    return summary


def _sustained_summary(sustained: Sustained) -> dict[str, Any]:
    ratio, temperatures = sustained_ratio(sustained), sustained.temperatures_c
    return {
        "seconds": sustained.seconds,
        "last_over_first": ratio.value,
        "ci95": ratio[1:],
        "verdict": sustained_verdict(sustained),
        "clock": sustained.clock,
        "temperatures_c": (temperatures[0], temperatures[-1]),
    }
