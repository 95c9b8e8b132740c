"""Compare pruning schedules at equal epochs: one cut, two cuts (importance is scored again), a cut after group lasso.

    python benchmarks/schedules.py [--epochs 4] --json benchmarks/results/schedules.json

Each schedule prunes the default network to ``--ratio`` of its parameters, with the same training images, teacher and
total number of epochs. Two cuts and group lasso use a quarter of the epochs before the last cut. The score is that of
the best epoch on the selection images; a schedule's figure is the mean score over seeds.
"""

from __future__ import annotations

import json
import platform
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import torch

from benchmarks.importance import STEP, make_distillation
from edgeopt.passes.distill.teacher import TeacherOutputs
from edgeopt.passes.distill.train import Distillation
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.importance import choose_strongest, score_channels
from edgeopt.passes.prune.lasso import GroupLasso
from edgeopt.passes.prune.rewrite import prune
from edgeopt.passes.prune.table import build_group_table
from edgeopt.planning.widths import allocate_by_work
from edgeopt.records.recipe import Distill, Importance
from edgeopt.task import load_task

SALIENCY_BATCHES = 16
SCHEDULES = ("one cut", "two cuts", "group lasso")


class ScheduleRunner:
    """Runs schedules on the default network, with the batches and teacher that all of them share."""

    def __init__(self, folder: Path, epochs: int, ratio: float, strength: float) -> None:
        self.folder = folder
        self.task = load_task("fashion")
        self.original = Network.trace(self.task.model, self.task.example_inputs)
        self.batches = [batch for _, batch in zip(range(SALIENCY_BATCHES), self.task.train_epoch(0), strict=False)]
        self.parameters = sum(value.numel() for value in self.original.parameters().values())
        self.first_epochs = max(1, epochs // 4)
        self.epochs, self.ratio, self.strength = epochs, ratio, strength

    def cut(self, network: Network, ratio: float) -> Network:
        """Prune to a ratio of the original's parameters, by importance scored on this network's weights."""
        groups = analyse(network)
        scores = score_channels(network, groups, Importance(), self.batches, self.task.loss)
        table = build_group_table(network, groups, scores, self.task.example_inputs)
        return prune(network, groups, choose_strongest(scores, allocate_by_work(table, ratio * self.parameters, STEP)))

    def train(self, network: Network, step: Distill, seed: int) -> float:
        """Train in place and return the best epoch's score."""
        teacher = TeacherOutputs(
            self.folder / "teacher", self.task, self.original.eval_module, epochs=step.epochs, seed=seed
        )
        checkpoint = self.folder / "checkpoint.safetensors"
        checkpoint.unlink(missing_ok=True)
        lasso = GroupLasso(network, step.group_lasso) if step.group_lasso else None
        return Distillation(
            network.train_module, network.eval_module, self.task, step, teacher,
            sparsity=None, lasso=lasso, checkpoint=checkpoint, progress=lambda *_: None,
        ).run().best_score  # fmt: skip

    def run(self, schedule: str, seed: int) -> dict[str, Any]:
        """Run one schedule."""
        start = time.perf_counter()
        first = make_distillation(self.task, self.first_epochs)
        last = make_distillation(self.task, self.epochs - self.first_epochs)
        network = self.original.copy()
        if schedule == "one cut":
            last = make_distillation(self.task, self.epochs)
        elif schedule == "two cuts":
            network = self.cut(network, self.ratio**0.5)
            self.train(network, first, seed)
        else:
            self.train(network, msgspec.structs.replace(first, group_lasso=self.strength), seed)
        network = self.cut(network, self.ratio)
        score = self.train(network, last, seed + 1000)
        return {
            "schedule": schedule,
            "seed": seed,
            "ratio": sum(value.numel() for value in network.parameters().values()) / self.parameters,
            "score": score,
            "seconds": time.perf_counter() - start,
        }


@click.command()
@click.option("--epochs", default=4, show_default=True)
@click.option("--ratio", default=0.1, show_default=True, help="Parameters to keep, 0..1.")
@click.option("--strength", default=1e-4, show_default=True, help="Strength of the group lasso.")
@click.option("--seeds", default=1, show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), required=True)
def main(epochs: int, ratio: float, strength: float, seeds: int, out: Path) -> None:
    """Run every schedule, and write figures and raw results."""
    torch.set_num_threads(1)
    samples = []
    with tempfile.TemporaryDirectory() as name:
        runner = ScheduleRunner(Path(name), epochs, ratio, strength)
        for seed in range(seeds):
            for schedule in SCHEDULES:
                samples.append(runner.run(schedule, seed))
                print(json.dumps(samples[-1]), file=sys.stderr, flush=True)
    figures = {
        schedule: float(np.mean([sample["score"] for sample in samples if sample["schedule"] == schedule]))
        for schedule in SCHEDULES
    }
    result = {
        "figures": figures,
        "samples": samples,
        "environment": {"platform": platform.platform(), "python": platform.python_version()},
        "command": "python " + shlex.join(sys.argv),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
