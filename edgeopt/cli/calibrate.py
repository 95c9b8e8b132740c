"""``edgeopt targets calibrate``: small networks on a target's device and here, to foretell others without it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgeopt.records.calibration import Calibration


@click.command()
@click.argument("name")
@click.option("--device", metavar="URI", help="Where the target is; its own device without it.")
@click.option("--allow-fallback", multiple=True, metavar="PROVIDER", help="May run there where the target's cannot.")
@click.option("--sustained", type=click.FloatRange(min=10), metavar="SECONDS", help="Also run that long.")
@click.option("--quick", is_flag=True, help="One size of each operator and one process: sooner, and less sure.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout: the fit and its errors.")
def calibrate(
    name: str, device: str | None, allow_fallback: tuple[str, ...], sustained: float | None, quick: bool, as_json: bool
) -> None:
    """Measure small networks on NAME's device and on this host, and keep how they compare.

    Later, `bench` and `build` without the device estimate its latency from this host's, with an interval.
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
    if device is None and profile.stand_in:
        raise ConfigError(
            f"this machine only stands in for '{profile.name}': give the device itself, such as --device ssh://HOST."
        )
    ranking_kind(device or profile.device, profile)  # refuses an emulator, which has no times
    with ProgressDisplay() as progress:
        found = device_calibration.calibrate_device(
            profile,
            open_device(device or profile.device),
            calibration_models(profile.precisions, quick),
            rule=device_calibration.QUICK_RULE if quick else device_calibration.RULE,
            sustained_seconds=sustained,
            allow_fallback=allow_fallback,
            progress=lambda text: progress("calibrate", text),
        )
    write_calibration(found, path)
    summary = summarize_calibration(found) | {"path": str(path)}
    if as_json:
        click.echo(to_json(summary))
    else:
        _print(summary, found)


def summarize_calibration(found: Calibration) -> dict[str, Any]:
    """Return the fit and its errors, unrounded."""
    from edgeopt.bench.sustained import sustained_ratio, sustained_verdict
    from edgeopt.latency.transfer import (
        contended_processes,
        fit_ratios,
        held_out_errors,
        median_ns,
        predicted_ns,
        whole_errors,
    )

    fitted = fit_ratios(found)
    errors = held_out_errors(whole_errors(found, fitted))
    wholes = {probe.name: probe for probe in found.probes if probe.role == "whole"}
    lasting = found.sustained
    return {
        "schema": "edgeopt/calibrated-1",
        "target": found.target,
        "device": found.device,
        "host": found.host,
        "onnxruntime": {"device": found.device_environment.onnxruntime, "host": found.host_environment.onnxruntime},
        "empty_call_ms": fitted.empty_ns / 1e6,
        "contended_processes": contended_processes(found),
        "processes": sum(len(probe.device_wall_ns) for probe in found.probes),
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
                "device_ms": median_ns(found, probe) / 1e6,
                "by_ratios_ms": predicted_ns(fitted, probe.host_ns) / 1e6,
                "error_ratio": errors[name],
            }
            for name, probe in wholes.items()
        },
        "sustained": lasting
        and {"seconds": lasting.seconds, "last_over_first": sustained_ratio(lasting)._asdict(),
             "verdict": sustained_verdict(lasting)},
    }  # fmt: skip


def _print(summary: dict[str, Any], found: Calibration) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from edgeopt.report import words

    console = Console(highlight=False, soft_wrap=True)
    ratios = Table(title=escape(f"{found.target} on {found.device.uri}, against this host"), title_justify="left")
    for heading in ("operators", "device / host", "micro-models", "largest error of one left out"):
        ratios.add_column(heading, justify="left" if heading == "operators" else "right")
    for name, row in sorted(summary["classes"].items()):
        worst = row["worst_error_ratio"]
        ratios.add_row(
            name, words.times(row["ratio"]), str(row["micro_models"]), "—" if worst is None else words.percent(worst)
        )
    held = Table(title="networks held out: foretold with their own time left out", title_justify="left")
    for heading in ("network", "on the device", "error of the estimate"):
        held.add_column(heading, justify="left" if heading == "network" else "right")
    for name, row in summary["held_out"].items():
        held.add_row(name, words.quantity(row["device_ms"], "ms"), f"{100 * row['error_ratio']:+.0f} %")
    console.print(ratios, held)
    if summary["sustained"]:
        lasting = summary["sustained"]
        console.print(
            f"After {lasting['seconds']:g} s without a pause: {lasting['verdict']} outside the noise, the last tenth "
            f"takes {lasting['last_over_first']['value']:.3f} of the first's time."
        )
    disturbed, processes = summary["contended_processes"], summary["processes"]
    if disturbed:
        console.print(
            f"[yellow]Noise: other load disturbed {disturbed} of {processes} processes on the device. CPU time is what "
            "counts, but calibrate again on a quiet device if the errors above are large.[/]"
        )
    versions = summary["onnxruntime"]
    if versions["device"] != versions["host"]:
        console.print(
            f"[yellow]ONNX Runtime {versions['device']} there, {versions['host']} here: kernels may differ.[/]"
        )
    console.print(escape(
        f"wrote {summary['path']}: `edgeopt bench` and `edgeopt build` for {found.target} without the device "
        "estimate its latency from it."
    ))  # fmt: skip
