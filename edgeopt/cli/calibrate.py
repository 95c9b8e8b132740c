"""``edgeopt targets calibrate``: time small networks on a target's device and here, to estimate others without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgeopt.cli.options import device_option, fallback_option, verbose_option

if TYPE_CHECKING:
    from edgeopt.records.calibration import Calibration


@click.command(short_help="Measure a device once, to estimate latencies later.")
@click.argument("name")
@device_option
@fallback_option
@click.option(
    "--sustained",
    type=click.FloatRange(min=10),
    metavar="SECONDS",
    help="Also run one network for this long without a pause.",
)
@click.option("--quick", is_flag=True, help="One size per operator, one process: faster, but wider intervals.")
@verbose_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document: the fit and its errors.")
def calibrate(
    name: str,
    device_uri: str | None,
    allow_fallback: tuple[str, ...],
    sustained: float | None,
    quick: bool,
    as_json: bool,
) -> None:
    """Time small networks on NAME's device and on this machine, and save how they compare.

    Without the device, `bench` and `build` then estimate its latency from this machine's, with an interval.
    """
    from edgeopt.cli.console import ProgressDisplay
    from edgeopt.config.calibrations import calibration_path, write_calibration
    from edgeopt.config.profiles import load_profile
    from edgeopt.device.open import open_device, ranking_kind
    from edgeopt.errors import ConfigError
    from edgeopt.latency.probe_models import calibration_models
    from edgeopt.pipeline import device_calibration
    from edgeopt.records.codec import to_json

    profile, path = load_profile(name), calibration_path(name)
    if device_uri is None and profile.stand_in:
        raise ConfigError(
            f"this machine only stands in for '{profile.name}': give the device itself, such as --device ssh://HOST."
        )
    ranking_kind(device_uri or profile.device, profile)  # refuses an emulator, which has no times
    with ProgressDisplay() as progress:
        calibration = device_calibration.calibrate_device(
            profile,
            open_device(device_uri or profile.device),
            calibration_models(profile.precisions, quick),
            rule=device_calibration.QUICK_TIMING_RULE if quick else device_calibration.TIMING_RULE,
            sustained_seconds=sustained,
            allow_fallback=allow_fallback,
            progress=lambda text: progress("calibrate", text),
        )
    write_calibration(calibration, path)
    summary = device_calibration.summarize_calibration(calibration) | {"path": str(path)}
    if as_json:
        click.echo(to_json(summary))
    else:
        _print(summary, calibration)


def _print(summary: dict[str, Any], calibration: Calibration) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from edgeopt.report import words

    console = Console(highlight=False, soft_wrap=True)
    ratios = Table(
        title=escape(f"{calibration.target} on {calibration.device.uri}, against this machine"), title_justify="left"
    )
    for heading in ("operators", "device / this machine", "micro-models", "largest error when left out"):
        ratios.add_column(heading, justify="left" if heading == "operators" else "right")
    for name, row in sorted(summary["classes"].items()):
        worst = row["worst_error_ratio"]
        ratios.add_row(
            name, words.times(row["ratio"]), str(row["micro_models"]), "—" if worst is None else words.percent(worst)
        )
    held_out = Table(title="held-out networks: estimated without their own time", title_justify="left")
    for heading in ("network", "time on the device", "error of the estimate"):
        held_out.add_column(heading, justify="left" if heading == "network" else "right")
    for name, row in summary["held_out"].items():
        held_out.add_row(name, words.quantity(row["device_ms"], "ms"), f"{100 * row['error_ratio']:+.0f} %")
    console.print(ratios, held_out)
    if summary["sustained"]:
        sustained = summary["sustained"]
        console.print(
            f"Over {sustained['seconds']:g} s without a pause: {sustained['verdict']} beyond the noise; the last tenth "
            f"takes {sustained['last_over_first']['value']:.3f} times as long as the first."
        )
    disturbed, processes = summary["contended_processes"], summary["processes"]
    if disturbed:
        console.print(
            f"[yellow]Noise: other load disturbed {disturbed} of {processes} processes on the device. Only CPU time "
            "counts, but if the errors above are large, calibrate again while the device is quiet.[/]"
        )
    versions = summary["onnxruntime"]
    if versions["device"] != versions["host"]:
        console.print(
            f"[yellow]ONNX Runtime {versions['device']} on the device, {versions['host']} here: kernels may differ.[/]"
        )
    console.print(escape(
        f"wrote {summary['path']}: without the device, `edgeopt bench` and `edgeopt build` for {calibration.target} "
        "now estimate its latency from this file."
    ))  # fmt: skip
