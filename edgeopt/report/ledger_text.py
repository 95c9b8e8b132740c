"""The ledger on a terminal: builds, trials, and one trial with everything that is known about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeopt.records.codec import to_json
from edgeopt.records.trial import Artifact, Failed, Measured, Trial
from edgeopt.report import words
from edgeopt.statistics import comparison_ratio, find_noise, latency_interval_ms, load_ms, verdict

BuildRow = tuple[int, str, str, float, int]
"""Number, task, target, start (seconds since 1970), number of trials."""


def print_builds(builds: Sequence[BuildRow], console: Console) -> None:
    """Print one line per build."""
    table = _table("build", "task", "target", "began", "trials")
    for number, task, target, began, trials in builds:
        when = datetime.fromtimestamp(began).astimezone().strftime("%Y-%m-%d %H:%M")
        table.add_row(str(number), Text(task), Text(target), when, str(trials))
    console.print(table)


def print_trials(trials: Sequence[Trial], console: Console) -> None:
    """Print one line per trial; number 0 is the baseline."""
    baseline = next((trial for trial in trials if trial.number == 0), None)
    table = _table("#", "size", "p50", "memory", "score", "recipe")
    for trial in trials:
        recipe = _recipe_text(trial, baseline)
        match trial.outcome:
            case Measured(artifact=artifact, measurement=measurement, score=score):
                memory = None if measurement.memory is None else measurement.memory.peak_bytes
                cells = (
                    words.size(artifact.size_bytes),
                    words.quantity(latency_interval_ms(measurement, 50).value, "ms"),
                    words.quantity(memory, "bytes"),
                    words.score(score.value),
                )
                table.add_row(str(trial.number), *cells, Text(recipe))
            case Failed(stage=stage):
                dashes = [words.MISSING] * 4
                table.add_row(str(trial.number), *dashes, Text(f"{recipe} (failed: {stage})", style="red"))
    console.print(table)


def print_trial(trial: Trial, baseline: Trial | None, console: Console) -> None:
    """Print one trial: its recipe, its results, and the traceback if it failed."""
    console.print(Text(f"Trial {trial.number}: {_recipe_text(trial, baseline)}", style="bold"))
    match trial.outcome:
        case Measured() as outcome:
            rows = _measured_rows(outcome)
        case Failed() as failed:
            rows = iter([("failed at", failed.stage), ("reason", failed.reason)])
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows:
        table.add_row(Text(name, style="dim"), Text(value))
    took = [f"{stage} {words.duration(seconds)}" for stage, seconds in trial.seconds.items()]
    if took:
        table.add_row(Text("took", style="dim"), Text(", ".join(took)))
    console.print(table)
    console.print(Text("\n" + msgspec.json.format(to_json(trial.recipe), indent=2).decode()))
    if isinstance(trial.outcome, Failed) and trial.outcome.trace:
        console.print(Text("\n" + trial.outcome.trace.rstrip()), soft_wrap=True)


def _measured_rows(outcome: Measured) -> Iterator[tuple[str, str]]:
    artifact, measurement, score = outcome.artifact, outcome.measurement, outcome.score
    yield "file", f"artifacts/{artifact.sha256}.onnx"
    yield "size", f"{words.size(artifact.size_bytes)}, {words.size(artifact.download_bytes)} deflated"
    yield (
        "parameters",
        f"{artifact.parameters:,}, {artifact.nonzero_parameters:,} of them nonzero; {artifact.macs:,} MACs",
    )
    yield "format", f"operator set {artifact.opset}, IR {artifact.ir_version}, exporter {artifact.exporter}"
    for percentile in (50, 90, 99):
        value, low, high = latency_interval_ms(measurement, percentile)
        span = f"95 %: {words.significant(low)} to {words.quantity(high, 'ms')}"
        estimated = ", estimated" if measurement.estimate else ""
        yield f"latency p{percentile}{estimated}", f"{words.quantity(value, 'ms')} ({span})"
    compared = [("baseline", outcome.against_baseline), ("float32", outcome.against_float)]
    variants = filter(None, (outcome.against_parent, outcome.against_full_int8))
    for name, comparison in [*compared, *((f"trial {one.trial}", one.comparison) for one in variants)]:
        if comparison is not None:
            ratio, low, high = comparison_ratio(comparison)
            span = f"95 %: {words.significant(low)} to {words.significant(high)}"
            yield f"against {name}", f"{words.significant(ratio)} of its time ({span}): {verdict(comparison)}"
    memory = measurement.memory
    if memory is not None:
        peaks = f"load {words.size(memory.load_peak_bytes)}, runs {words.size(memory.run_peak_bytes)}"
        yield "peak memory", f"{words.size(memory.peak_bytes)} ({peaks})"
    yield "load time", words.quantity(load_ms(measurement), "ms")
    yield (
        "score",
        (
            f"{words.score(score.value)}, {'drop' if score.direction == 'higher' else 'error increase'} "
            f"{words.score(score.drop)}, {score.samples:,} samples"
        ),
    )
    for kind, ratio in find_noise(measurement).items():
        yield "disturbed", words.noise_text(kind, ratio)
    for parity in artifact.parities:
        yield f"parity, {parity.stage}", f"largest relative difference {parity.max_rel_error:.1e}"
    for note in artifact.notes:
        yield "note", note


def _recipe_text(trial: Trial, baseline: Trial | None) -> str:
    artifact, first = _artifact(trial), _artifact(baseline)
    return words.recipe_text(
        trial.recipe,
        _parameters(trial),
        _parameters(baseline),
        weight_types=artifact.weight_types if artifact else (),
        exporter=first.exporter if first else None,
    )


def _artifact(trial: Trial | None) -> Artifact | None:
    return trial.outcome.artifact if trial and isinstance(trial.outcome, Measured) else None


def _parameters(trial: Trial | None) -> int | None:
    artifact = _artifact(trial)
    return artifact.parameters if artifact else None


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        left = name in ("task", "target", "began", "recipe")
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    return table
