"""``edgeopt bench``: time and weigh one file on a target's device, and against another file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeopt.cli.options import FILE, run_options

if TYPE_CHECKING:
    from edgeopt.bench.memory_modes import MemoryMode
    from edgeopt.device.base import Device
    from edgeopt.records.calibration import Calibration
    from edgeopt.records.measurement import Comparison, DeviceKind, Measurement, NodeChange, Sustained
    from edgeopt.records.profile import Profile


@click.command("bench")
@click.argument("model", type=FILE)
@click.option("--target", required=True, metavar="NAME", help="A target's name, or the path of its .toml.")
@click.option("--against", type=FILE, metavar="OTHER", help="Another .onnx: an interleaved A/B with a verdict.")
@click.option(
    "--sustained",
    type=click.FloatRange(min=10),
    metavar="SECONDS",
    help="Also run that long: does it throttle?",
)
@click.option("--memory-modes", is_flag=True, help="Also weigh it without arena, re-packing, and copied weights.")
@click.option(
    "--estimate", is_flag=True, help="Estimate the target's latency from its calibration, without the device."
)
@run_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, raw samples included.")
def command(
    model: Path,
    target: str,
    against: Path | None,
    sustained: float | None,
    memory_modes: bool,
    estimate: bool,
    device: str | None,
    batch_size: int | None,
    inputs: Path | None,
    allow_fallback: tuple[str, ...],
    as_json: bool,
) -> None:
    """Time and weigh MODEL on a target's device."""
    from edgeopt.cli.bench_text import print_summary
    from edgeopt.cli.console import ProgressDisplay
    from edgeopt.config.profiles import load_profile
    from edgeopt.device.open import open_device
    from edgeopt.pipeline.device_calibration import calibration_for
    from edgeopt.records.codec import to_json

    profile = load_profile(target)
    calibrated = calibration_for(target, profile, device, estimate)
    where = open_device("local:" if calibrated.calibration else device or profile.device)
    if memory_modes and not where.uri.startswith(("local:", "ssh:")):
        raise click.UsageError(f"--memory-modes needs a device with Python (local: or ssh://); {where.uri} has none.")
    wish = BenchRequest(
        model=model,
        profile=profile,
        calibration=calibrated.calibration,
        calibration_refused=calibrated.refused,
        against=against,
        sustained_seconds=sustained,
        memory_modes=memory_modes,
        batch_size=batch_size or profile.limits.batch_size,
        inputs=inputs,
        allow_fallback=allow_fallback,
    )
    with ProgressDisplay() as progress:
        found = run_bench(wish, where, lambda text: progress("bench", text))
    summary = summarize_bench(wish, found)
    if as_json:
        raw = {"measurement": found.measurement, "comparison": found.comparison}
        sustained_samples = {"sustained_samples": found.sustained} if found.sustained else {}
        click.echo(to_json({**summary, **raw, **sustained_samples}))
    else:
        print_summary(summary, profile, found.measurement)


@dataclass(frozen=True)
class BenchRequest:
    """What the user asked to see."""

    model: Path
    profile: Profile
    calibration: Calibration | None
    """What the target's latency is estimated from; None where it is measured, or nothing foretells it."""
    calibration_refused: str | None
    against: Path | None
    sustained_seconds: float | None
    memory_modes: bool
    batch_size: int
    inputs: Path | None
    allow_fallback: tuple[str, ...]


@dataclass(frozen=True)
class BenchResult:
    """What was measured; None for what nobody asked for, or no node tells."""

    measurement: Measurement
    comparison: Comparison | None
    changes: list[NodeChange] | None
    provider_time_ratios: dict[str, float] | None
    sustained: Sustained | None
    memory_modes: tuple[MemoryMode, ...] | None


def _place(wish: BenchRequest, where: Device) -> tuple[Profile, DeviceKind]:
    """Return how the target's sessions run on a device, and what the device is to the target.

    Raises:
        ConfigError: the device has no times.
    """
    from edgeopt.device.open import ranking_kind

    if wish.calibration is not None:
        return wish.profile.on_host, "estimated"
    kind = ranking_kind(where.uri, wish.profile)
    return (wish.profile.on_stand_in if kind == "stand-in" else wish.profile), kind


def run_bench(wish: BenchRequest, where: Device, tell: Callable[[str], None]) -> BenchResult:
    """Measure it all, one after the other.

    Raises:
        ProviderError, StepError, InputError, DeviceError: see ``edgeopt.bench.measure.measure``.
    """
    from edgeopt.bench.changes import node_changes
    from edgeopt.bench.compare import compare
    from edgeopt.bench.measure import measure
    from edgeopt.bench.memory_modes import measure_memory_modes
    from edgeopt.bench.nodes import LONG_PROFILING_TURNS, profile_nodes, time_by_provider
    from edgeopt.bench.sustained import sustain
    from edgeopt.errors import CannotProfileError
    from edgeopt.pipeline.device_calibration import add_estimate

    profile, kind = _place(wish, where)
    common: dict[str, Any] = {
        "batch_size": wish.batch_size, "allow_fallback": wish.allow_fallback, "inputs": wish.inputs,
    }  # fmt: skip
    told = {**common, "progress": tell}
    lasting = None
    if wish.sustained_seconds is not None:  # first, from a device that is as cool as the user left it
        lasting = sustain(wish.model, where, profile, seconds=wish.sustained_seconds, kind=kind, **told)
    measurement = measure(
        wish.model,
        where,
        profile,
        kind=kind,
        percentile=profile.limits.latency_percentile,
        max_latency_ms=profile.limits.max_latency_ms,
        **told,
    )
    if wish.calibration is not None:
        tell("estimating the target's latency")
        percentile = profile.limits.latency_percentile
        measurement = add_estimate(measurement, wish.model, profile, wish.calibration, percentile, wish.inputs)
    comparison = compare(wish.model, wish.against, where, profile, **told) if wish.against else None
    changes, shares = None, None
    if wish.against or len(measurement.providers) > 1:
        tell("profiling nodes")
        files = [wish.against, wish.model] if wish.against else [wish.model]
        with contextlib.suppress(CannotProfileError):
            profiles = profile_nodes(files, where, profile, turns=LONG_PROFILING_TURNS, **common)
            changes = node_changes(profiles[0].nodes, profiles[1].nodes) if wish.against else None
            shares = time_by_provider(profiles[-1].nodes)
    modes = measure_memory_modes(wish.model, where, profile, **told) if wish.memory_modes else None
    return BenchResult(
        measurement, comparison, changes, shares or dict.fromkeys(measurement.providers, 1.0), lasting, modes
    )


def summarize_bench(wish: BenchRequest, found: BenchResult) -> dict[str, Any]:
    """Return the statistics of a measurement, unrounded, under the names of ``choice.json``."""
    from edgeopt import statistics

    profile, measurement, comparison = wish.profile, found.measurement, found.comparison
    interval = {p: statistics.latency_interval_ms(measurement, p) for p in (50, 90, 99)}
    limit = statistics.latency_interval_ms(measurement, profile.limits.latency_percentile)
    memory = measurement.memory
    result: dict[str, Any] = {
        "schema": "edgeopt/bench-1",
        "model": str(wish.model),
        "target": profile.name,
        "size_bytes": wish.model.stat().st_size,
        "batch_size": measurement.batch_size,
        "latency_ms": {f"p{p}": value.value for p, value in interval.items()}
        | {"limit": limit.value, "limit_percentile": profile.limits.latency_percentile, "limit_ci95": limit[1:]},
        "estimate": measurement.estimate,
        "calibration_refused": wish.calibration_refused,
        "throughput_per_s": statistics.throughput_per_s(measurement),
        "load_ms": statistics.load_ms(measurement),
        "peak_memory_bytes": memory.peak_bytes if memory else None,
        "providers": measurement.providers,
        "provider_time_ratios": found.provider_time_ratios,
        "contended_processes": sum(timing.contended for timing in measurement.timings),
        "noise": statistics.noise(measurement, profile.limits.latency_percentile),
        "sustained": _sustained(found.sustained) if found.sustained else None,
        "memory_modes": found.memory_modes,
        "against": None,
    }
    if comparison is not None:
        ratio = statistics.comparison_ratio(comparison)
        result["against"] = {
            "model": str(wish.against),
            "latency_ratio": ratio.value,
            "ci95": ratio[1:],
            "verdict": statistics.verdict(comparison),
            "clock": comparison.clock,
        } | ({} if found.changes is None else {"nodes": found.changes})
    return result


def _sustained(sustained: Sustained) -> dict[str, Any]:
    from edgeopt.bench.sustained import sustained_ratio, sustained_verdict

    ratio, temperatures = sustained_ratio(sustained), sustained.temperatures_c
    return {
        "seconds": sustained.seconds,
        "last_over_first": ratio.value,
        "ci95": ratio[1:],
        "verdict": sustained_verdict(sustained),
        "clock": sustained.clock,
        "temperatures_c": (temperatures[0], temperatures[-1]),
    }
