"""Compare widths and depth together with widths only: latency and bytes at equal held-out score.

    EDGEOPT_DATA=DIR python benchmarks/depth.py --work DIR [--part PART] [--seeds N] [--add]
        --json benchmarks/results/depth.json

Three networks: the default task's residual one, a depthwise one (trained briefly; its weights stay in ``--work``) and
the segmentation network of street scenes (its data by ``tools/fetch_data.py``, its teacher by
``tools/train_teacher.py``). Uniform cuts to ``UNIFORM_RATIOS`` of the channels set the budgets: their parameters and
their predicted latency in int8. Within each budget edgeopt's allocation chooses twice, once with whole branches and
once with widths only (a least width of 1 protects every branch). All networks are cut from the trained model, fitted,
distilled with the same batches and exported to int8 in the same way; seeds change the order of the training samples.

Files are scored on the test set. When nothing trains any more, one file of each choice is timed against the baseline in
an interleaved A/B; widths are the same for all seeds, so is the time. ``equal_score.py`` compares the curves of score
against latency, and of score against bytes, for each seed.

Figures: ``latency_ratio_to_width_only_at_equal_score`` and ``bytes_ratio_to_width_only_at_equal_score`` (below 1 is
better with depth; of the network with the largest), for each network also with the ends of the 95 % interval over its
seeds, and ``seeds``. ``depth_zoo.py`` adds ``zoo_residual``, ``zoo_offering_branches`` and the names of the others.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import click

from benchmarks.depth_zoo import compute_zoo_figures, look_at
from benchmarks.equal_score import CostPoint, over_seeds, ratio_at_equal_score
from benchmarks.fashion_tasks import let_processes_import_benchmarks, provide_weights
from benchmarks.pruned_files import measure_epoch, open_task
from benchmarks.zoo.every import EVERY
from edgeopt.errors import EdgeoptError
from edgeopt.latency.predictor import Predictor
from edgeopt.pipeline.artifacts.latency_table import LatencyLimit, latency_table
from edgeopt.pipeline.artifacts.networks import export_network, group_table_of
from edgeopt.pipeline.artifacts.onnx_files import graph_steps, make_artifact
from edgeopt.pipeline.artifacts.shared_stages import without_old_stages
from edgeopt.pipeline.artifacts.trained_networks import train_network
from edgeopt.pipeline.build import start
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.search.candidate import Candidate, SizeTarget, importance_of, pruned
from edgeopt.pipeline.search.training_cores import tune_training
from edgeopt.pipeline.search.trial_runner import TrialRunner
from edgeopt.planning.widths import uniform_widths
from edgeopt.records.codec import digest, to_json
from edgeopt.records.groups import GroupTable
from edgeopt.records.latency import NoLatencyTable
from edgeopt.records.recipe import Distill, Prune
from edgeopt.records.width_rules import WidthRules
from edgeopt.statistics import comparison_ratio

FOLDER = Path(__file__).parent
DEPTHWISE_EPOCHS = 2
QUICK_TEACHER_IMAGES = 1280
UNIFORM_RATIOS = (0.75, 0.55, 0.4, 0.3)
"""Channels that the uniform cuts keep whose parameters and latency are the budgets."""
QUICK_UNIFORM_RATIOS = (0.6, 0.4)
METHODS = ("with depth", "widths only")
COSTS = {"latency": "latency_ratio", "bytes": "size_bytes"}
"""From the word in a figure's name to the key in a row of a network."""
Row = dict[str, Any]


class Family(NamedTuple):
    """A network of the comparison."""

    task: str
    seeds: int


FAMILIES = {
    "residual": Family("fashion", 5),
    "depthwise": Family(f"{FOLDER / 'fashion_tasks.py'}:depthwise", 5),
    "segmentation": Family("camvid_segmentation", 1),
}


class Choice(NamedTuple):
    """What one method chose within one budget."""

    method: str
    uniform_ratio: float
    """Of the uniform cut that sets the budget."""
    candidate: Candidate
    widths: dict[str, int]
    predicted_ratio: float

    @property
    def key(self) -> str:
        """Names the network: both methods may choose the same one."""
        return digest(self.candidate.steps)


def without_depth(groups: GroupTable) -> WidthRules:
    """Return rules that protect every branch, and ask no more of widths than 1."""
    return WidthRules(min_widths={branch.tensors[0]: 1 for branch in groups.branches})


def choose(build: Build, runner: TrialRunner, ratios: Sequence[float]) -> list[Choice]:
    """Return what both methods choose within the budgets of these uniform cuts."""
    original = runner.original
    groups, _ = group_table_of(build, original, importance_of(build))
    if not groups.branches:
        raise click.ClickException(f"{build.task} has no branch that can be left out.")
    table = latency_table(build, groups, runner.exported, "int8")
    if isinstance(table, NoLatencyTable):
        raise click.ClickException(f"{build.task} has no latency table: {table.reason}")
    predictor, found = Predictor(table), list[Choice]()
    builds = (build, dataclasses.replace(build, width_rules=without_depth(groups)))
    for ratio in ratios:
        uniform = groups.widths(uniform_widths(groups, ratio, build.profile.channel_step))
        size = SizeTarget((groups.parameters(uniform) + 0.5) / original.parameters, original)
        limit = LatencyLimit(table, predictor.ratio(uniform))
        for method, own in zip(METHODS, builds, strict=True):
            candidate = pruned(own, size, original, limit)
            cut = {name: n for step in candidate.steps if isinstance(step, Prune) for name, n in step.widths.items()}
            widths = groups.widths(cut)
            found.append(Choice(method, ratio, candidate, widths, predictor.ratio(widths)))
    return found


class FamilyRun:
    """The trainings and timings of one network.

    Args:
        build: Of its task.
        ratios: Uniform cuts that set the budgets.
        save: Called with the rows so far after each training; latencies are missing until all have ended.
    """

    def __init__(self, build: Build, ratios: Sequence[float], save: Callable[[list[Row]], None]) -> None:
        self.build = build
        self.runner = start(build).runner
        self.save = save
        self.lock = threading.Lock()
        self.choices = choose(build, self.runner, ratios)
        self.groups, self.table = group_table_of(build, self.runner.original, importance_of(build))
        self.made: dict[str, list[Row]] = {choice.key: [] for choice in self.choices}
        test = build.data.test_set()
        assert test is not None, "the tasks of this benchmark have test samples"
        self.test = test
        self.epoch = measure_epoch(build)

    def run(self, seeds: int) -> list[Row]:
        """Train every choice with every seed, then time one file of each; return the rows."""
        build, unique = self.build, {choice.key: choice for choice in self.choices}
        with without_old_stages(build):
            tune_training(build, may_try=True)
            build.torch_pool.share_cores(build.torch_pool.count)
            with ThreadPoolExecutor(build.torch_pool.count) as pool:
                jobs = [(choice, seed) for seed in range(seeds) for choice in unique.values()]
                list(pool.map(lambda job: self.make(*job), jobs))
        assert build.torch_pool.is_idle, "nothing is timed while something trains"
        return [self.describe(choice) | self.time(choice) for choice in self.choices]

    def make(self, choice: Choice, seed: int) -> None:
        """Make a choice's network and file with a seed, and save the rows."""
        row = self.make_network(choice.candidate, seed)
        with self.lock:
            self.made[choice.key] = sorted([*self.made[choice.key], row], key=lambda one: one["seed"])
            self.save([self.describe(one) for one in self.choices])
        what = f"{choice.method}, at the size of uniform {choice.uniform_ratio}, seed {seed}"
        click.echo(f"  {what}: {row.get('score', row.get('failure'))}", err=True)

    def make_network(self, candidate: Candidate, seed: int) -> Row:
        """Train a candidate with a seed, and score its int8 file on the test set."""
        build, original, begin = self.build, self.runner.original, time.perf_counter()
        seeded = dataclasses.replace(build, seed=seed)
        try:
            network = train_network(
                seeded, original, candidate.steps, lambda: self.table, original.parameters, lambda _: None
            )
            recipe = candidate.recipe(graph_steps("int8", build.profile), seed)
            artifact = make_artifact(seeded, network, export_network(seeded, network), recipe)
            score = self.runner.evaluator.compare_scores(artifact.sha256, *self.test)
        except EdgeoptError as error:
            return {"seed": seed, "sha256": None, "failure": str(error)[:300]}
        return {
            "seed": seed, "sha256": artifact.sha256, "size_bytes": artifact.size_bytes, "score": score.value,
            "score_drop": score.drop, "score_drop_ci95": score.drop_ci95, "parameters": network.parameters,
            "training_seconds": network.seconds, "seconds": time.perf_counter() - begin,
        }  # fmt: skip

    def describe(self, choice: Choice) -> Row:
        """Return a choice's row, without its time."""
        trainings = [step for step in choice.candidate.steps if isinstance(step, Distill)]
        return {
            "method": choice.method,
            "uniform_ratio": choice.uniform_ratio,
            "widths": choice.widths,
            "left_out": [branch.name for branch in self.groups.left_out(choice.widths)],
            "notes": choice.candidate.notes,
            "predicted_ratio": choice.predicted_ratio,
            "samples_seen": sum(step.epochs_for(self.epoch.batches) for step in trainings) * self.epoch.samples,
            "networks": self.made[choice.key],
        }

    def time(self, choice: Choice) -> Row:
        """Return the latency of a choice's file over the baseline's, with the samples; empty if it has no file."""
        file = next((one["sha256"] for one in self.made[choice.key] if one["sha256"]), None)
        if file is None:
            return {}
        comparison = self.runner.evaluator.comparison(file)
        found = comparison_ratio(comparison)
        return {
            "latency_ratio": found.value,
            "latency_ratio_interval": [found.low, found.high],
            "sample": json.loads(to_json(comparison)),
        }


def points_of(rows: Sequence[Row], method: str, seed: int, cost: str) -> list[CostPoint]:
    """Return the networks of a method and a seed; none until they are timed.

    Args:
        rows: Of a family.
        method: One of ``METHODS``.
        seed: Of the trainings.
        cost: Key of the cost, in the row of a network or of a choice.
    """
    found = [(row, one) for row in rows if row["method"] == method for one in row["networks"] if one["seed"] == seed]
    costs = [(one.get(cost, row.get(cost)), one.get("score")) for row, one in found]
    return [CostPoint(value, score) for value, score in costs if value is not None and score is not None]


def compute_figures(families: Mapping[str, Sequence[Row]], zoo: Sequence[Row]) -> Row:
    """Return the claims, and each network's ratios with the ends of their intervals."""
    figures: Row = {}
    for word, cost in COSTS.items():
        ratios = []
        for name, rows in families.items():
            seeds = sorted({one["seed"] for row in rows for one in row["networks"]})
            found = over_seeds(
                [ratio_at_equal_score(*(points_of(rows, method, seed, cost) for method in METHODS)) for seed in seeds]
            )
            figures[f"{name}_{word}_ratio"] = found
            ratios.append(None if found is None else found.value)
        known = [ratio for ratio in ratios if ratio is not None]
        figures[f"{word}_ratio_to_width_only_at_equal_score"] = (
            max(known) if known and len(known) == len(ratios) else None
        )
    figures["networks"] = len(families)
    figures["seeds"] = {name: min((len(row["networks"]) for row in rows), default=0) for name, rows in families.items()}
    return figures | compute_zoo_figures(zoo)


def run_zoo(rows: list[Row], names: Sequence[str], save: Callable[[], None]) -> None:
    """Add the rows of the architectures that are missing."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    known = {row["name"] for row in rows}
    for name in names:
        if name not in known:
            rows.append(look_at(name, EVERY[name]))
            save()
            gc.collect()


@click.command()
@click.option("--quick", is_flag=True, help="Two sizes, one seed, one epoch; four architectures of the zoo.")
@click.option("--part", type=click.Choice(["all", *FAMILIES, "zoo"]), default="all", show_default=True)
@click.option("--seeds", type=click.IntRange(1), help="Of each network (default: 5; of the segmentation network 1).")
@click.option("--epochs", type=click.IntRange(1), help="Of each training (default: the task's).")
@click.option("--workers", type=click.IntRange(1), help="Parallel trainings (default: one per core).")
@click.option("--add", is_flag=True, help="Keep the other networks and the architectures that the file has.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True,
              help="Keep weights and workspaces here: the same command goes on after an interruption.")  # fmt: skip
@click.option("--json", "out", type=click.Path(path_type=Path, dir_okay=False), required=True)
def main(
    quick: bool, part: str, seeds: int | None, epochs: int | None, workers: int | None, add: bool, work: Path, out: Path
) -> None:
    """Train, time and score; look at the zoo; write figures and rows after each network."""
    let_processes_import_benchmarks()
    before: Row = json.loads(out.read_text("utf-8")) if add and out.exists() else {}
    families: dict[str, list[Row]] = before.get("rows", {})
    zoo: list[Row] = before.get("zoo", [])
    environment: Row = before.get("environment", {})

    def save() -> None:
        document = {
            "figures": compute_figures(families, zoo), "rows": families, "zoo": zoo, "environment": environment,
            "command": shlex.join(["python", "benchmarks/depth.py", "--work", "DIR", *(["--quick"] if quick else [])]),
        }  # fmt: skip
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document) + "\n", encoding="utf-8")

    folder = work.resolve() / ("quick" if quick else "full")
    for name, family in FAMILIES.items():
        if part not in ("all", name):
            continue
        click.echo(name, err=True)
        if name == "depthwise":
            provide_weights(folder, name, *((1, QUICK_TEACHER_IMAGES) if quick else (DEPTHWISE_EPOCHS, None)))

        def keep(rows: list[Row], name: str = name) -> None:
            families[name] = rows
            save()

        with open_task(family.task, folder / name, workers, epochs or (1 if quick else None)) as build:
            environment = json.loads(to_json(build.environment))
            ratios = QUICK_UNIFORM_RATIOS if quick else UNIFORM_RATIOS
            keep(FamilyRun(build, ratios, keep).run(seeds or (1 if quick else family.seeds)))
    if part in ("all", "zoo"):
        run_zoo(zoo, list(EVERY)[:4] if quick else list(EVERY), save)
    save()
    print(json.dumps(compute_figures(families, zoo), indent=1))


if __name__ == "__main__":
    main()
