"""``edgeopt check BUNDLE``: verify a finished build again, with an exit code for continuous integration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeopt.cli.options import DATA_HELP, data_options, device_option, fallback_option, verbose_option
from edgeopt.records.preprocessing import DataOptions

if TYPE_CHECKING:
    from edgeopt.cli.console import ProgressDisplay
    from edgeopt.pipeline.evaluation import EvaluationSet
    from edgeopt.pipeline.verify.check import CheckResult

EXIT_CODES = {"passed": 0, "missed": 3, "bad": 2}
VERDICTS = {
    "passed": "passes every check on {device}",
    "missed": "misses an output or a limit on {device}",
    "bad": "is not the bundle that was built; nothing was run",
}


@click.command("check")
@click.argument("bundle", type=click.Path(path_type=Path, exists=True, file_okay=False))
@device_option
@click.option(
    "--target", metavar="NAME", help="Run with the settings of another target (name or .toml); the limits don't change."
)
@fallback_option
@click.option("--score", metavar="TASK", help="Also score the model on the device, on TASK's whole evaluation set.")
@click.option("--data", metavar="DATA", help=f"Inputs and labels for --score MODEL.onnx. {DATA_HELP}")
@data_options
@verbose_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, with raw samples.")
def command(
    bundle: Path,
    device_uri: str | None,
    target: str | None,
    allow_fallback: tuple[str, ...],
    score: str | None,
    data: str | None,
    data_options: DataOptions,
    as_json: bool,
) -> int:
    """Verify BUNDLE, the folder of a finished build: its files, its golden outputs on the device, its limits.

    Judging the limit of the score takes data that the bundle doesn't hold: --score names the task of the build, in the
    same way as `build` does (a ready task's name, module:name, file.py:name, or the given model.onnx with its --data).

    Exit codes: 0 everything holds, 3 an output or a limit is missed, 2 this is not the bundle that was built.
    """
    from edgeopt.bench.run_target import RunTarget
    from edgeopt.bundle.manifest import read_manifest
    from edgeopt.cli.console import ProgressDisplay, stdout_to_stderr
    from edgeopt.config.profiles import load_profile
    from edgeopt.device.open import device_kind, open_device
    from edgeopt.pipeline.verify.check import check_bundle
    from edgeopt.records.codec import to_json

    profile = load_profile(target or read_manifest(bundle).target)
    with stdout_to_stderr(), ProgressDisplay() as progress:
        evaluation = _load_evaluation(score, data, data_options, progress)
        device = open_device(device_uri or profile.device)
        kind = device_kind(device.uri, profile)
        profile = profile if kind == "measured" else profile.on_stand_in
        run_target = RunTarget(device=device, kind=kind, profile=profile, allow_fallback=allow_fallback)
        result = check_bundle(bundle, run_target, progress=lambda text: progress("check", text), evaluation=evaluation)
    if as_json:
        click.echo(to_json(result))
    else:
        _print(result)
    return EXIT_CODES[result.status]


def _load_evaluation(
    task: str | None, data: str | None, options: DataOptions, progress: ProgressDisplay
) -> EvaluationSet | None:
    """Load the task that --score names; None without it.

    Raises:
        InputError: the task cannot be loaded, or its --data is missing or given without need.
    """
    from edgeopt.errors import InputError

    if task is None:
        if data is not None:
            raise InputError("--data goes with --score MODEL.onnx, the file that the bundle was built from.")
        return None
    if task.endswith(".onnx") and data is None:
        raise InputError(f"--score {task} needs --data DATA, the inputs that the bundle was built with.")
    progress("set-up", "loading PyTorch")
    from edgeopt.pipeline.evaluation import EvaluationSet, open_task

    return EvaluationSet(open_task(task, data, options=options))


def _print(result: CheckResult) -> None:
    """Print one line per finding, and the verdict last."""
    width = max(len(finding.name) for finding in result.findings)
    for finding in result.findings:
        click.echo(f"{finding.status:6}  {finding.kind:6}  {finding.name:{width}}  {finding.text}")
    click.echo(f"{result.bundle} {VERDICTS[result.status].format(device=result.device)}")
