"""``edgeopt bench``: latency and memory of one file on a target's device, and an A/B comparison with another file."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.options import FILE, estimate_option, run_options, verbose_option


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
    estimate: bool,
    device_uri: str | None,
    batch_size: int | None,
    inputs: str | None,
    shapes: tuple[str, ...],
    allow_fallback: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure latency and memory of MODEL on a target's device."""
    from edgeopt.cli.bench_text import print_summary
    from edgeopt.cli.console import ProgressDisplay
    from edgeopt.config.profiles import load_profile
    from edgeopt.config.shapes import merge_shapes
    from edgeopt.device.open import open_device
    from edgeopt.pipeline.bench_file import BenchRequest, bench_file, summarize_bench
    from edgeopt.pipeline.device_calibration import choose_calibration
    from edgeopt.records.codec import to_json

    profile = load_profile(target)
    search = choose_calibration(target, profile, device_uri, estimate)
    device = open_device("local:" if search.calibration else device_uri or profile.device)
    if memory_modes and not device.uri.startswith(("local:", "ssh:")):
        raise click.UsageError(
            f"--memory-modes needs a device with Python (local: or ssh://); {device.uri} doesn't have it."
        )
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
    with ProgressDisplay() as progress:
        result = bench_file(request, device, lambda text: progress("bench", text))
    summary = summarize_bench(request, result)
    if as_json:
        samples = {"measurement": result.measurement, "comparison": result.comparison}
        sustained_samples = {"sustained_samples": result.sustained} if result.sustained else {}
        click.echo(to_json({**summary, **samples, **sustained_samples}))
    else:
        print_summary(summary, profile, result.measurement)
