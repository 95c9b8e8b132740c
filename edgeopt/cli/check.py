"""``edgeopt check BUNDLE``: verify a finished build again, with an exit code for continuous integration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeopt.cli.options import (
    DATA_HELP,
    data_options,
    fallback_option,
    refuse_unread_data_options,
    verbose_option,
)
from edgeopt.records.preprocessing import DataOptions

if TYPE_CHECKING:
    from edgeopt.bench.run_target import RunTarget
    from edgeopt.bundle.signature import PrivateKey, PublicKey
    from edgeopt.cli.console import ProgressDisplay
    from edgeopt.pipeline.evaluation import EvaluationSet
    from edgeopt.pipeline.verify.against import Release
    from edgeopt.pipeline.verify.findings import CheckResult
    from edgeopt.records.profile import Profile

_FILE_PATH = click.Path(path_type=Path, dir_okay=False)
EXIT_CODES = {"passed": 0, "missed": 3, "bad": 2}
WORST_LAST = (0, 3, 2)
VERDICTS = {
    "passed": "passes every check on {device}",
    "missed": "misses an output or a limit on {device}",
    "bad": "is not the bundle that was built; nothing was run",
}


@click.command("check")
@click.argument("bundle", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--device",
    "device_uris",
    multiple=True,
    metavar="URI",
    help="Device to run on (default: the target's); may be repeated, to verify a fleet one after the other.",
)
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="VERSION",
    help="Also compare golden outputs here in this onnxruntime, installed apart ('oldest': that of the target).",
)
@click.option(
    "--target", metavar="NAME", help="Run with the settings of another target (name or .toml); the limits don't change."
)
@fallback_option
@click.option("--score", metavar="TASK", help="Also score the model on the device, on TASK's whole evaluation set.")
@click.option("--data", metavar="DATA", help=f"Inputs and labels for --score MODEL.onnx. {DATA_HELP}")
@data_options
@click.option(
    "--against",
    type=click.Path(path_type=Path, exists=True),
    metavar="RELEASE",
    help="Compare bytes and time (interleaved A/B) with the bundle or .onnx of another release.",
)
@click.option(
    "--max-regression",
    type=click.FloatRange(0),
    metavar="PERCENT",
    help="How much larger or, beyond the noise, slower than RELEASE it may be; more is a miss.",
)
@click.option(
    "--public-key", type=_FILE_PATH, metavar="KEY.pub", help="Also verify the signature that `build --sign` wrote."
)
@click.option("--sign", type=_FILE_PATH, metavar="KEY.pem", help="Sign the bundle with this key if every check passes.")
@verbose_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, with raw samples.")
@click.option("--junit", type=_FILE_PATH, metavar="FILE", help="Write the findings as JUnit's XML.")
@click.option(
    "--summary", type=_FILE_PATH, metavar="FILE", help="Append a Markdown table to FILE, as GITHUB_STEP_SUMMARY is."
)
def command(
    bundle: Path,
    device_uris: tuple[str, ...],
    runtimes: tuple[str, ...],
    target: str | None,
    allow_fallback: tuple[str, ...],
    score: str | None,
    data: str | None,
    data_options: DataOptions,
    against: Path | None,
    max_regression: float | None,
    public_key: Path | None,
    sign: Path | None,
    as_json: bool,
    junit: Path | None,
    summary: Path | None,
) -> int:
    """Verify BUNDLE, the folder of a finished build: its files, its golden outputs on the device, its limits.

    Judging the limit of the score takes data that the bundle doesn't hold: --score names the task of the build, in the
    same way as `build` does (a ready task's name, module:name, file.py:name, or the given model.onnx with its --data).

    With --public-key, a bundle whose signature is missing, or is by another key, is not the one that was built.

    Exit codes: 0 everything holds, 3 an output or a limit is missed, 2 this is not the bundle that was built. Of
    several devices the worst counts. `edgeopt init --ci` writes a workflow for pull requests.
    """
    from edgeopt.bundle.manifest import read_manifest
    from edgeopt.cli.console import ProgressDisplay, stdout_to_stderr
    from edgeopt.config.profiles import load_profile
    from edgeopt.pipeline.verify.check import check_bundle
    from edgeopt.pipeline.verify.runtimes import check_in_runtime, choose_version

    refuse_unread_data_options(score, data_options)
    release = _open_release(against, max_regression)
    _check_folders(junit, summary)
    verifying_key, signing_key = _open_keys(public_key, sign)
    manifest = read_manifest(bundle)
    profile = (None if target else manifest.read_profile()) or load_profile(target or manifest.target)
    versions = [choose_version(one, manifest.min_onnxruntime or profile.min_onnxruntime) for one in runtimes]
    with stdout_to_stderr(), ProgressDisplay() as progress:

        def show(text: str) -> None:
            progress("check", text)

        evaluation = load_evaluation(score, data, data_options, progress)
        targets = {uri: _run_target(uri, profile, allow_fallback) for uri in device_uris or (profile.device,)}
        check = partial(check_bundle, bundle, progress=show, evaluation=evaluation, release=release, key=verifying_key)
        is_alone = len(targets) == 1 and not versions and junit is None and summary is None
        results = [_check_on(run_target, bundle, check, is_alone=is_alone) for run_target in targets.values()]
        results += [check_in_runtime(bundle, version, profile, show, key=verifying_key) for version in versions]
    _report(results, as_json, junit, summary)
    code = max((EXIT_CODES[result.status] for result in results), key=WORST_LAST.index)
    if signing_key is not None:
        _sign(bundle, signing_key, passed=code == 0)
    return code


def _check_on(
    target: RunTarget, bundle: Path, check: Callable[[RunTarget], CheckResult], *, is_alone: bool
) -> CheckResult:
    """Check on one device; if there are other results, an error of the device is one of them."""
    from edgeopt.errors import ConfigError, DeviceError
    from edgeopt.pipeline.verify.findings import device_failed

    try:
        return check(target)
    except (DeviceError, ConfigError) as error:
        if is_alone:
            raise
        return device_failed(bundle, target.profile.name, target.device.uri, error)


def _open_keys(public_key: Path | None, sign: Path | None) -> tuple[PublicKey | None, PrivateKey | None]:
    """Return the keys that were named, before anything runs.

    Raises:
        InputError: see ``edgeopt.bundle.signature``.
    """
    if public_key is None and sign is None:
        return None, None
    from edgeopt.bundle.signature import open_private_key, open_public_key

    return (
        None if public_key is None else open_public_key(public_key),
        None if sign is None else open_private_key(sign),
    )


def _sign(bundle: Path, key: PrivateKey, *, passed: bool) -> None:
    """Sign a bundle that passed every check, and report it on stderr."""
    from edgeopt.bundle.signature import sign_bundle
    from edgeopt.errors import WorkspaceError

    if not passed:
        click.echo(f"{bundle} is not signed, because it does not pass every check.", err=True)
        return
    try:
        sign_bundle(bundle, key)
    except OSError as error:
        raise WorkspaceError(f"{error.filename} cannot be written: {error.strerror}.") from error
    click.echo(f"{bundle} is signed with {key.path}.", err=True)


def _open_release(against: Path | None, max_regression: float | None) -> Release | None:
    """Return the release to compare with, if there is one; its file is found before anything runs."""
    from edgeopt.errors import InputError
    from edgeopt.pipeline.verify.against import Release

    if against is None:
        if max_regression is not None:
            raise InputError("--max-regression goes with --against RELEASE.")
        return None
    release = Release(against, None if max_regression is None else max_regression / 100)
    _ = release.model
    return release


def _check_folders(*reports: Path | None) -> None:
    from edgeopt.errors import InputError

    for report in filter(None, reports):
        if not report.absolute().parent.is_dir():
            raise InputError(f"{report} cannot be written: {report.absolute().parent} is not a folder. Make it first.")


def _run_target(uri: str, profile: Profile, allow_fallback: tuple[str, ...]) -> RunTarget:
    from edgeopt.bench.run_target import RunTarget
    from edgeopt.device.open import device_kind, open_device

    device = open_device(uri)
    kind = device_kind(device.uri, profile)
    profile = profile if kind == "measured" else profile.on_stand_in
    return RunTarget(device=device, kind=kind, profile=profile, allow_fallback=allow_fallback)


def _report(results: list[CheckResult], as_json: bool, junit: Path | None, summary: Path | None) -> None:
    """Print the results, and write the forms that were asked for."""
    from edgeopt.errors import WorkspaceError
    from edgeopt.pipeline.verify.formats import to_junit, to_markdown
    from edgeopt.records.codec import to_json

    if as_json:
        documents = [to_json(result) for result in results]
        joined = b",".join(documents)
        click.echo(documents[0] if len(results) == 1 else b'{"schema":"edgeopt/checks-1","results":[' + joined + b"]}")
    else:
        for result in results:
            _print(result)
    try:
        if junit is not None:
            junit.write_text(to_junit(results), encoding="utf-8")
        if summary is not None:
            with summary.open("a", encoding="utf-8") as file:
                file.write(to_markdown(results, [_verdict(result) for result in results]))
    except OSError as error:
        raise WorkspaceError(f"{error.filename} cannot be written: {error.strerror}.") from error


def load_evaluation(
    task: str | None, data: str | None, options: DataOptions, progress: ProgressDisplay
) -> EvaluationSet | None:
    """Load the task that --score names; None without it.

    Raises:
        InputError: the task cannot be loaded, or its --data is missing or given without need.
    """
    from edgeopt.errors import InputError

    if task is None:
        if data is not None:
            raise InputError("--data goes with --score MODEL.onnx, a given file whose outputs or labels are the score.")
        return None
    if task.endswith(".onnx") and data is None:
        raise InputError(f"--score {task} needs --data DATA, the inputs to score it on.")
    progress("set-up", "loading PyTorch")
    from edgeopt.pipeline.evaluation import EvaluationSet, open_task

    return EvaluationSet(open_task(task, data, options=options))


def _print(result: CheckResult) -> None:
    """Print one line per finding, and the verdict last."""
    width = max(len(finding.name) for finding in result.findings)
    for finding in result.findings:
        click.echo(f"{finding.status:6}  {finding.kind:6}  {finding.name:{width}}  {finding.text}")
    click.echo(_verdict(result))


def _verdict(result: CheckResult) -> str:
    return f"{result.bundle} {VERDICTS[result.status].format(device=result.device)}"
