"""``edgeopt build``: the smallest file that keeps the limits on a target, with the proof."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeopt.cli.build_targets import Progress, build_targets, show_targets
from edgeopt.cli.console import ProgressDisplay, stdout_to_stderr
from edgeopt.cli.options import (
    DATA_HELP,
    channel_options,
    data_options,
    estimate_option,
    fallback_option,
    further_options,
    limit_options,
    refuse_unread_options,
    score_options,
    unseen_row_options,
    verbose_option,
)
from edgeopt.config.limits import LimitOptions
from edgeopt.records.preprocessing import DataOptions
from edgeopt.records.scoring import ScoreWish
from edgeopt.records.unseen_rows import UnseenRows
from edgeopt.records.width_rules import WidthRules

if TYPE_CHECKING:
    from edgeopt.bundle.signature import PrivateKey
    from edgeopt.config.project import Project
    from edgeopt.pipeline.search.driver import Further
    from edgeopt.records.budget import Budget
    from edgeopt.records.choice import Choice
    from edgeopt.records.profile import Profile
    from edgeopt.tasks.given.onnx_file import OnnxTask

NO_TRAINING_SUCCEEDED = 1
"""Exit code."""
NOTHING_KEEPS_THE_LIMITS = 3
"""Exit code."""


@click.command("build")
@click.argument("task", required=False)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    help="A target's name, or the path of its .toml (see `edgeopt targets list`); repeat it for several targets, "
    "whose searches share their trainings.",
)
@click.option("--data", metavar="DATA", help=f"Inputs and labels for a TASK that is an .onnx file. {DATA_HELP}")
@data_options
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
    "devices",
    metavar="URI",
    multiple=True,
    help="Device to measure on: local:, ssh://[user@]host, adb:[serial], browser: (default: the target's); several "
    "that are alike measure side by side.",
)
@score_options
@estimate_option
@limit_options
@channel_options
@unseen_row_options
@fallback_option
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME=1x3x480x640",
    help="Shape of an input with dynamic dimensions at which the limits apply; repeat it, and the worst counts.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    help="Number of parallel trainings, which share the cores (default: as many as a short trial finds useful).",
)
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Train on a Ray cluster: auto, ray://HOST:10001 or HOST:6379 (see `edgeopt guide cluster`).",
)
@click.option(
    "--ray-cores",
    type=click.IntRange(1),
    metavar="K",
    help="With --ray: cores of the cluster for each training (default: as many as a short trial here finds useful).",
)
@click.option(
    "--time-limit",
    type=click.FloatRange(0, min_open=True),
    metavar="MINUTES",
    help="End after about this time with the best file so far (as `edgeopt stop` does). The last tenth, at most five "
    "minutes, is for files of networks whose trainings it cuts off; with more time these go on.",
)
@click.option(
    "--quick",
    is_flag=True,
    help="For a first look: one short round of trainings, no low-rank factorization, shorter timings.",
)
@click.option(
    "--keep-names",
    is_flag=True,
    help="Keep readable names inside the file, for some bytes; otherwise manifest.json has them.",
)
@click.option(
    "--sign",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="KEY.pem",
    help="Sign the result with this elliptic-curve key (`edgeopt check --public-key` verifies it).",
)
@click.option(
    "--ort-format",
    is_flag=True,
    help="Also write model.ort and the operators it needs, for a reduced ONNX Runtime (see `edgeopt guide app`).",
)
@click.option("--yes", is_flag=True, help="Build even if the trained network scores like a constant answer.")
@further_options
@click.option("--quiet", is_flag=True, help="Show no progress on stderr.")
@click.option(
    "--progress",
    "progress_as",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Show progress as text, or as one JSON object per line.",
)
@verbose_option
@click.option("--json", "as_json", is_flag=True, help="Print choice.json (targets.json) on stdout, and nothing else.")
def command(
    task: str | None,
    targets: tuple[str, ...],
    out: Path,
    devices: tuple[str, ...],
    score_wish: ScoreWish,
    limits: LimitOptions,
    quiet: bool,
    progress_as: str,
    as_json: bool,
    **asked: Any,
) -> int:
    """Prune, distill, export, quantize and measure TASK, and pick the smallest file that keeps the limits.

    TASK is a ready task's name, module:name, file.py:name or model.onnx (default: the task in edgeopt.toml, else
    `fashion`).
    """
    from edgeopt.config.project import load_project
    from edgeopt.store.workspace import Workspace

    began = time.monotonic()
    _check_ray_options(asked["ray"], asked["ray_cores"], asked["further"])
    if quiet and progress_as == "json":
        raise click.UsageError("--quiet shows no progress, and --progress json asks for it: leave one of them out.")
    project = load_project()
    chosen = _choose_targets(targets, project, devices)
    if asked.pop("keep_names"):
        chosen = {name: profile.keeping_names for name, profile in chosen.items()}
    if asked.pop("ort_format"):
        chosen = {name: profile.with_ort_format for name, profile in chosen.items()}
    name = task or project.task or "fashion"
    key = _open_key(asked.pop("sign"))
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"

    def build_target(target: str, profile: Profile, folder: Path, progress: Progress) -> Choice:
        resolve = _budget_resolver(profile, project.limits_of(profile.name), limits, score_wish)
        own = project.targets.get(profile.name)
        used = devices or ((own.device,) if own is not None and own.device and not asked["estimate"] else ())
        limit = asked["time_limit"]
        left = {} if limit is None else {"time_limit": max(0.0, limit - (time.monotonic() - began) / 60)}
        return _build(
            name, target, profile, project, folder, used, score_wish, resolve, progress, key, **(asked | left)
        )

    with stdout_to_stderr(), ProgressDisplay(quiet=quiet, as_json=progress_as == "json") as progress:
        if len(chosen) > 1:
            stop_file = Workspace(asked["workspace"]).stop_file
            code = build_targets(name, chosen, out, build_target, exit_code, stop_file, progress)
        else:
            ((target, profile),) = chosen.items()
            code = exit_code(build_target(target, profile, out, progress))
    (show_targets if len(chosen) > 1 else print_choice)(out, as_json)
    return code


def _build(
    task: str,
    target: str,
    profile: Profile,
    project: Project,
    out: Path,
    devices: tuple[str, ...],
    score_wish: ScoreWish,
    resolve: Callable[[Budget | None, bool], Budget],
    progress: Progress,
    key: PrivateKey | None,
    *,
    data: str | None,
    data_options: DataOptions,
    workspace: Path,
    estimate: bool,
    width_rules: WidthRules,
    unseen_rows: UnseenRows,
    time_limit: float | None,
    **passed_on: Any,
) -> Choice:
    """Build for one target; what the command line decides for all of them comes by name."""
    # mistakes in a file's data show before PyTorch is loaded
    given = _open_given(task, data, score_wish, data_options, passed_on["shapes"], profile)
    progress("set-up", "loading PyTorch")
    from edgeopt.pipeline.build import BuildRequest, build
    from edgeopt.pipeline.device_calibration import choose_calibration

    search = choose_calibration(target, profile, devices[0] if devices else None, estimate)
    if search.refused:
        progress("set-up", search.refused)
    request = BuildRequest(
        task=task,
        data=data,
        data_options=data_options,
        score_wish=score_wish,
        width_rules=WidthRules(keep=project.keep, min_widths=project.min_widths).joined(width_rules),
        unseen_rows=UnseenRows(drop=project.drop_unseen_rows, unknown_ids=project.unknown_ids).joined(unseen_rows),
        profile=profile,
        devices=("local:",) if search.calibration else devices or (profile.device,),
        calibration=search.calibration,
        notes=(search.refused,) if search.refused else (),
        out=str(out),
        workspace=str(workspace),
        time_limit_seconds=None if time_limit is None else time_limit * 60,
        command=("edgeopt", *_without_key_folder(sys.argv[1:])),
        **passed_on,
    )
    return build(request, resolve, progress, given, key)


def _open_given(
    task: str, data: str | None, score_wish: ScoreWish, options: DataOptions, shapes: tuple[str, ...], profile: Profile
) -> OnnxTask | None:
    """Return the task of a given file, with its data read and checked, before PyTorch is loaded; None for another task.

    Raises:
        TaskError, DataError, InputError: see ``edgeopt.pipeline.given_model.open_given_task``.
    """
    if not task.endswith(".onnx"):
        return None
    from edgeopt.config.shapes import merge_shapes
    from edgeopt.pipeline.given_model import open_given_task

    if data is None:
        refuse_unread_options(options.for_images, "such options say how images become inputs. Add --data FOLDER.")
    sizes = merge_shapes(shapes, "--shape")
    given = open_given_task(Path(task), data, score_wish, options.with_sizes(sizes), profile.limits.batch_size)
    if score_wish.ignored is not None and given.target_batches() is None:
        advice = f"{data or 'a build without --data'} has no labels. Give data with labels, or leave it out."
        refuse_unread_options([f"--ignore-label {score_wish.ignored}"], advice)
    return given


def _check_ray_options(address: str | None, cores: int | None, further: Further) -> None:
    if address is not None and further == "never":
        raise click.UsageError("--ray trains on a cluster, and --no-train trains nothing: leave one of them out.")
    if address is None and cores is not None:
        raise click.UsageError(
            f"--ray-cores {cores} sets the cores of each training on a Ray cluster: it goes with --ray ADDRESS."
        )


def _without_key_folder(arguments: Sequence[str]) -> Iterator[str]:
    """Return arguments as a bundle shows them: of the key that signs, only the file's name."""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        if before == "--sign":
            yield Path(argument).name
        elif argument.startswith("--sign="):
            yield f"--sign={Path(argument.removeprefix('--sign=')).name}"
        else:
            yield argument


def _open_key(path: Path | None) -> PrivateKey | None:
    """Return the key that signs, if there is one: a mistake in it shows before the build begins.

    Raises:
        InputError: see ``edgeopt.bundle.signature.open_private_key``.
    """
    if path is None:
        return None
    from edgeopt.bundle.signature import open_private_key

    return open_private_key(path)


def exit_code(choice: Choice) -> int:
    """Return 1 if no training succeeded for a technical reason, even with a winner; 3 if nothing keeps the limits."""
    if choice.is_error:
        return NO_TRAINING_SUCCEEDED
    return 0 if choice.winner is not None else NOTHING_KEEPS_THE_LIMITS


def _choose_targets(targets: tuple[str, ...], project: Project, devices: tuple[str, ...]) -> dict[str, Profile]:
    """Return the profiles of the targets of the command line, or of ``edgeopt.toml``, by what the user calls them.

    Raises:
        ConfigError: there is none, there is one twice, there is no such target, or one device was named for several.
    """
    from edgeopt.config.profiles import find_profile, load_profile
    from edgeopt.errors import ConfigError

    names = targets or project.target_names
    if not names:
        raise ConfigError("no target: give --target NAME (see `edgeopt targets list`), or set it in edgeopt.toml.")
    found = {name: load_profile(name) for name in names}
    known = {profile.name for profile in found.values()}
    if len(known) < len(names):
        raise ConfigError(f"a target is named twice: {', '.join(names)}. Name each one once.")
    known |= {Path(name).stem for name in project.target_names if name.endswith(".toml")}
    for name in project.targets:
        if name not in known:
            find_profile(name)
    if len(names) > 1 and devices:
        raise ConfigError(
            f"--device {devices[0]} is for one target, and there are {len(names)}: set `device` under [targets.NAME] "
            "in edgeopt.toml."
        )
    return found


def _budget_resolver(
    profile: Profile, project_limits: LimitOptions | None, limits: LimitOptions, wish: ScoreWish
) -> Callable[[Budget | None, bool], Budget]:
    """Return the function from a task's own budget, and whether its score is an error, to the limits that apply."""
    from edgeopt.config.limits import resolve_budget

    return lambda budget, is_error: resolve_budget(
        profile, budget, project_limits, limits, any_unit=is_error or wish.is_error
    )


def print_choice(out: Path, as_json: bool) -> None:
    """Print the result: the tables, or ``choice.json`` as it was written."""
    from rich.console import Console

    from edgeopt.report.document import read_document
    from edgeopt.report.text import print_result

    if as_json:
        click.echo((out / "choice.json").read_text(encoding="utf-8"))
    else:
        print_result(read_document(out / "choice.json"), Console(), out=out)
