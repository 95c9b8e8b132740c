"""Compare how much of the score every importance method keeps, on the default network at equal parameters.

    python benchmarks/importance.py [--quick] --json benchmarks/results/importance.json

Each method's scores decide how many channels every group loses, and which ones. Widths are allocated by counted work,
so nothing is timed. Every network is scored right after pruning (with updated batch norm statistics) and after a short
distillation, on the selection images of the default task.

Claims: ``best_method`` by the mean score after distillation, ``default_gap`` (the best mean less the default's),
``gain_over_random``.
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
import numpy as np
import torch

from edgeopt.passes.distill.epoch_choice import evaluate
from edgeopt.passes.distill.teacher import TeacherOutputs
from edgeopt.passes.distill.train import Distillation
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.importance import choose_strongest, score_channels
from edgeopt.passes.prune.rewrite import prune
from edgeopt.passes.prune.table import build_group_table
from edgeopt.planning.widths import allocate_by_work
from edgeopt.records.recipe import Distill, Importance
from edgeopt.task import CheckedTask, load_task

RANDOM = Importance(method="random", normalization="mean")
RULES = (
    RANDOM,
    *(Importance(method=method, normalization="mean") for method in ("l1", "l2", "batch-norm", "activation")),
    Importance(method="l2", reduction="mean", normalization="mean"),
    Importance(method="l2", reduction="max", normalization="max"),
    *(
        Importance(method=method, normalization=normalization)
        for method in ("gradient", "taylor", "hessian")
        for normalization in ("none", "mean")
    ),
    Importance(method="taylor", reduction="max"),
)
PARAMETER_RATIOS = (0.3, 0.15)
"""Parameters to keep."""
SALIENCY_BATCHES = 16
STEP = 8


def make_distillation(task: CheckedTask, epochs: int) -> Distill:
    """Return the default task's training with this number of epochs."""
    training = task.training
    return Distill(
        epochs=epochs,
        optimizer=training.optimizer,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        warmup_ratio=0.1,
        temperature=training.temperature,
        kl_weight=training.kl_weight,
        mse_weight=training.mse_weight,
        hard_weight=training.hard_weight,
    )


def label(rule: Importance) -> str:
    """Return a rule's method, reduction and normalization."""
    return f"{rule.method}, {rule.reduction}, {rule.normalization}"


class RuleComparison:
    """The default network, its groups, and the batches and training that all rules share."""

    def __init__(self, folder: Path, epochs: int) -> None:
        self.task = load_task("fashion")
        self.network = Network.trace(self.task.model, self.task.example_inputs)
        self.groups = analyse(self.network)
        self.batches = [batch for _, batch in zip(range(SALIENCY_BATCHES), self.task.train_epoch(0), strict=False)]
        self.step = make_distillation(self.task, epochs)
        self.folder = folder

    def try_rule(self, rule: Importance, ratio: float, seed: int) -> dict[str, Any]:
        """Prune, score, distill and score again."""
        scores = score_channels(self.network, self.groups, rule, self.batches, self.task.loss)
        table = build_group_table(self.network, self.groups, scores, self.task.example_inputs)
        widths = allocate_by_work(table, ratio * table.parameters({}), STEP)
        pruned = prune(self.network, self.groups, choose_strongest(scores, widths))
        with torch.no_grad():
            for inputs, _ in self.batches:
                pruned.train_module(*inputs)
        score_before = evaluate(pruned.eval_module, self.task)
        teacher = TeacherOutputs(
            self.folder / "teacher", self.task, self.network.eval_module, epochs=self.step.epochs, seed=seed
        )
        checkpoint = self.folder / "checkpoint.safetensors"
        checkpoint.unlink(missing_ok=True)
        trained = Distillation(
            pruned.train_module, pruned.eval_module, self.task, self.step, teacher,
            sparsity=None, checkpoint=checkpoint, progress=lambda *_: None,
        ).run()  # fmt: skip
        return {
            "rule": label(rule),
            "method": rule.method,
            "ratio": table.parameters(widths) / table.parameters({}),
            "macs": table.macs(widths),
            "seed": seed,
            "score_cut": score_before,
            "score": trained.best_score,
        }


@click.command()
@click.option("--quick", is_flag=True, help="One ratio, one seed, three methods.")
@click.option("--epochs", default=1, show_default=True)
@click.option("--seeds", default=2, show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), required=True)
def main(quick: bool, epochs: int, seeds: int, out: Path) -> None:
    """Try every rule at every ratio, and write figures and raw results."""
    torch.set_num_threads(1)
    rules = tuple(rule for rule in RULES if rule in (RANDOM, Importance(), RULES[2])) if quick else RULES
    samples = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        comparison = RuleComparison(Path(name), epochs)
        original_score = evaluate(comparison.network.eval_module, comparison.task)
        for seed in range(1 if quick else seeds):
            for ratio in PARAMETER_RATIOS[:1] if quick else PARAMETER_RATIOS:
                for rule in rules:
                    samples.append(comparison.try_rule(rule, ratio, seed))
                    print(json.dumps(samples[-1]), file=sys.stderr)
    rows: list[dict[str, Any]] = [
        {
            "rule": label(rule),
            "score": float(np.mean([sample["score"] for sample in samples if sample["rule"] == label(rule)])),
            "score_cut": float(np.mean([sample["score_cut"] for sample in samples if sample["rule"] == label(rule)])),
        }
        for rule in rules
    ]
    rows.sort(key=lambda row: -row["score"])
    by_rule = {row["rule"]: row["score"] for row in rows}
    result = {
        "figures": {
            "best_method": rows[0]["rule"],
            "default_gap": rows[0]["score"] - by_rule[label(Importance())],
            "gain_over_random": by_rule[label(Importance())] - by_rule[label(RANDOM)],
            "original_score": original_score,
            "seconds": time.perf_counter() - start,
        },
        "rows": rows,
        "samples": samples,
        "environment": {"platform": platform.platform(), "python": platform.python_version()},
        "command": "python " + shlex.join(sys.argv),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"figures": result["figures"], "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
