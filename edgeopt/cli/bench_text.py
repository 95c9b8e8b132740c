"""The text that ``edgeopt bench`` prints for people; numbers are rounded here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgeopt.report import sentences, words

if TYPE_CHECKING:
    from edgeopt.bench.memory_modes import MemoryMode
    from edgeopt.pipeline.verify.provider_score import ProviderScore
    from edgeopt.records.measurement import Measurement, NodeChange
    from edgeopt.records.profile import Profile

_SHOWN_CHANGES_COUNT = 8
"""Rows of nodes that gained or lost time; the rest share one row."""


def print_summary(summary: dict[str, Any], profile: Profile, measurement: Measurement) -> None:
    """Print the tables, then notes on how far to trust them."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(_facts(summary, profile, measurement))
    if summary["against"] and "nodes" in summary["against"]:
        console.print(_changes(summary["against"]["nodes"]))
    if summary["memory_modes"]:
        console.print(_memory_modes(summary["memory_modes"]))
    for note in summary["notes"]:
        console.print(escape(f"Note: {note}."))
    disturbed = [words.noise_text(kind, ratio) for kind, ratio in summary["noise"].items()]
    if disturbed:
        console.print(
            f"[yellow]Noise: {words.listed(disturbed)}. Trust the times less, or measure again on a quiet machine.[/]"
        )
    if summary["estimate"]:
        console.print(escape(sentences.estimate_notes(summary["estimate"], profile.name)))
        console.print("Memory, load time and comparisons were measured on this machine, not on the target.")
    if summary["calibration_refused"]:
        console.print(f"[yellow]{escape(summary['calibration_refused'])}[/]")
    if measurement.device.kind == "stand-in":
        console.print(f"Not measured on the target itself: this machine stood in for {escape(profile.title)}.")


def print_settings(rows: Sequence[dict[str, Any]], profile: Profile) -> None:
    """Print one line for each batch size and number of threads."""
    console = Console(highlight=False, soft_wrap=True)
    table = Table(title=escape(f"{rows[0]['model']} on {profile.name}"), title_justify="left")
    for title in ("batch", "threads", "p50", "p90", "samples / s", "peak memory"):
        table.add_column(title, justify="right")
    for row in rows:
        latency, memory = row["latency_ms"], row["peak_memory_bytes"]
        table.add_row(
            str(row["batch_size"]),
            str(row["threads"]),
            f"{latency['p50']:.3f} ms",
            f"{latency['p90']:.3f} ms",
            words.significant(row["throughput_per_s"]),
            "not measured" if memory is None else words.size(memory),
        )
    console.print(table)
    if rows[0]["measurement"].device.kind == "stand-in":
        console.print(f"Not measured on the target itself: this machine stood in for {escape(profile.title)}.")


def print_providers(rows: Sequence[dict[str, Any]], profile: Profile) -> None:
    """Print one line for each execution provider, and what it leaves to the processor."""
    console = Console(highlight=False, soft_wrap=True)
    table = Table(title=escape(f"on {profile.name}, by execution provider"), title_justify="left")
    scores = [row["score"] for row in rows if not row["error"] and row["score"]]
    titles = ("provider", "nodes", "p50", "p90", "load", "memory", "outputs differ")
    for title in (*titles, *(("score", "drop (95 %)") if scores else ())):
        table.add_column(title, justify="left" if title in ("provider", "nodes") else "right")
    for row in rows:
        if row["error"]:
            table.add_row(escape(_short(row["provider"])), "none")
            continue
        latency, memory, difference = row["latency_ms"], row["peak_memory_bytes"], row["difference"]
        table.add_row(
            escape(_short(row["provider"])),
            escape(_short(words.nodes(row["providers"], row["measurement"].device.uri))),
            f"{latency['p50']:.3f} ms",
            f"{latency['p90']:.3f} ms",
            f"{row['load_ms']:.1f} ms",
            "not measured" if memory is None else words.size(memory),
            "not compared" if difference is None else f"{difference:.2g}",
            *(_score_cells(row["score"]) if scores else ()),
        )
    console.print(table)
    if scores:
        worse = "" if scores[0].direction == "higher" else ", which is an error: lower is better"
        console.print(
            escape(
                f"Scored by {scores[0].task} on {scores[0].samples:,} samples{worse}. The drop is how much worse the "
                "score is than on the processor, over the same samples."
            )
        )
    for row in rows:
        if row["error"]:
            console.print(escape(f"{row['provider']}: {row['error']}"))
        elif row["operators"]:
            shown = words.listed([f"{operator} {count}" for operator, count in row["operators"].items()])
            console.print(escape(f"{row['provider']} leaves to the processor: {shown}."))
    if any(not row["error"] and row["measurement"].device.kind == "stand-in" for row in rows):
        console.print(f"Not measured on the target itself: this machine stood in for {escape(profile.title)}.")


def _score_cells(score: ProviderScore) -> tuple[str, str]:
    """Return a score, and how much worse it is than the processor's."""
    if score.drop is None:
        return words.score(score.value), "not compared"
    interval = "" if score.drop_ci95 is None else " ({} to {})".format(*map(words.score, score.drop_ci95))
    return words.score(score.value), f"{words.score(score.drop)}{interval}"


def _short(text: str) -> str:
    return text.replace("ExecutionProvider", "")


def _facts(summary: dict[str, Any], profile: Profile, measurement: Measurement) -> Table:
    table = Table(title=escape(f"{summary['model']} on {profile.name}"), show_header=False, title_justify="left")
    rows = (*_times(summary, profile), *_sizes(summary, measurement), *_environment(summary, profile, measurement))
    for label, text in (*rows, *_against(summary)):
        table.add_row(escape(label), text)
    return table


def _times(summary: dict[str, Any], profile: Profile) -> Iterator[tuple[str, str]]:
    latency, estimated = summary["latency_ms"], ", estimated" if summary["estimate"] else ""
    low, high = latency["limit_ci95"]
    yield (
        f"latency p50 · p90 · p99{estimated}",
        " · ".join(f"{latency[name]:.3f}" for name in ("p50", "p90", "p99")) + " ms",
    )
    allowed = profile.limits.max_latency_ms
    verdict = "" if allowed is None else f", limit {allowed:g} ms {'kept' if high <= allowed else 'missed'}"
    yield (
        f"p{latency['limit_percentile']}{estimated}, with its 95 % interval",
        f"{latency['limit']:.3f} ms ({low:.3f} to {high:.3f}){verdict}",
    )
    if summary["sustained"]:
        yield from _sustained(summary["sustained"])
    yield "throughput", f"{summary['throughput_per_s']:.1f} samples/s at batch size {summary['batch_size']}"
    yield "load time", f"{summary['load_ms']:.1f} ms"


def _sustained(sustained: dict[str, Any]) -> Iterator[tuple[str, str]]:
    low, high = sustained["ci95"]
    text = {"slower": "[bold]it slows down[/]", "faster": "[bold]it gets faster[/]", "no difference": "no change"}
    yield (
        f"{sustained['seconds']:g} s without a pause",
        f"{text[sustained['verdict']]} beyond the noise: the last tenth takes {sustained['last_over_first']:.3f} times "
        f"as long as the first ({low:.3f} to {high:.3f}, by {'CPU' if sustained['clock'] == 'cpu' else 'wall'} time)",
    )
    begin, end = sustained["temperatures_c"]
    yield (
        "temperature, first and last",
        "not reported by this device" if begin is None or end is None else f"{begin:.0f} °C, {end:.0f} °C",
    )


def _sizes(summary: dict[str, Any], measurement: Measurement) -> Iterator[tuple[str, str]]:
    yield "peak memory", _memory(measurement)
    yield "file", f"{summary['size_bytes'] / 1e6:.3f} MB"


def _environment(summary: dict[str, Any], profile: Profile, measurement: Measurement) -> Iterator[tuple[str, str]]:
    ratios = summary["provider_time_ratios"]
    yield "nodes by provider", words.nodes(summary["providers"], measurement.device.uri, ratios)
    environment = measurement.environment
    governor = f", governor {environment.governor}" if environment.governor else ""
    yield "processor", escape(f"{environment.processor} ({', '.join(environment.features)}){governor}")
    yield "runtime", f"onnxruntime {environment.onnxruntime}, {words.runtime_text(profile.runtime)}"


def _against(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if summary["against"]:
        against = summary["against"]
        low, high = against["ci95"]
        yield (
            f"against {against['model']}",
            f"[bold]{against['verdict']}[/]: {against['latency_ratio']:.3f} times its latency "
            f"({low:.3f} to {high:.3f}), by {'CPU' if against['clock'] == 'cpu' else 'wall'} time",
        )


def _changes(changes: list[NodeChange]) -> Table:
    """Return a table of the nodes whose time changed most, all others in one row."""
    table = Table(title="largest changes, by ONNX Runtime's profiler", title_justify="left")
    for name in ("node", "before", "now", "saved"):
        table.add_column(name, justify="left" if name == "node" else "right")
    rest = changes[_SHOWN_CHANGES_COUNT:]
    rows = [(_label(change), change.against_ns, change.ns) for change in changes[:_SHOWN_CHANGES_COUNT]]
    if rest:
        rows.append((f"{len(rest)} more rows", sum(c.against_ns for c in rest), sum(c.ns for c in rest)))
    rows.append(("all nodes", sum(c.against_ns for c in changes), sum(c.ns for c in changes)))
    for label, before, now in rows:
        table.add_row(escape(label), f"{before / 1e6:.3f} ms", f"{now / 1e6:.3f} ms", f"{(before - now) / 1e6:+.3f} ms")
    return table


def _label(change: NodeChange) -> str:
    if change.name:
        return f"{change.operator} {change.name}"
    before, now = change.nodes
    return f"{change.operator}, others ({before} before, {now} now)"


def _memory(measurement: Measurement) -> str:
    memory = measurement.memory
    if memory is None:
        return "not reported by this device"
    text = (
        f"{memory.load_peak_bytes / 1e6:.1f} MB loading, {memory.run_peak_bytes / 1e6:.1f} MB running "
        f"(with the default allocator {memory.default_load_peak_bytes / 1e6:.1f} and "
        f"{memory.default_run_peak_bytes / 1e6:.1f})"
    )
    device = memory.device_peak_bytes
    return text if device is None else f"{text}, {device / 1e6:.1f} MB on the device"


def _memory_modes(modes: tuple[MemoryMode, ...]) -> Table:
    """Return a table of the modes. Pages mapped from the file are listed apart: the system can drop and reread them."""
    table = Table(title="peak memory by mode, without pages mapped from the .ort", title_justify="left")
    headings = (
        "arena",
        "re-packed weights",
        "weights",
        "loading",
        "running",
        "mapped while running",
        "CPU time per run",
    )
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number > 2 else "left")
    for mode in modes:
        table.add_row(
            "on" if mode.memory_arena else "off",
            "yes" if mode.prepacking else "no",
            "copied" if mode.weights == "copied" else ".ort, mapped",
            f"{(mode.load_peak_bytes - mode.load_mapped_bytes) / 1e6:.1f} MB",
            f"{(mode.run_peak_bytes - mode.run_mapped_bytes) / 1e6:.1f} MB",
            f"{mode.run_mapped_bytes / 1e6:.1f} MB",
            f"{mode.run_cpu_ns / 1e6:.2f} ms",
        )
    return table
