"""``edgeopt build``: the smallest file that keeps the limits on a target, with the proof."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeopt.cli.console import ProgressDisplay, stdout_to_stderr
from edgeopt.cli.options import estimate_option, fallback_option, limit_options, verbose_option
from edgeopt.config.limits import LimitOptions

if TYPE_CHECKING:
    from edgeopt.records.choice import Choice

NO_TRAINING_SUCCEEDED = 1
"""Exit code."""
NOTHING_KEEPS_THE_LIMITS = 3
"""Exit code."""


@click.command("build")
@click.argument("task", required=False)
@click.option(
    "--target", metavar="NAME", help="A target's name, or the path of its .toml (see `edgeopt targets list`)."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Inputs, and labels if any (.npz, or .npy for a single input), for a TASK that is an .onnx file.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    default=Path("edgeopt-out"),
    show_default=True,
    help="Folder for the result.",
)
@click.option(
    "--workspace",
    type=click.Path(path_type=Path),
    metavar="DIR",
    default=Path(".edgeopt"),
    show_default=True,
    help="Folder for finished trials and the log; the same command resumes from it.",
)
@click.option(
    "--device",
    "device_uri",
    metavar="URI",
    help="Device to measure on: local:, ssh://[user@]host, adb:[serial], browser: (default: the target's).",
)
@estimate_option
@limit_options
@fallback_option
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME=1x3x480x640",
    help="Shape of an input with dynamic dimensions at which the limits apply; repeat it, and the worst counts.",
)
@click.option(
    "--workers", type=click.IntRange(1), metavar="N", help="Number of parallel trainings (default: one per core)."
)
@click.option(
    "--time-limit",
    type=click.FloatRange(0, min_open=True),
    metavar="MINUTES",
    help="Start no further round of trainings after this time.",
)
@click.option(
    "--quick",
    is_flag=True,
    help="For a first look: one short round of trainings, no low-rank factorization, shorter timings.",
)
@click.option("--more", is_flag=True, help="Train further candidates after a finished search in this workspace.")
@click.option("--quiet", is_flag=True, help="Show no progress on stderr.")
@verbose_option
@click.option("--json", "as_json", is_flag=True, help="Print choice.json on stdout, and nothing else.")
def command(
    task: str | None,
    target: str | None,
    data: Path | None,
    out: Path,
    workspace: Path,
    device_uri: str | None,
    estimate: bool,
    limits: LimitOptions,
    time_limit: float | None,
    quiet: bool,
    as_json: bool,
    **passed_on: Any,
) -> int:
    """Prune, distill, export, quantize and measure TASK, and pick the smallest file that keeps the limits.

    TASK is a ready task's name, module:name, file.py:name or model.onnx (default: the task in edgeopt.toml, else
    `fashion`).
    """
    from edgeopt.config.limits import resolve_budget
    from edgeopt.config.profiles import load_profile
    from edgeopt.config.project import load_project
    from edgeopt.errors import ConfigError

    project = load_project()
    target = target or project.target
    if target is None:
        raise ConfigError("no target: give --target NAME (see `edgeopt targets list`), or set it in edgeopt.toml.")
    profile = load_profile(target)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    with stdout_to_stderr(), ProgressDisplay(quiet=quiet) as progress:
        progress("set-up", "loading PyTorch")
        from edgeopt.pipeline.build import BuildRequest, build
        from edgeopt.pipeline.device_calibration import choose_calibration

        search = choose_calibration(target, profile, device_uri, estimate)
        if search.refused:
            progress("set-up", search.refused)
        request = BuildRequest(
            task=task or project.task or "fashion",
            data=str(data) if data else None,
            profile=profile,
            device="local:" if search.calibration else device_uri or profile.device,
            calibration=search.calibration,
            notes=(search.refused,) if search.refused else (),
            out=str(out),
            workspace=str(workspace),
            time_limit_seconds=None if time_limit is None else time_limit * 60,
            command=("edgeopt", *sys.argv[1:]),
            **passed_on,
        )
        choice = build(request, lambda budget: resolve_budget(profile, budget, project.limits, limits), progress)
    print_choice(out, as_json)
    return exit_code(choice)


def exit_code(choice: Choice) -> int:
    """Return 1 if no training succeeded for a technical reason, even with a winner; 3 if nothing keeps the limits."""
    if choice.is_error:
        return NO_TRAINING_SUCCEEDED
    return 0 if choice.winner is not None else NOTHING_KEEPS_THE_LIMITS


def print_choice(out: Path, as_json: bool) -> None:
    """Print the result: the tables, or ``choice.json`` as it was written."""
    from rich.console import Console

    from edgeopt.report.document import read_document
    from edgeopt.report.text import print_result

    if as_json:
        click.echo((out / "choice.json").read_text(encoding="utf-8"))
    else:
        print_result(read_document(out / "choice.json"), Console(), out=out)
