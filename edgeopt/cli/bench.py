"""``edgeopt bench``: latency and memory of one file on a target's device, and an A/B comparison with another file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from edgeopt.cli.options import (
    DATA_HELP,
    FILE,
    data_options,
    estimate_option,
    refuse_unread_data_options,
    run_options,
    verbose_option,
)
from edgeopt.records.preprocessing import DataOptions

if TYPE_CHECKING:
    from edgeopt.device.base import Device
    from edgeopt.pipeline.bench_file import BenchRequest


class _Numbers(click.ParamType[tuple[int, ...]]):
    """Whole numbers above 0 with commas between them."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the numbers, each once."""
        try:
            numbers = tuple(dict.fromkeys(int(part) for part in str(value).split(",")))
        except ValueError:
            numbers = ()
        if not numbers or min(numbers) < 1:
            self.fail(f"{value!r} are not whole numbers above 0 with commas between them, such as 1,2,4.", param, ctx)
        return numbers


class _Names(click.ParamType[tuple[str, ...]]):
    """Names with commas between them; none stands for all."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Return the names, each once."""
        names = tuple(dict.fromkeys(part.strip() for part in str(value).split(",") if part.strip()))
        return () if names == ("all",) else names


class _ScoreSource(NamedTuple):
    """What a file is scored by, as the user named it."""

    task: str | None
    data: str | None
    options: DataOptions


_NUMBERS, _NAMES = _Numbers(), _Names()


@click.command("bench")
@click.argument("model", type=FILE)
@click.option("--target", required=True, metavar="NAME", help="A target's name, or the path of its .toml.")
@click.option("--against", type=FILE, metavar="OTHER", help="Another .onnx file to compare with (interleaved A/B).")
@click.option(
    "--sustained",
    type=click.FloatRange(min=10),
    metavar="SECONDS",
    help="Also run for this long without a pause, to see whether the device throttles.",
)
@click.option(
    "--memory-modes",
    is_flag=True,
    help="Also measure memory without arena, re-packed weights and copied weights.",
)
@click.option(
    "--batch", "batch_sizes", type=_NUMBERS, metavar="N,N", help="Measure each of these batch sizes, as a table."
)
@click.option("--threads", type=_NUMBERS, metavar="N,N", help="Measure these numbers of threads, as a table.")
@click.option(
    "--providers",
    type=_NAMES,
    metavar="all|NAME,NAME",
    help="Measure on each execution provider of the device, as a table; the processor runs what one cannot.",
)
@click.option(
    "--score", metavar="TASK", help="Also score the model on each of --providers, on TASK's whole evaluation set."
)
@click.option("--data", metavar="DATA", help=f"Inputs and labels for --score MODEL.onnx. {DATA_HELP}")
@data_options
@estimate_option
@run_options
@verbose_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, with raw samples.")
def command(
    model: Path,
    target: str,
    against: Path | None,
    sustained: float | None,
    memory_modes: bool,
    batch_sizes: tuple[int, ...] | None,
    threads: tuple[int, ...] | None,
    providers: tuple[str, ...] | None,
    score: str | None,
    data: str | None,
    data_options: DataOptions,
    estimate: bool,
    device_uri: str | None,
    batch_size: int | None,
    inputs: str | None,
    shapes: tuple[str, ...],
    allow_fallback: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure latency and memory of MODEL on a target's device.

    --score names a task as `build` does: a ready task's name, module:name, file.py:name, or model.onnx with its --data.
    """
    from edgeopt.config.profiles import load_profile
    from edgeopt.config.shapes import merge_shapes
    from edgeopt.device.open import open_device
    from edgeopt.pipeline.bench_file import BenchRequest
    from edgeopt.pipeline.device_calibration import choose_calibration

    profile = load_profile(target)
    search = choose_calibration(target, profile, device_uri, estimate)
    device = open_device("local:" if search.calibration else device_uri or profile.device)
    _check_memory_modes(device, memory_modes)
    request = BenchRequest(
        model=model,
        profile=profile,
        calibration=search.calibration,
        calibration_refused=search.refused,
        against=against,
        sustained_seconds=sustained,
        memory_modes=memory_modes,
        batch_size=batch_size or profile.limits.batch_size,
        inputs=inputs,
        shapes=merge_shapes(shapes, "--shape"),
        allow_fallback=allow_fallback,
    )
    alone = {"--against": against, "--sustained": sustained, "--memory-modes": memory_modes, "--estimate": estimate}
    source = _score_source(providers, score, data, data_options)
    if providers is not None:
        _refuse("--providers", alone | {"--batch": batch_sizes, "--threads": threads})
        _print_providers(request, device, providers, source, as_json)
    elif batch_sizes or threads:
        _refuse("--batch and --threads", alone | {"--batch-size": batch_size})
        _print_settings(request, device, batch_sizes or (request.batch_size,), threads or (profile.threads,), as_json)
    else:
        _print_measured(request, device, as_json)


def _check_memory_modes(device: Device, wanted: bool) -> None:
    if wanted and not device.uri.startswith(("local:", "ssh:")):
        raise click.UsageError(
            f"--memory-modes needs a device with Python (local: or ssh://); {device.uri} doesn't have it."
        )


def _score_source(
    providers: tuple[str, ...] | None, score: str | None, data: str | None, options: DataOptions
) -> _ScoreSource:
    if providers is None and (score, data) != (None, None):
        raise click.UsageError("--score shows the score on each execution provider: it goes with --providers.")
    refuse_unread_data_options(score, options)
    return _ScoreSource(score, data, options)


def _refuse(table: str, others: Mapping[str, object]) -> None:
    """Refuse options that do not go with a table."""
    given = [name for name, value in others.items() if value]
    if given:
        raise click.UsageError(f"{table} make a table of times: leave out {' and '.join(given)}.")


def _print_measured(request: BenchRequest, device: Device, as_json: bool) -> None:
    """Measure all that was asked for, and print it."""
    from edgeopt.cli.bench_text import print_summary
    from edgeopt.cli.console import ProgressDisplay
    from edgeopt.pipeline.bench_file import bench_file, summarize_bench
    from edgeopt.records.codec import to_json

    with ProgressDisplay() as progress:
        result = bench_file(request, device, lambda text: progress("bench", text))
    summary = summarize_bench(request, result)
    if as_json:
        samples = {"measurement": result.measurement, "comparison": result.comparison}
        sustained_samples = {"sustained_samples": result.sustained} if result.sustained else {}
        click.echo(to_json({**summary, **samples, **sustained_samples}))
    else:
        print_summary(summary, request.profile, result.measurement)


def _print_settings(
    request: BenchRequest, device: Device, batch_sizes: tuple[int, ...], threads: tuple[int, ...], as_json: bool
) -> None:
    """Measure and print a line for each batch size and number of threads."""
    from edgeopt.cli.bench_text import print_settings
    from edgeopt.cli.console import ProgressDisplay
    from edgeopt.pipeline.bench_file import bench_settings
    from edgeopt.records.codec import to_json

    with ProgressDisplay() as progress:
        rows = bench_settings(request, device, batch_sizes, threads, lambda text: progress("bench", text))
    if as_json:
        click.echo(to_json({"schema": "edgeopt/bench-settings-1", "rows": rows}))
    else:
        print_settings(rows, request.profile)


def _print_providers(
    request: BenchRequest, device: Device, providers: tuple[str, ...], source: _ScoreSource, as_json: bool
) -> None:
    """Measure and print a line for each execution provider."""
    from edgeopt.cli.bench_text import print_providers
    from edgeopt.cli.check import load_evaluation
    from edgeopt.cli.console import ProgressDisplay, stdout_to_stderr
    from edgeopt.pipeline.bench_file import bench_providers
    from edgeopt.records.codec import to_json

    with stdout_to_stderr(), ProgressDisplay() as progress:
        evaluation = load_evaluation(source.task, source.data, source.options, progress)
        scorer = None
        if evaluation is not None:
            from edgeopt.pipeline.verify.provider_score import ProviderScorer

            scorer = ProviderScorer(evaluation, request.model)
        rows = bench_providers(request, device, providers, lambda text: progress("bench", text), scorer)
    if as_json:
        click.echo(to_json({"schema": "edgeopt/bench-providers-1", "rows": rows}))
    else:
        print_providers(rows, request.profile)
