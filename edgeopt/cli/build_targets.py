"""``edgeopt build`` for several targets: one search after the other, in a workspace that they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeopt.records.choice import Choice
    from edgeopt.records.profile import Profile

Progress = Callable[[str, str], None]
"""Called with a stage and a detail."""
BuildTarget = Callable[[str, "Profile", Path, Progress], "Choice"]
"""From a target, its profile, the folder of its bundle, and the progress display, to its result."""


def build_targets(
    task: str,
    targets: Mapping[str, Profile],
    out: Path,
    build_target: BuildTarget,
    exit_code: Callable[[Choice], int],
    stop_file: Path,
    progress: Progress,
) -> int:
    """Build for each target into a folder of its name, and write one report about all of them.

    Those with the largest step of channels come first, because their networks suit the others too.

    A target whose device cannot be reached, or that cannot run the baseline, does not keep the others from being built.

    Args:
        task: As the user named it.
        targets: Name to profile.
        out: Folder for the bundles.
        build_target: Builds for one.
        exit_code: Of one result.
        stop_file: Exists if ``edgeopt stop`` came, which ends the builds for all targets.
        progress: The display.

    Returns:
        The exit code: a failure first, then a target for which nothing keeps the limits.

    Raises:
        InputError: the task or a limit is wrong, or a folder cannot be written.
    """
    from edgeopt.bundle.write import check_out
    from edgeopt.errors import EdgeoptError, InputError, StepError, StoppedError
    from edgeopt.report.targets import TargetResult, TargetsDocument, write_targets

    _check_parent(out)
    for profile in targets.values():
        check_out(out / profile.name)
    results: dict[str, TargetResult] = {}
    codes: list[int] = []
    for target, profile in sorted(targets.items(), key=lambda one: -one[1].channel_step):

        def show(stage: str, detail: str = "", name: str = profile.name) -> None:
            progress(stage, f"{name}: {detail}" if detail else name)

        error = None
        try:
            if results and stop_file.exists():
                raise StepError("stop", "the build was stopped before this target; run the same command to go on.")
            codes.append(exit_code(build_target(target, profile, out / profile.name, show)))
        except EdgeoptError as failure:
            if isinstance(failure, InputError | StoppedError):
                raise
            error = str(failure)
            codes.append(1)
            show("failed", error)
        results[target] = TargetResult(target=profile.name, folder=profile.name, error=error)
    write_targets(out, TargetsDocument(task=task, results=tuple(results[target] for target in targets)))
    return 1 if 1 in codes else max(codes)


def _check_parent(out: Path) -> None:
    """Refuse a folder that is the bundle of one target: bundles of several would be lost with it.

    Raises:
        WorkspaceError: names the folder.
    """
    from edgeopt.bundle.manifest import MANIFEST_NAME
    from edgeopt.errors import WorkspaceError

    if (out / MANIFEST_NAME).is_file():
        raise WorkspaceError(
            f"--out {out} is the bundle of a build for one target; one for several makes a folder for each inside. "
            "Name another folder, or remove this one."
        )


def show_targets(out: Path, as_json: bool) -> None:
    """Print the result of several targets: a table, or ``targets.json`` as it was written."""
    import click
    from rich.console import Console

    from edgeopt.report.targets import TARGETS_FILE, print_targets, read_documents, read_targets

    if as_json:
        click.echo((out / TARGETS_FILE).read_text(encoding="utf-8"))
        return
    document = read_targets(out)
    print_targets(document, read_documents(out, document), Console(), out)
