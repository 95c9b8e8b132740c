"""``edgeopt bench``: time and weigh one file on a target's device, and against another file."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeopt.cli.options import FILE, run_options

if TYPE_CHECKING:
    from rich.table import Table

    from edgeopt.records.measurement import Change, Comparison, Measurement
    from edgeopt.records.profile import Profile

SHOWN_CHANGES = 8


@click.command("bench")
@click.argument("model", type=FILE)
@click.option("--target", required=True, metavar="NAME", help="A target's name, or the path of its .toml.")
@click.option("--against", type=FILE, metavar="OTHER", help="Another .onnx: an interleaved A/B with a verdict.")
@run_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, raw samples included.")
def command(
    model: Path,
    target: str,
    against: Path | None,
    device: str | None,
    batch_size: int | None,
    inputs: Path | None,
    allow_fallback: tuple[str, ...],
    as_json: bool,
) -> None:
    """Time and weigh MODEL on a target's device."""
    from edgeopt.bench.changes import node_changes
    from edgeopt.bench.compare import compare
    from edgeopt.bench.measure import measure
    from edgeopt.bench.nodes import PROFILING, profile_nodes
    from edgeopt.cli.console import Progress
    from edgeopt.config.profiles import load_profile
    from edgeopt.device.open import open_device, ranking_kind
    from edgeopt.errors import CannotProfileError
    from edgeopt.records.codec import to_json

    profile = load_profile(target)
    batch = batch_size or profile.limits.batch_size
    where = open_device(device or profile.device)
    kind = ranking_kind(where.uri, profile)
    comparison, changes = None, None
    with Progress() as progress:

        def tell(text: str) -> None:
            progress("bench", text)

        common: dict[str, Any] = {"batch_size": batch, "allow_fallback": allow_fallback, "inputs": inputs}
        measurement = measure(
            model,
            where,
            profile,
            kind=kind,
            percentile=profile.limits.latency_percentile,
            max_latency_ms=profile.limits.max_latency_ms,
            progress=tell,
            **common,
        )
        if against is not None:
            comparison = compare(model, against, where, profile, progress=tell, **common)
            tell("profiling nodes")
            with contextlib.suppress(CannotProfileError):
                before, after = profile_nodes([against, model], where, profile, turns=PROFILING, **common)
                changes = node_changes(before.nodes, after.nodes)
    summary = _summary(model, profile, measurement, comparison, against)
    if changes is not None:
        summary["against"]["nodes"] = changes
    if as_json:
        click.echo(to_json({**summary, "measurement": measurement, "comparison": comparison}))
    else:
        _print(summary, profile, measurement)


def _summary(
    model: Path, profile: Profile, measurement: Measurement, comparison: Comparison | None, against: Path | None
) -> dict[str, Any]:
    """Return the statistics of a measurement, unrounded, under the names of ``choice.json``."""
    from edgeopt import statistics

    interval = {p: statistics.latency_interval_ms(measurement, p) for p in (50, 90, 99)}
    limit = statistics.latency_interval_ms(measurement, profile.limits.latency_percentile)
    memory = measurement.memory
    result: dict[str, Any] = {
        "schema": "edgeopt/bench-1",
        "model": str(model),
        "target": profile.name,
        "size_bytes": model.stat().st_size,
        "batch_size": measurement.batch_size,
        "latency_ms": {f"p{p}": found.value for p, found in interval.items()}
        | {"limit": limit.value, "limit_percentile": profile.limits.latency_percentile, "limit_ci95": limit[1:]},
        "throughput_per_s": statistics.throughput_per_s(measurement),
        "load_ms": statistics.load_ms(measurement),
        "peak_memory_bytes": memory.peak_bytes if memory else None,
        "providers": measurement.providers,
        "contended_processes": sum(timing.contended for timing in measurement.timings),
        "noise": statistics.noise(measurement),
        "against": None,
    }
    if comparison is not None:
        ratio = statistics.comparison_ratio(comparison)
        result["against"] = {
            "model": str(against),
            "latency_ratio": ratio.value,
            "ci95": ratio[1:],
            "verdict": statistics.verdict(comparison),
            "clock": comparison.clock,
        }
    return result


def _print(summary: dict[str, Any], profile: Profile, measurement: Measurement) -> None:
    from rich.console import Console

    from edgeopt.report import words

    console = Console(highlight=False, soft_wrap=True)
    console.print(_table(summary, profile, measurement))
    if summary["against"] and "nodes" in summary["against"]:
        console.print(_changes(summary["against"]["nodes"]))
    disturbed = [words.noise(kind, ratio) for kind, ratio in summary["noise"].items()]
    if disturbed:
        said = words.listed(disturbed)
        console.print(f"[yellow]Noise: {said}. Believe the times less, or measure again on a quiet machine.[/]")
    if measurement.device.kind == "stand-in":
        console.print(f"This machine only stands in for {profile.title}: nothing is proven on the target.")


def _table(summary: dict[str, Any], profile: Profile, measurement: Measurement) -> Table:
    """Return the table for people; times and sizes are rounded here."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{summary['model']} on {profile.name}"), show_header=False, title_justify="left")
    latency = summary["latency_ms"]
    low, high = latency["limit_ci95"]
    table.add_row(
        "latency p50 · p90 · p99", " · ".join(f"{latency[name]:.3f}" for name in ("p50", "p90", "p99")) + " ms"
    )
    allowed = profile.limits.max_latency_ms
    judged = "" if allowed is None else f", limit {allowed:g} ms {'kept' if high <= allowed else 'not kept'}"
    table.add_row(
        f"p{latency['limit_percentile']} with its 95 % interval",
        f"{latency['limit']:.3f} ms ({low:.3f} to {high:.3f}){judged}",
    )
    table.add_row("throughput", f"{summary['throughput_per_s']:.1f} samples/s at batch {summary['batch_size']}")
    table.add_row("load", f"{summary['load_ms']:.1f} ms")
    table.add_row("peak memory", _memory(measurement))
    table.add_row("file", f"{summary['size_bytes'] / 1e6:.3f} MB")
    nodes = ", ".join(f"{name} {count}" for name, count in summary["providers"].items())
    tells = measurement.device.uri.startswith(("local:", "ssh:"))
    table.add_row(
        "nodes by provider", nodes or ("none left after optimization" if tells else "this device does not tell")
    )
    environment = measurement.environment
    table.add_row("processor", escape(f"{environment.processor} ({', '.join(environment.features)})"))
    table.add_row("runtime", f"onnxruntime {environment.onnxruntime}, {measurement.threads} thread(s)")
    if summary["against"]:
        against = summary["against"]
        low, high = against["ci95"]
        table.add_row(
            escape(f"against {against['model']}"),
            f"[bold]{against['verdict']}[/]: {against['latency_ratio']:.3f} of its time ({low:.3f} to {high:.3f}), "
            f"by {'CPU' if against['clock'] == 'cpu' else 'wall'} time",
        )
    return table


def _changes(changes: list[Change]) -> Table:
    """Return the nodes that gained or lost most, and what all others did; by ONNX Runtime's profiler."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="what changed most, by ONNX Runtime's profile", title_justify="left")
    for name in ("node", "before", "now", "gained"):
        table.add_column(name, justify="left" if name == "node" else "right")
    rest = changes[SHOWN_CHANGES:]
    rows = [(_label(change), change.against_ns, change.ns) for change in changes[:SHOWN_CHANGES]]
    if rest:
        rows.append((f"{len(rest)} more rows", sum(c.against_ns for c in rest), sum(c.ns for c in rest)))
    rows.append(("all nodes", sum(c.against_ns for c in changes), sum(c.ns for c in changes)))
    for label, before, now in rows:
        table.add_row(escape(label), f"{before / 1e6:.3f} ms", f"{now / 1e6:.3f} ms", f"{(before - now) / 1e6:+.3f} ms")
    return table


def _label(change: Change) -> str:
    if change.name:
        return f"{change.operator} {change.name}"
    before, now = change.nodes
    return f"{change.operator}, others ({before} before, {now} now)"


def _memory(measurement: Measurement) -> str:
    memory = measurement.memory
    if memory is None:
        return "this device cannot tell"
    text = (
        f"{memory.load_peak_bytes / 1e6:.1f} MB loading, {memory.run_peak_bytes / 1e6:.1f} MB running "
        f"(with the default allocator {memory.default_load_peak_bytes / 1e6:.1f} and "
        f"{memory.default_run_peak_bytes / 1e6:.1f})"
    )
    device = memory.device_peak_bytes
    return text if device is None else f"{text}, {device / 1e6:.1f} MB on the device"
