"""Build the ready tasks, and compare the results with what other ways make of the same teachers.

    EDGEOPT_DATA=DIR python benchmarks/workloads.py [--only TASK ...] [--quick] [--add]
        --json benchmarks/results/workloads.json
    EDGEOPT_DATA=DIR python benchmarks/workloads.py --only TASK --peer onnxsim --keep-builds [--keep-files] --work DIR
        --json benchmarks/results/workloads.json

The data come by ``tools/fetch_data.py``, the teachers by ``tools/train_teacher.py``. Peers (``workload_peers.py``):
``onnxruntime.quantization``, static and dynamic; onnxsim's int8 and int4; torch-pruning in five sizes, each distilled
as edgeopt distills and then quantized; networks of the same family at a part of the width, distilled from initial
weights and quantized. The trainings of each peer see together as many samples as edgeopt's whole search. A peer is
judged as edgeopt judges: of its files those count whose score on the selection set is at most ``MAX_DROP`` below the
teacher's at the upper end of the paired interval, and if none is, that is said. All that count are scored on held-out
data. The smallest is shown, or one that is near in size and quicker by more than it is larger, as edgeopt picks too.
Only size and score are limited, since edgeopt must not be held to a latency that peers are not. A full build has
``BUILD_MINUTES``.

Scores are on held-out data, times are interleaved A/Bs with the teacher's file on this machine, memory is measured as
``edgeopt bench`` does. With ``--work DIR`` a build that was stopped goes on from there.

Figures: ``tasks``, ``worst_size_ratio_to_teacher``, ``worst_latency_ratio_to_teacher``,
``worst_size_ratio_to_best_peer``, ``worst_latency_ratio_to_best_peer`` (the best peer is the smallest file of any peer
that loses no more than ``MAX_DROP`` on held-out data, or than edgeopt does if that is more), ``tasks_with_peers`` (that
have such a file) and ``worst_score_drop``.
"""

from __future__ import annotations

import json
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import click
from torch import nn

from benchmarks.builds import FinishedBuild, run_build
from benchmarks.workload_peers import (
    PEERS,
    PeerFile,
    Teacher,
    all_peers,
    count_samples_seen,
    open_teacher,
    peer_file_name,
)
from edgeopt.bench.compare import compare
from edgeopt.bench.measure import measure
from edgeopt.bench.outputs import read_batches, run_model, write_batches
from edgeopt.bench.run_target import RunTarget
from edgeopt.config.profiles import load_profile
from edgeopt.device.local import LocalDevice
from edgeopt.errors import EdgeoptError
from edgeopt.pipeline.verify.device_score import ScoredOutputs
from edgeopt.records.codec import to_json
from edgeopt.scoring.drop import drop_interval
from edgeopt.select.preference import NEAR_SIZE_RATIO
from edgeopt.statistics import comparison_ratio
from edgeopt.task import CheckedTask
from edgeopt.task.load import load_task
from edgeopt.task.values import to_numpy

TASKS = {
    "camvid_detection": "car",
    "camvid_segmentation": "car",
    "docstring_topics": "server",
    "fashion": "server",
    "spoken_digits": "phone",
}
"""From ready tasks to their targets."""
MAX_DROP = 0.01
BUILD_MINUTES = 20
"""What a full build has, with its measurements; a network still in training then counts as far as it came."""
Row = dict[str, Any]


class HeldOut:
    """A set of a task as files, on which models are scored.

    Args:
        task: The task.
        batches: Of the set.
        folder: For the inputs and outputs.
        target: Where models run.
        teacher: The file that others are compared with.
    """

    def __init__(
        self, task: CheckedTask, batches: Sequence[Any], folder: Path, target: RunTarget, teacher: Path
    ) -> None:
        self.task = task
        self.teacher = teacher
        self.targets = [to_numpy(targets) for _, targets in batches]
        self.counts = [task.axes.count(inputs) for inputs, _ in batches]
        self.inputs, self.outputs = folder / "inputs.npz", folder / "outputs.npz"
        self.target = target
        folder.mkdir(exist_ok=True)
        write_batches(
            self.inputs,
            [
                {name: value.numpy() for name, value in zip(task.input_names, inputs, strict=True)}
                for inputs, _ in batches
            ],
        )

    def pairs(self, model: Path) -> list[tuple[Any, Any]]:
        """Return a file's outputs with the targets."""
        run_model(model, self.inputs, self.outputs, self.target)
        outputs = [list(batch.values()) for batch in read_batches(self.outputs)]
        return [(self.task.nest_outputs(found), labels) for found, labels in zip(outputs, self.targets, strict=True)]

    @cached_property
    def teacher_pairs(self) -> list[tuple[Any, Any]]:
        """The teacher's outputs with the targets."""
        return self.pairs(self.teacher)

    def score(self, model: Path) -> float:
        """Return a file's score."""
        return self.task.score(self.teacher_pairs if model == self.teacher else self.pairs(model))

    def largest_drop(self, model: Path) -> float:
        """Return the upper end of the 95 % paired interval of the drop from the teacher's file."""
        before, after = (self.scored(pairs) for pairs in (self.teacher_pairs, self.pairs(model)))
        found = drop_interval(before, after, self.task, lambda: (before.pairs, after.pairs, self.counts))
        assert found is not None, "samples of every ready task can be drawn"
        return found.high

    def scored(self, pairs: list[tuple[Any, Any]]) -> ScoredOutputs:
        """Return outputs and targets with their score, and what its interval is computed from."""
        task = self.task
        return ScoredOutputs(pairs, task.score(pairs), task.sample_scores(pairs), task.sample_statistics(pairs))


def build(name: str, target: str, folder: Path, quick: bool) -> FinishedBuild:
    """Build a task without limits on time and memory."""
    words = [name, "--target", target, "--max-drop", str(MAX_DROP), "--latency-ms", "none", "--throughput", "none",
             "--memory-mb", "none", "--yes", "--out", "out", "--workspace", "workspace"]  # fmt: skip
    return run_build([*words, *(["--quick"] if quick else ["--time-limit", str(BUILD_MINUTES)])], folder)


def describe(name: str, path: Path, teacher: Path | None, sets: dict[str, HeldOut], target: RunTarget) -> Row:
    """Return bytes, scores, times and memory of a file next to the teacher's; None for the teacher itself."""
    percentile = target.profile.limits.latency_percentile
    measured = measure(path, target, percentile=percentile, max_latency_ms=None, progress=lambda _: None)
    row: Row = {
        "name": name, "size_bytes": path.stat().st_size,
        **{f"{key}_score": one.score(path) for key, one in sets.items()},
        "latency_ratio": 1.0,
        "peak_memory_bytes": measured.memory.peak_bytes if measured.memory else None,
        "samples": {"measurement": json.loads(to_json(measured))},
    }  # fmt: skip
    if teacher is None:
        return row
    comparison = compare(path, teacher, target)
    ratio = comparison_ratio(comparison)
    row["samples"]["comparison"] = json.loads(to_json(comparison))
    return row | {"latency_ratio": ratio.value, "latency_ci95": [ratio.low, ratio.high]}


def narrower_of(task: CheckedTask) -> Callable[[float], nn.Module] | None:
    """Return what makes narrower networks of a task's family, if the task can."""
    found: Callable[[float], nn.Module] | None = getattr(task.task, "make_network", None)
    return found


class Workload(NamedTuple):
    """A task that was built, and what files are scored and measured with."""

    task: CheckedTask
    teacher: Teacher
    sets: dict[str, HeldOut]
    target: RunTarget

    def describe(self, name: str, path: Path) -> Row:
        """Return the row of a file."""
        teacher = None if path == self.teacher.file else self.teacher.file
        return describe(name, path, teacher, self.sets, self.target)


def open_workload(name: str, target_name: str, choice: Row, folder: Path) -> Workload:
    """Open a task whose build is in ``folder``; ``choice`` is its choice.json."""
    task = load_task(name)
    profile = load_profile(target_name).on_stand_in
    target = RunTarget(device=LocalDevice(), profile=profile, kind="stand-in")
    test, teacher_file = task.test_batches(), folder / "workspace" / choice["baseline"]["onnx"]
    sets = {
        key: HeldOut(task, list(batches), folder / key, target, teacher_file)
        for key, batches in (("selection", task.eval_batches()), ("heldout", test))
        if batches is not None
    }
    count, timed = profile.limits.batch_size, folder / "timed.npz"
    write_batches(
        timed,
        [{key: to_numpy(value[:count]) for key, value in zip(task.input_names, task.example_inputs, strict=True)}],
    )
    target = replace(target, batch_size=count, inputs=timed)
    return Workload(task, open_teacher(task, teacher_file, folder), sets, target)


def run_task(
    name: str,
    quick: bool,
    folder: Path,
    peers: Sequence[str],
    kept: Row | None,
    save: Callable[[Row], None],
    keep_files: bool = False,
) -> None:
    """Build a task and make peers' files; ``save`` gets the rows so far after each peer.

    Args:
        name: Of the task.
        quick: Whether the build is.
        folder: Of the build and the peers' files.
        peers: Whose rows are made.
        kept: The row of a build in ``folder`` that is taken as it is, with the rows of other peers.
        save: Keeps a row.
        keep_files: Whether the peers' files in ``folder`` are taken, those of ``kept``; nothing is trained then.
    """
    row: Row = kept or {"task": name, "target": TASKS[name], "quick": quick}
    seconds = 0.0
    if kept is None:
        row["choice"], seconds = build(name, TASKS[name], folder, quick)
    work = open_workload(name, TASKS[name], row["choice"], folder)
    if kept is None:
        epoch = [len(inputs[0]) for inputs, _ in work.task.train_epoch(0)]
        row["samples_seen"] = count_samples_seen(row["choice"], sum(epoch), len(epoch))
        row["rows"] = [work.describe("teacher", work.teacher.file)]
        if row["choice"]["winner"] is not None:
            row["rows"].append({**work.describe("edgeopt", folder / "out" / "model.onnx"), "seconds": seconds})
    before = {peer: one for one in row["rows"] for peer in peers if one["name"].startswith(peer)}
    row["rows"] = [one for one in row["rows"] if one not in before.values()]
    save(row)
    for peer, files in all_peers(work.teacher, narrower_of(work.task), row["samples_seen"]):
        if peer in peers and not (keep_files and peer not in before):
            found = kept_files(before[peer], folder) if keep_files else list(files)
            row["rows"].append(best_of(peer, found, work))
            save(row)


def kept_files(row: Row, folder: Path) -> list[PeerFile]:
    """Return the files of a peer's row, which an earlier run left in ``folder``."""
    paths = {one["name"]: folder / f"{peer_file_name(one['name'])}.onnx" for one in row["made"]}
    return [
        PeerFile(one["name"], None if one["reason"] else paths[one["name"]], one["reason"], one.get("samples_seen", 0))
        for one in row["made"]
    ]


def best_of(peer: str, files: list[PeerFile], work: Workload) -> Row:
    """Return the row of a peer's best file that keeps the limit, also on held-out data if one does, and all files.

    A file that cannot be run has the reason.
    """
    made: list[Row] = []
    sets = work.sets
    keeping: list[tuple[bool, int, PeerFile]] = []
    for one in files:
        row: Row = {"name": one.name, "reason": one.reason, "samples_seen": one.samples_seen}
        made.append(row)
        if one.path is None:
            continue
        row["size_bytes"] = one.path.stat().st_size
        try:
            row["largest_drop"] = sets["selection"].largest_drop(one.path)
            row |= {f"{key}_score": part.score(one.path) for key, part in sets.items()}
        except EdgeoptError as error:
            row["reason"] = str(error)[:300]
            continue
        if row["largest_drop"] <= MAX_DROP:
            last = "heldout" if "heldout" in sets else "selection"
            loses = sets[last].score(work.teacher.file) - row[f"{last}_score"] > MAX_DROP
            keeping.append((loses, row["size_bytes"], one))
    if not keeping:
        return {"name": peer, "failed": f"none of {len(made)} files keeps the limit of {MAX_DROP}", "made": made}
    least = min(keeping, key=lambda entry: entry[:2])
    near = [one for loses, size, one in keeping if loses == least[0] and size <= NEAR_SIZE_RATIO * least[1]]
    rows = [work.describe(one.name, one.path) for one in near if one.path is not None]
    return {**min(rows, key=lambda row: row["size_bytes"] * row["latency_ratio"]), "made": made}


def compute_figures(found: Sequence[Row]) -> Row:
    """Return the claims over all tasks; None where no task has such a row."""
    ratios: dict[str, list[float]] = {key: [] for key in ("size", "latency", "peer_size", "peer_latency", "drop")}
    for one in found:
        rows = {row["name"]: row for row in one["rows"]}
        teacher, ours = rows["teacher"], rows.get("edgeopt")
        if ours is None:
            continue
        score = "heldout_score" if "heldout_score" in ours else "selection_score"
        ratios["size"].append(ours["size_bytes"] / teacher["size_bytes"])
        ratios["latency"].append(ours["latency_ratio"])
        ratios["drop"].append(teacher[score] - ours[score])
        allowed = max(MAX_DROP, teacher[score] - ours[score])
        peers = [
            row for row in one["rows"]
            if row["name"] not in ("teacher", "edgeopt") and "failed" not in row
            and teacher[score] - row[score] <= allowed
        ]  # fmt: skip
        if peers:
            best = min(peers, key=lambda row: row["size_bytes"])
            ratios["peer_size"].append(ours["size_bytes"] / best["size_bytes"])
            ratios["peer_latency"].append(ours["latency_ratio"] / best["latency_ratio"])
    worst = {key: max(values, default=None) for key, values in ratios.items()}
    return {
        "tasks": len(found), "built": len(ratios["size"]), "tasks_with_peers": len(ratios["peer_size"]),
        "worst_size_ratio_to_teacher": worst["size"], "worst_latency_ratio_to_teacher": worst["latency"],
        "worst_size_ratio_to_best_peer": worst["peer_size"],
        "worst_latency_ratio_to_best_peer": worst["peer_latency"], "worst_score_drop": worst["drop"],
    }  # fmt: skip


@click.command()
@click.option("--only", multiple=True, type=click.Choice(sorted(TASKS)), help="Run only this task; may be repeated.")
@click.option("--peer", "peers", multiple=True, type=click.Choice(PEERS), help="Only this peer; may be repeated.")
@click.option("--keep-builds", is_flag=True, help="Measure only peers, of the builds that --json and --work have.")
@click.option("--keep-files", is_flag=True, help="Measure the peers' files that --json and --work have.")
@click.option("--quick", is_flag=True, help="Quick builds; peers see as few samples.")
@click.option("--add", is_flag=True, help="Keep the other tasks that the file has.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), help="Keep builds and peers' files here.")
@click.option("--json", "out", type=click.Path(path_type=Path), required=True)
def main(
    only: tuple[str, ...],
    peers: tuple[str, ...],
    keep_builds: bool,
    keep_files: bool,
    quick: bool,
    add: bool,
    work: Path | None,
    out: Path,
) -> None:
    """Run each task, and write figures and raw results after each peer."""
    keep_builds = keep_builds or keep_files
    add = add or keep_builds
    found = {one["task"]: one for one in json.loads(out.read_text())["tasks"]} if add and out.exists() else {}

    def save(row: Row) -> None:
        found[row["task"]] = row
        tasks = list(found.values())
        result = {
            "figures": compute_figures(tasks), "tasks": tasks, "command": "python " + shlex.join(sys.argv),
            "environment": {"platform": platform.platform(), "python": platform.python_version()},
        }  # fmt: skip
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1))
        shown = {key: value for key, value in row["rows"][-1].items() if key not in ("samples", "made")}
        click.echo(json.dumps(shown), err=True)

    for name in only or TASKS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) if work is None else work.resolve() / name
            folder.mkdir(parents=True, exist_ok=True)
            if keep_builds and not (name in found and (folder / "workspace").is_dir()):
                raise click.UsageError(f"{out} and {folder} have no build of {name}; leave out --keep-builds.")
            run_task(name, quick, folder, peers or PEERS, found[name] if keep_builds else None, save, keep_files)
    print(json.dumps(compute_figures(list(found.values())), indent=1))


if __name__ == "__main__":
    main()
