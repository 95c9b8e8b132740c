"""Prune ten architectures to two sizes as a build does, and compare each file twice with its parent.

The first A/B decides whether the file ships, as in a build. The second one shows whether a shipped file is slower after
all. This is the second part of ``allocation.py``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.pruned_files import FULL_TURNS, PrunedFiles, open_task
from edgeopt.planning.widths import allocate
from edgeopt.records.codec import to_json
from edgeopt.statistics import comparison_ratio, verdict

FOLDER = Path(__file__).parent
ARCHITECTURES = ("mobilenet_v2", "mobilenet_v3", "efficientnet", "resnet18", "regnet", "shufflenet_v2", "unet",
                 "ds_cnn", "vit", "gru")  # fmt: skip
PARAMETER_RATIOS = (0.6, 0.3)
"""Parameters to keep."""


def run_architecture(name: str, root: Path, workers: int | None) -> list[dict[str, Any]]:
    """Prune an architecture to each size as a build does, and compare it twice with its parent."""
    rows = []
    with open_task(f"{FOLDER / 'random_tasks.py'}:{name}", root, workers, None) as build:
        files = PrunedFiles(build, root / "files")
        for ratio in PARAMETER_RATIOS:
            parameters = files.groups.parameters({})
            allocation = allocate(
                files.groups, files.step, files.predictor, max_parameters=ratio * parameters, max_latency_ratio=None
            )
            file = files.make_file(files.groups.widths(allocation.widths))
            first, second = (files.compare(file, files.parent, FULL_TURNS, seed=seed) for seed in (0, 1))
            first_ratio, second_ratio = comparison_ratio(first), comparison_ratio(second)
            rows.append(
                {
                    "network": name, "parameters_ratio": files.groups.parameters(allocation.widths) / parameters,
                    "verdict": verdict(first), "latency_ratio": list(first_ratio),
                    "second_verdict": verdict(second), "second_ratio": list(second_ratio),
                    "predicted_ratio": allocation.latency_ratio, "gap_ratio": allocation.gap_ratio,
                    "samples": [json.loads(to_json(first)), json.loads(to_json(second))],
                }
            )  # fmt: skip
            click.echo(f"{name} {ratio}: {verdict(first)} ({first_ratio.value:.3f}), then {verdict(second)}", err=True)
    return rows


def compute_shipping_figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the claims on pruned files and their parents; empty if there are no rows."""
    if not rows:
        return {}
    shipped = [row for row in rows if row["verdict"] == "faster"]
    return {
        "pruned_candidates": len(rows),
        "pruned_shipped_ratio": len(shipped) / len(rows),
        "shipped_slower_than_parent": sum(row["second_verdict"] == "slower" for row in shipped),
    }
