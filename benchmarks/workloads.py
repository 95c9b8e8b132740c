"""Build the ready tasks, and compare the results with what other ways make of the same teachers.

    EDGEOPT_DATA=DIR python benchmarks/workloads.py [--only TASK ...] [--quick] [--add]
        --json benchmarks/results/workloads.json

The data come by ``tools/fetch_data.py``, the teachers by ``tools/train_teacher.py``. Peers (``workload_peers.py``):
``onnxruntime.quantization``, static and dynamic; torch-pruning in five sizes, each distilled as edgeopt distills and
then quantized; networks of the same family at a part of the width, distilled from initial weights and quantized. The
trainings of each peer see together as many samples as edgeopt's whole search. Of a peer's files the one that counts is
its smallest whose score on the selection set is at most ``MAX_DROP`` below the teacher's; if none is, that is said.

Scores are on held-out data, times are interleaved A/Bs with the teacher's file on this machine, memory is measured as
``edgeopt bench`` does.

Figures: ``tasks``, ``worst_size_ratio_to_teacher``, ``worst_latency_ratio_to_teacher``,
``worst_size_ratio_to_best_peer``, ``worst_latency_ratio_to_best_peer`` (the best peer is the smallest file of any peer
whose held-out score is as good), ``worst_score_drop``.
"""

from __future__ import annotations

import itertools
import json
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from torch import nn

from benchmarks.workload_peers import PeerFile, all_peers, count_samples_seen, open_teacher
from edgeopt.bench.compare import compare
from edgeopt.bench.measure import measure
from edgeopt.bench.outputs import read_batches, run_model, write_batches
from edgeopt.bench.run_target import RunTarget
from edgeopt.config.profiles import load_profile
from edgeopt.device.local import LocalDevice
from edgeopt.records.codec import to_json
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
Row = dict[str, Any]


class HeldOut:
    """A set of a task as files, on which models are scored.

    Args:
        task: The task.
        batches: Of the set.
        folder: For the inputs and outputs.
        target: Where models run.
    """

    def __init__(self, task: CheckedTask, batches: Sequence[Any], folder: Path, target: RunTarget) -> None:
        self.task = task
        self.targets = [to_numpy(targets) for _, targets in batches]
        self.inputs, self.outputs = folder / "inputs.npz", folder / "outputs.npz"
        self.target = target
        folder.mkdir()
        write_batches(
            self.inputs,
            [
                {name: value.numpy() for name, value in zip(task.input_names, inputs, strict=True)}
                for inputs, _ in batches
            ],
        )

    def score(self, model: Path) -> float:
        """Return a file's score."""
        run_model(model, self.inputs, self.outputs, self.target)
        outputs = [list(batch.values()) for batch in read_batches(self.outputs)]
        return self.task.score(
            [(self.task.nest_outputs(found), labels) for found, labels in zip(outputs, self.targets, strict=True)]
        )


def build(name: str, target: str, folder: Path, quick: bool) -> tuple[Row, float]:
    """Run the build; return its choice.json and its wall time in seconds."""
    command = [sys.executable, "-m", "edgeopt", "build", name, "--target", target, "--max-drop", str(MAX_DROP),
               "--yes", "--json", "--out", "out", "--workspace", "workspace"]  # fmt: skip
    command += ["--quick"] if quick else []
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 3):
        raise click.ClickException(f"{shlex.join(command)} ended with code {done.returncode}")
    return json.loads(done.stdout), time.perf_counter() - start


def describe(name: str, path: Path, teacher: Path, sets: dict[str, HeldOut], target: RunTarget) -> Row:
    """Return bytes, scores, times and memory of a file next to the teacher's."""
    comparison = compare(path, teacher, target)
    measured = measure(path, target, percentile=90, max_latency_ms=None, progress=lambda _: None)
    ratio = comparison_ratio(comparison)
    return {
        "name": name, "size_bytes": path.stat().st_size,
        **{f"{key}_score": one.score(path) for key, one in sets.items()},
        "latency_ratio": ratio.value, "latency_ci95": [ratio.low, ratio.high],
        "peak_memory_bytes": measured.memory.peak_bytes if measured.memory else None,
        "samples": {"comparison": json.loads(to_json(comparison)), "measurement": json.loads(to_json(measured))},
    }  # fmt: skip


def narrower_of(task: CheckedTask) -> Callable[[float], nn.Module] | None:
    """Return what makes narrower networks of a task's family, if the task can."""
    found: Callable[[float], nn.Module] | None = getattr(task.task, "make_network", None)
    return found


def run_task(name: str, target_name: str, quick: bool) -> Row:
    """Build a task and make every peer's files; return the rows."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        choice, seconds = build(name, target_name, folder, quick)
        task = load_task(name)
        target = RunTarget(device=LocalDevice(), profile=load_profile(target_name), kind="stand-in")
        test = task.test_batches()
        sets = {
            key: HeldOut(task, list(batches), folder / key, target)
            for key, batches in (("selection", task.eval_batches()), ("heldout", test))
            if batches is not None
        }
        target = replace(target, inputs=None)
        teacher_file = folder / "workspace" / choice["baseline"]["onnx"]
        teacher = open_teacher(task, teacher_file, folder)
        floor = sets["selection"].score(teacher_file) - MAX_DROP
        epoch = [len(inputs[0]) for inputs, _ in task.train_epoch(0)]
        samples = count_samples_seen(choice, sum(epoch), len(epoch))
        rows = [describe("teacher", teacher_file, teacher_file, sets, target)]
        if choice["winner"] is not None:
            winner = folder / "out" / "model.onnx"
            rows.append({**describe("edgeopt", winner, teacher_file, sets, target), "seconds": seconds})
        peers = list(all_peers(teacher, narrower_of(task), samples))
        for kind, files in itertools.groupby(peers, key=lambda one: one.name.partition(",")[0].split()[0]):
            rows.append(best_of(kind, list(files), floor, teacher_file, sets, target))
    return {
        "task": name,
        "target": target_name,
        "quick": quick,
        "samples_seen": samples,
        "rows": rows,
        "choice": choice,
    }


def best_of(
    kind: str, files: list[PeerFile], floor: float, teacher: Path, sets: dict[str, HeldOut], target: RunTarget
) -> Row:
    """Return the row of a peer's smallest file that keeps the floor on the selection set, with all that it made."""
    made: list[Row] = []
    keeping: list[PeerFile] = []
    for one in files:
        score = None if one.path is None else sets["selection"].score(one.path)
        made.append({
            "name": one.name, "reason": one.reason, "samples_seen": one.samples_seen, "selection_score": score,
            "size_bytes": one.path.stat().st_size if one.path else None,
        })  # fmt: skip
        if score is not None and score >= floor:
            keeping.append(one)
    if not keeping:
        return {"name": kind, "failed": f"none of {len(made)} files keeps the floor of {floor:.4f}", "made": made}
    best = min(keeping, key=lambda one: one.path.stat().st_size if one.path else 0)
    assert best.path is not None
    return {**describe(best.name, best.path, teacher, sets, target), "made": made}


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
        peers = [
            row for row in one["rows"]
            if row["name"] not in ("teacher", "edgeopt") and "failed" not in row and row[score] >= ours[score]
        ]  # fmt: skip
        if peers:
            best = min(peers, key=lambda row: row["size_bytes"])
            ratios["peer_size"].append(ours["size_bytes"] / best["size_bytes"])
            ratios["peer_latency"].append(ours["latency_ratio"] / best["latency_ratio"])
    worst = {key: max(values, default=None) for key, values in ratios.items()}
    return {
        "tasks": len(found), "built": len(ratios["size"]),
        "worst_size_ratio_to_teacher": worst["size"], "worst_latency_ratio_to_teacher": worst["latency"],
        "worst_size_ratio_to_best_peer": worst["peer_size"],
        "worst_latency_ratio_to_best_peer": worst["peer_latency"], "worst_score_drop": worst["drop"],
    }  # fmt: skip


@click.command()
@click.option("--only", multiple=True, type=click.Choice(sorted(TASKS)), help="Run only this task; may be repeated.")
@click.option("--quick", is_flag=True, help="Quick builds; peers see as few samples.")
@click.option("--add", is_flag=True, help="Keep the other tasks that the file has.")
@click.option("--json", "out", type=click.Path(path_type=Path), required=True)
def main(only: tuple[str, ...], quick: bool, add: bool, out: Path) -> None:
    """Run each task, and write figures and raw results after each."""
    found = json.loads(out.read_text())["tasks"] if add and out.exists() else []
    for name in only or TASKS:
        found = [*(one for one in found if one["task"] != name), run_task(name, TASKS[name], quick)]
        result = {
            "figures": compute_figures(found), "tasks": found, "command": "python " + shlex.join(sys.argv),
            "environment": {"platform": platform.platform(), "python": platform.python_version()},
        }  # fmt: skip
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1))
        click.echo(json.dumps([{k: v for k, v in row.items() if k not in ("samples", "made")}
                               for row in found[-1]["rows"]], indent=1), err=True)  # fmt: skip
    print(json.dumps(compute_figures(found), indent=1))


if __name__ == "__main__":
    main()
