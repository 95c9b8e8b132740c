"""Compare the search with an exhaustive grid over widths and depth: the size that each finds, and what each trains.

    python benchmarks/search.py --work DIR [--task NAME ...] [--add] [--quick] --json benchmarks/results/search.json

Two tasks with the packaged part of Fashion-MNIST (``EDGEOPT_DATA`` is not read), whose networks have six branches that
can be left out and train in a minute or less: ``deep_residual`` and ``deep_depthwise`` of ``fashion_tasks.py``. Tasks,
seed, grid and limit were fixed before the first run.

The grid has 40 networks: ``WIDTH_RATIOS`` of every group's channels, each without the ``LEFT_OUT_BRANCHES`` of the
least measured loss. Only the choice differs from edgeopt's: importance, cut, fit, training, export, int8 variants and
the training for int8 of a network that int8 harms are those of a candidate (``Search.make``). A file counts if the
upper end of the paired interval of its score drop, on the selection images, is at most ``MAX_DROP``. Other limits are
waived. The search is ``edgeopt build`` with the same limits, in a workspace of its own.

The cost of a training is the samples that it saw; one that ends early because it cannot reach the limit counts so far.
The fit of a cut's layers (2,048 samples, without gradients) and the scores of channels are not counted on either side.

Figures, the worst over the tasks: ``size_against_exhaustive_ratio`` (bytes of the smallest file of the search over
those of the grid's smallest; without forms that only the search tries: factorized layers, weights with bits of their
own, trainings for few bits), ``winner_size_against_exhaustive_ratio`` (the same of the winner, in any form) and
``training_cost_ratio`` (samples of the search over the grid's). ``tasks``, and ``grid_networks`` of each.
``best_at_edge`` says for each task at which edges of the grid its best network lies: ``narrowest`` and ``shallowest``,
beyond which smaller networks may keep the limit, ``widest`` and ``deepest``, beyond which there is none.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

from benchmarks.builds import run_build
from benchmarks.fashion_tasks import let_processes_import_benchmarks, provide_weights
from benchmarks.predictor import make_request
from benchmarks.pruned_files import EpochSize, measure_epoch
from edgeopt.pipeline.artifacts.networks import group_table_of
from edgeopt.pipeline.artifacts.shared_stages import without_old_stages
from edgeopt.pipeline.build import open_build, start
from edgeopt.pipeline.search.candidate import (
    ORIGINAL,
    Candidate,
    ScoredArtifact,
    Variant,
    cut_steps,
    importance_of,
    samples_to_fit,
)
from edgeopt.pipeline.search.driver import Search
from edgeopt.pipeline.search.training_cores import in_parallel, tune_training
from edgeopt.planning.widths import uniform_widths
from edgeopt.records.budget import Budget
from edgeopt.records.codec import digest, to_json
from edgeopt.records.groups import GroupTable
from edgeopt.records.profile import Profile
from edgeopt.records.recipe import Distill, LowRank, Prune, QuantizeAware, QuantizeStep, Recipe, Sparsify, Student
from edgeopt.records.trial import Failed
from edgeopt.store.workspace import Workspace

TASKS = ("deep_residual", "deep_depthwise")
WIDTH_RATIOS = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
LEFT_OUT_BRANCHES = (0, 1, 2, 3, 4)
QUICK_WIDTH_RATIOS, QUICK_LEFT_OUT_BRANCHES = (0.5, 0.25), (0, 1)
MAX_DROP = 0.02
TEACHER_EPOCHS = 6
QUICK_TEACHER_IMAGES = 1280
TASK_FILE = Path(__file__).with_name("fashion_tasks.py")
WAIVED = ("latency-ms", "throughput", "memory-mb", "size-mb")
STOPPED = re.compile(r"trained for (\d+) of \d+ epochs")
Row = dict[str, Any]


class GridNetwork(NamedTuple):
    """A network of the grid, before it is made."""

    width_index: int
    depth_index: int
    width_ratio: float
    left_out: tuple[str, ...]
    """Names of branches."""
    widths: dict[str, int]
    candidate: Candidate


def waive_device_limits(profile: Profile) -> Budget:
    """Return a profile's limits with only the one on the score."""
    return msgspec.structs.replace(
        profile.limits, max_latency_ms=None, min_throughput_per_s=None, max_peak_memory_bytes=None,
        max_size_bytes=None, min_score=None, max_score_drop=MAX_DROP,
    )  # fmt: skip


@contextmanager
def open_search(name: str, root: Path, quick: bool) -> Iterator[Search]:
    """Open a task as a build does."""
    request = msgspec.structs.replace(make_request(f"{TASK_FILE}:{name}", root), quick=quick)
    with (
        Workspace(root).open() as workspace,
        open_build(request, workspace, lambda *_: waive_device_limits(request.profile), lambda *_: None) as build,
    ):
        yield start(build)


def plan_grid(search: Search, width_ratios: Sequence[float], left_out: Sequence[int]) -> list[GridNetwork]:
    """Return the networks of the grid, the widest and deepest first."""
    build = search.build
    groups, _ = group_table_of(build, search.runner.original, importance_of(build))
    if len(groups.branches) < max(left_out):
        raise click.ClickException(f"{build.task} has {len(groups.branches)} branches; the grid leaves out more.")
    return [
        GridNetwork(width_index, depth_index, ratio, names, widths, candidate_of(search, groups, widths))
        for width_index, ratio in enumerate(width_ratios)
        for depth_index, count in enumerate(left_out)
        for names, widths in [cut_widths(groups, ratio, count, build.profile.channel_step)]
    ]


def cut_widths(groups: GroupTable, ratio: float, left_out: int, step: int) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the branches of the least measured loss, and all widths of the uniform cut without them."""
    gone = sorted(groups.branches, key=lambda branch: branch.loss)[:left_out]
    zeros = {name: 0 for branch in gone for name in branch.groups}
    return tuple(branch.name for branch in gone), groups.widths(uniform_widths(groups, ratio, step) | zeros)


def candidate_of(search: Search, groups: GroupTable, widths: Mapping[str, int]) -> Candidate:
    """Return the candidate with these widths, cut from the trained model."""
    full = groups.widths()
    cut = {name: width for name, width in widths.items() if width < full[name]}
    prune = Prune(importance=importance_of(search.build), widths=cut, fitted_samples=samples_to_fit(groups))
    return Candidate(steps=cut_steps(search.build, prune), parent=None) if cut else ORIGINAL


def count_samples(made: Iterable[tuple[Recipe, Sequence[str]]], epoch: EpochSize) -> dict[str, int]:
    """Return the samples that each different network's training saw.

    Args:
        made: Recipes of files, with the files' notes, which say if a training ended early.
        epoch: Of the task.
    """
    seen: dict[str, int] = {}
    for recipe, notes in made:
        stopped = next((int(found[1]) for note in notes if (found := STOPPED.search(note))), None)
        epochs = [step.epochs_for(epoch.batches) for step in recipe.torch_steps if isinstance(step, Distill)]
        count = sum(epochs if stopped is None else [min(stopped, one) for one in epochs]) * epoch.samples
        key = digest((recipe.torch_steps, recipe.parent))
        if epochs:
            seen[key] = min(count, seen.get(key, count))
    return seen


def is_form_of_grid(recipe: Recipe) -> bool:
    """Tell whether networks of the grid are tried in a file's form too."""
    torch_steps = [
        step
        for step in recipe.torch_steps
        if isinstance(step, LowRank | Sparsify | Student) or (isinstance(step, QuantizeAware) and step.weight_bits)
    ]
    return not torch_steps and not any(getattr(step, "bits_of", ()) for step in recipe.graph_steps)


def describe(variant: Variant, budget: Budget) -> Row:
    """Return what is kept of a file."""
    quantized = [json.loads(to_json(step)) for step in variant.recipe.graph_steps if isinstance(step, QuantizeStep)]
    aware = any(isinstance(step, QuantizeAware) for step in variant.recipe.torch_steps)
    row: Row = {"precision": variant.recipe.precision, "quantized": quantized, "trained_for_int8": aware}
    if isinstance(variant.made, Failed):
        return row | {"failure": variant.made.reason, "size_bytes": None, "keeps": False}
    artifact, score = variant.made
    return row | {
        "size_bytes": artifact.size_bytes, "score": score.value, "score_drop": score.drop,
        "score_drop_ci95": score.drop_ci95, "keeps": variant.keeps_score(budget),
    }  # fmt: skip


def make_row(search: Search, network: GridNetwork, epoch: EpochSize) -> Row:
    """Make a network of the grid and its files, and return its row."""
    begin = time.perf_counter()
    result = search.make(network.candidate)
    files = [describe(variant, search.build.budget) for variant in result.variants]
    notes = [one.made.artifact.notes if isinstance(one.made, ScoredArtifact) else () for one in result.variants]
    recipes = [variant.recipe for variant in result.variants]
    return {
        "width_index": network.width_index,
        "depth_index": network.depth_index,
        "width_ratio": network.width_ratio,
        "left_out": network.left_out,
        "widths": network.widths,
        "parameters": None if result.network is None else result.network.parameters,
        "size_bytes": min((file["size_bytes"] for file in files if file["keeps"]), default=None),
        "samples_seen": count_samples(zip(recipes, notes, strict=True), epoch),
        "files": files,
        "seconds": time.perf_counter() - begin,
    }


def run_grid(search: Search, quick: bool, task: Row, save: Callable[[], None]) -> None:
    """Make the networks of the grid that the task's row does not have, and save it after each."""
    ratios, left_out = (QUICK_WIDTH_RATIOS, QUICK_LEFT_OUT_BRANCHES) if quick else (WIDTH_RATIOS, LEFT_OUT_BRANCHES)
    epoch, lock = measure_epoch(search.build), threading.Lock()
    task |= {"epoch_samples": epoch.samples, "epoch_batches": epoch.batches, "size": (len(ratios), len(left_out))}

    def make(network: GridNetwork) -> None:
        row = make_row(search, network, epoch)
        with lock:
            task["grid"] = sorted([*task["grid"], row], key=lambda one: (one["width_index"], one["depth_index"]))
            save()
            size = "no file keeps the limit" if row["size_bytes"] is None else f"{row['size_bytes'] / 1e3:.1f} kB"
            what = f"{network.width_ratio:.3f} of the channels without {len(network.left_out)} branches"
            click.echo(f"  {what}: {size}, {row['seconds']:.0f} s", err=True)

    with without_old_stages(search.build):
        tune_training(search.build, may_try=True)
        search.measure_original()
        known = {(row["width_index"], row["depth_index"]) for row in task["grid"]}
        missing = [one for one in plan_grid(search, ratios, left_out) if (one[0], one[1]) not in known]
        in_parallel(search.build, make, missing)


def build_task(name: str, folder: Path, quick: bool, epoch: EpochSize) -> Row:
    """Build a task, and return what is kept of its choice."""
    words = [f"{TASK_FILE}:{name}", "--target", "phone", "--yes", "--max-drop", str(MAX_DROP), "--out", "out",
             "--workspace", "workspace"]  # fmt: skip
    words += [word for limit in WAIVED for word in (f"--{limit}", "none")]
    words += ["--quick"] if quick else []
    folder.mkdir(parents=True, exist_ok=True)
    choice = run_build(words, folder).document
    kept = ("number", "recipe", "status", "size_bytes", "parameters", "score", "score_drop", "score_drop_ci95",
            "misses", "notes")  # fmt: skip
    trials = [{key: trial[key] for key in kept} for trial in choice["trials"]]
    recipes = [msgspec.convert(trial["recipe"], Recipe) for trial in trials]
    return {
        "winner": None if choice["winner"] is None else choice["winner"]["number"],
        "samples_seen": count_samples(zip(recipes, [trial["notes"] for trial in trials], strict=True), epoch),
        "trials": trials,
        "seconds": choice["seconds"],
    }


def find_edges(row: Row, size: Sequence[int]) -> list[str]:
    """Return the edges of the grid at which a network lies.

    Args:
        row: Of the network.
        size: Number of widths and of depths.
    """
    places = {
        "widest": row["width_index"] == 0,
        "narrowest": row["width_index"] == size[0] - 1,
        "deepest": row["depth_index"] == 0,
        "shallowest": row["depth_index"] == size[1] - 1,
    }
    return [name for name, is_there in places.items() if is_there]


def compare_task(task: Row) -> Row:
    """Return a task's figures; sizes are None where no file keeps the limit."""
    kept = [row for row in task["grid"] if row["size_bytes"] is not None]
    best = min(kept, key=lambda row: row["size_bytes"], default=None)
    trials = [one for one in task["build"]["trials"] if one["status"] == "measured" and not one["misses"]]
    alike = [one["size_bytes"] for one in trials if is_form_of_grid(msgspec.convert(one["recipe"], Recipe))]
    winner = next((one["size_bytes"] for one in trials if one["number"] == task["build"]["winner"]), None)
    samples = {key: count for row in task["grid"] for key, count in row["samples_seen"].items()}
    return {
        "grid_networks": len(task["grid"]),
        "grid_best_bytes": None if best is None else best["size_bytes"],
        "grid_best": None if best is None else {key: best[key] for key in ("width_ratio", "left_out")},
        "best_at_edge": None if best is None else find_edges(best, task["size"]),
        "search_best_bytes": min(alike, default=None),
        "winner_bytes": winner,
        "grid_samples": sum(samples.values()),
        "search_samples": sum(task["build"]["samples_seen"].values()),
        "grid_trainings": len(samples),
        "search_trainings": len(task["build"]["samples_seen"]),
    }


def compute_figures(tasks: Mapping[str, Row]) -> Row:
    """Return the claims over the tasks whose grid and build are complete; None where a size is missing."""
    done = {
        name: compare_task(task)
        for name, task in tasks.items()
        if "build" in task and len(task["grid"]) == task["size"][0] * task["size"][1]
    }

    def worst(ours: str, others: str) -> float | None:
        pairs = [(one[ours], one[others]) for one in done.values()]
        if not pairs or not all(mine and other for mine, other in pairs):
            return None
        return max(mine / other for mine, other in pairs)

    return {
        "tasks": len(done),
        "grid_networks": min((one["grid_networks"] for one in done.values()), default=0),
        "size_against_exhaustive_ratio": worst("search_best_bytes", "grid_best_bytes"),
        "winner_size_against_exhaustive_ratio": worst("winner_bytes", "grid_best_bytes"),
        "training_cost_ratio": worst("search_samples", "grid_samples"),
        "best_at_edge": {name: one["best_at_edge"] for name, one in done.items()},
        "by_task": done,
    }


@click.command()
@click.option("--task", "names", multiple=True, type=click.Choice(TASKS), help="Run only this task; may be repeated.")
@click.option("--quick", is_flag=True, help="Four networks, two epochs, a quick build; says nothing about the claim.")
@click.option("--add", is_flag=True, help="Keep the networks and builds that the file has, and run the others.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True,
              help="Keep weights and workspaces here: the same command goes on after an interruption.")  # fmt: skip
@click.option("--json", "out", type=click.Path(path_type=Path, dir_okay=False), required=True)
def main(names: tuple[str, ...], quick: bool, add: bool, work: Path, out: Path) -> None:
    """Make the grids, run the builds, and write figures and rows after each network."""
    os.environ.pop("EDGEOPT_DATA", None)
    let_processes_import_benchmarks()
    tasks: dict[str, Row] = json.loads(out.read_text("utf-8"))["tasks"] if add and out.exists() else {}
    command = ["python", "benchmarks/search.py", "--work", "DIR", *(["--quick"] if quick else [])]

    def save() -> None:
        result = {
            "figures": compute_figures(tasks), "max_drop": MAX_DROP, "tasks": tasks, "command": shlex.join(command),
            "environment": {"platform": platform.platform(), "python": platform.python_version()},
        }  # fmt: skip
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1), encoding="utf-8")

    for name in names or TASKS:
        click.echo(name, err=True)
        folder = work.resolve() / ("quick" if quick else "full") / name
        provide_weights(folder, name, *((1, QUICK_TEACHER_IMAGES) if quick else (TEACHER_EPOCHS, None)))
        task = tasks.setdefault(name, {"grid": []})
        with open_search(name, folder / "grid", quick) as search:
            run_grid(search, quick, task, save)
        if "build" not in task:
            epoch = EpochSize(task["epoch_samples"], task["epoch_batches"])
            task["build"] = build_task(name, folder / "build", quick, epoch)
        save()
    print(json.dumps(compute_figures(tasks), indent=1))


if __name__ == "__main__":
    main()
