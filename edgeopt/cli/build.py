"""``edgeopt build``: the smallest file that keeps the limits on a target, with the proof."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from edgeopt.cli.console import ProgressDisplay
from edgeopt.cli.options import limit_options
from edgeopt.config.limits import LimitOptions

NOTHING_KEEPS_THE_BUDGET = 3


@click.command("build")
@click.argument("task", required=False)
@click.option("--target", help="A target's name, or the path of its .toml; `edgeopt targets list` shows them.")
@click.option("--data", type=click.Path(path_type=Path), help="Inputs (.npz) for a model given as .onnx.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("edgeopt-out"), show_default=True,
              help="Folder for the result.")  # fmt: skip
@click.option("--workspace", type=click.Path(path_type=Path), default=Path(".edgeopt"), show_default=True,
              help="Folder where trials are kept; the same command goes on from there.")  # fmt: skip
@click.option("--device", help="Where to measure: local:, ssh://[user@]host, adb:[serial], browser:; the target says.")
@click.option(
    "--estimate", is_flag=True, help="Estimate the target's latency from its calibration, without the device."
)
@limit_options
@click.option("--allow-fallback", multiple=True, metavar="PROVIDER",
              help="Let this execution provider run what the target's first one cannot; may be repeated.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), help="Trainings side by side; by default one a core.")
@click.option("--time-limit", type=click.FloatRange(0, min_open=True), metavar="MINUTES",
              help="Start no further round of trainings after this time.")  # fmt: skip
@click.option("--quick", is_flag=True, help="One short round of trainings, no low rank, shorter timings: a first look.")
@click.option("--more", is_flag=True, help="Train further candidates where an earlier search here was finished.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print choice.json on stdout, and nothing else.")
def command(
    task: str | None,
    target: str | None,
    data: Path | None,
    out: Path,
    workspace: Path,
    device: str | None,
    estimate: bool,
    limits: LimitOptions,
    allow_fallback: tuple[str, ...],
    workers: int | None,
    time_limit: float | None,
    quick: bool,
    more: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Prune, distill, export, quantize and measure TASK until the smallest file is found that keeps the limits.

    TASK is a ready task's name, module:name, file.py:name or model.onnx; without it, edgeopt.toml's, else `fashion`.
    """
    from edgeopt.config.limits import resolve_budget
    from edgeopt.config.profiles import load_profile
    from edgeopt.config.project import load_project
    from edgeopt.errors import ConfigError

    project = load_project()
    wanted = target or project.target
    if wanted is None:
        raise ConfigError("no target: give --target NAME (see `edgeopt targets list`), or set it in edgeopt.toml.")
    profile = load_profile(wanted)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    with ProgressDisplay(quiet=quiet) as progress:
        progress("set-up", "loading PyTorch")
        from edgeopt.pipeline.build import BuildRequest, build
        from edgeopt.pipeline.device_calibration import calibration_for

        found = calibration_for(wanted, profile, device, estimate)
        if found.refused:
            progress("set-up", found.refused)
        request = BuildRequest(
            task=task or project.task or "fashion",
            data=str(data) if data else None,
            profile=profile,
            device="local:" if found.calibration else device or profile.device,
            calibration=found.calibration,
            notes=(found.refused,) if found.refused else (),
            out=str(out),
            workspace=str(workspace),
            allow_fallback=allow_fallback,
            workers=workers,
            time_limit_seconds=None if time_limit is None else time_limit * 60,
            quick=quick,
            more=more,
            command=("edgeopt", *sys.argv[1:]),
        )
        choice = build(request, lambda own: resolve_budget(profile, own, project.limits, limits), progress)
    show_result(out, as_json)
    return 0 if choice.winner is not None else NOTHING_KEEPS_THE_BUDGET


def show_result(out: Path, as_json: bool) -> None:
    """Print the result: the table, or ``choice.json`` as it was written."""
    from rich.console import Console

    from edgeopt.report.document import read_document
    from edgeopt.report.text import print_result

    if as_json:
        click.echo((out / "choice.json").read_text(encoding="utf-8"))
    else:
        print_result(read_document(out / "choice.json"), Console(), out=out)
