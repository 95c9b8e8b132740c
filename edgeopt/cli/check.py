"""``edgeopt check BUNDLE``: a finished build verified again, with an exit code for continuous integration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeopt.cli.options import FILE

if TYPE_CHECKING:
    from edgeopt.cli.console import ProgressDisplay
    from edgeopt.pipeline.evaluation import EvaluationSet
    from edgeopt.pipeline.verify.check import CheckResult

EXIT_CODES = {"passed": 0, "missed": 3, "bad": 2}
VERDICTS = {"passed": "keeps what it promises", "missed": "misses what it promises", "bad": "is not what was built"}


@click.command("check")
@click.argument("bundle", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--device", metavar="URI", help="Where to run; the target's device without it.")
@click.option("--target", metavar="NAME", help="Another target's name or .toml, for how to run; the limits stay.")
@click.option("--allow-fallback", multiple=True, metavar="PROVIDER", help="May run where the target's cannot.")
@click.option("--score", metavar="TASK", help="Also score the model there on this task's whole evaluation set.")
@click.option("--data", type=FILE, metavar="FILE", help="Inputs and labels (.npz) where --score names an .onnx.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, raw samples included.")
def command(
    bundle: Path,
    device: str | None,
    target: str | None,
    allow_fallback: tuple[str, ...],
    score: str | None,
    data: Path | None,
    as_json: bool,
) -> int:
    """Verify BUNDLE, the folder of a finished build: its files, its golden outputs on the device, its limits.

    The limit of the score takes data that a bundle does not hold: --score names the task it was built with, as `build`
    takes it (a ready task's name, module:name, file.py:name, or the given model.onnx with its --data).

    Exit code 0 where all of it holds, 3 where an output or a limit is missed, 2 where the bundle is not what was built.
    """
    from edgeopt.bench.run_target import RunTarget
    from edgeopt.bundle.manifest import read_manifest
    from edgeopt.cli.console import ProgressDisplay
    from edgeopt.config.profiles import load_profile
    from edgeopt.device.open import device_kind, open_device
    from edgeopt.pipeline.verify.check import check_bundle
    from edgeopt.records.codec import to_json

    profile = load_profile(target or read_manifest(bundle).target)
    with ProgressDisplay() as progress:
        evaluation = _evaluation(score, data, progress)
        where = open_device(device or profile.device)
        kind = device_kind(where.uri, profile)
        profile = profile if kind == "measured" else profile.on_stand_in
        place = RunTarget(where, kind, profile, allow_fallback)
        result = check_bundle(bundle, place, progress=lambda text: progress("check", text), evaluation=evaluation)
    if as_json:
        click.echo(to_json(result))
    else:
        _print(result)
    return EXIT_CODES[result.status]


def _evaluation(task: str | None, data: Path | None, progress: ProgressDisplay) -> EvaluationSet | None:
    """Load what --score names; None without it.

    Raises:
        InputError: the task cannot be loaded, or goes with data and has none, or the other way round.
    """
    from edgeopt.errors import InputError

    if task is None:
        if data is not None:
            raise InputError("--data goes with --score MODEL.onnx, the file that the bundle was built from.")
        return None
    if task.endswith(".onnx") and data is None:
        raise InputError(f"--score {task} needs --data FILE, the .npz of inputs that the bundle was built with.")
    progress("set-up", "loading PyTorch")
    from edgeopt.pipeline.evaluation import EvaluationSet, open_task

    return EvaluationSet(open_task(task, data))


def _print(result: CheckResult) -> None:
    """Print one line a finding, and the verdict last."""
    width = max(len(finding.name) for finding in result.findings)
    for finding in result.findings:
        click.echo(f"{finding.status:6}  {finding.kind:6}  {finding.name:{width}}  {finding.text}")
    click.echo(f"{result.bundle} {VERDICTS[result.status]} on {result.device}")
