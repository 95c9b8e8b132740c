"""Ten architectures pruned to two sizes as a build prunes them, each file compared twice with its parent.

The first A/B decides whether the file ships, as in a build; the second decides nothing and tells whether a shipped one
is slower after all. Second part of ``allocation.py``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.pruned_files import SURE_TURNS, PrunedFiles, opened_task
from edgeopt.planning.widths import allocate
from edgeopt.records.codec import to_json
from edgeopt.statistics import comparison_ratio, verdict

FOLDER = Path(__file__).parent
ARCHITECTURES = ("mobilenet_v2", "mobilenet_v3", "efficientnet", "resnet18", "regnet", "shufflenet_v2", "unet",
                 "ds_cnn", "vit", "gru")  # fmt: skip
PARAMETERS_KEPT = (0.6, 0.3)


def run_architecture(name: str, root: Path, workers: int | None) -> list[dict[str, Any]]:
    """Prune an architecture to each size as a build does, and compare it twice with its parent."""
    rows = []
    with opened_task(f"{FOLDER / 'random_tasks.py'}:{name}", root, workers, None) as build:
        files = PrunedFiles(build, root / "files")
        for ratio in PARAMETERS_KEPT:
            most = ratio * files.groups.parameters({})
            found = allocate(files.groups, files.step, files.predictor, max_parameters=most, max_latency_ratio=None)
            file = files.file(files.groups.widths(found.widths))
            one, two = (files.compared(file, files.parent, SURE_TURNS, seed=seed) for seed in (0, 1))
            first, second = comparison_ratio(one), comparison_ratio(two)
            rows.append(
                {
                    "network": name, "parameters_ratio": files.groups.parameters(found.widths) / most * ratio,
                    "verdict": verdict(one), "latency_ratio": [first.value, first.low, first.high],
                    "second_verdict": verdict(two), "second_ratio": [second.value, second.low, second.high],
                    "predicted_ratio": found.latency_ratio, "gap_ratio": found.gap_ratio,
                    "samples": [json.loads(to_json(one)), json.loads(to_json(two))],
                }
            )  # fmt: skip
            click.echo(f"{name} {ratio}: {verdict(one)} ({first.value:.3f}), again {verdict(two)}", err=True)
    return rows


def shipping_figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the claims on pruned files and their parents; none where nothing was pruned."""
    if not rows:
        return {}
    shipped = [row for row in rows if row["verdict"] == "faster"]
    return {
        "pruned_candidates": len(rows),
        "pruned_shipped_ratio": len(shipped) / len(rows),
        "shipped_slower_than_parent": sum(row["second_verdict"] == "slower" for row in shipped),
    }
