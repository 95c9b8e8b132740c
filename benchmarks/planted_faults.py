"""Confuse two channels in one tensor at a time, and count how often the proof of a cut sees it.

    python benchmarks/planted_faults.py [--only NAME ...] --json benchmarks/results/planted_faults.json

Every architecture of ``benchmarks/zoo`` that needs no package of its own loses every other channel of each group. Then
the indices of a kept and of a removed channel are swapped in one tensor (``coverage_worker.plant_faults``), and the cut
is proven on the inputs of the trace. A fault is missed if it changes nothing there: a channel may be zero behind a ReLU
for all samples.

Claims: ``architectures``, ``planted_faults``, ``caught_fault_ratio``.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.coverage_worker import plant_faults
from benchmarks.zoo.every import EVERY
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse

TOO_SLOW = ("resnet50",)
"""Whose proofs take minutes."""
Row = dict[str, Any]


def measure(name: str) -> Row:
    """Return how many faults of an architecture were planted, and which the proof misses."""
    torch.manual_seed(0)
    module, inputs = EVERY[name].build()
    network = Network.trace(module.eval(), inputs)
    groups = analyse(network)
    return {"name": name, **plant_faults(network, groups, keep_every_other(groups.free))}


def keep_every_other(groups: dict[str, Any]) -> dict[str, list[int]]:
    """Return the channels to keep of each group."""
    return {name: list(range(0, group.channels, 2)) for name, group in groups.items()}


def compute_figures(rows: Sequence[Row]) -> Row:
    """Return the claims over all architectures."""
    planted, missed = (sum(count) for count in zip(*map(_counts, rows), strict=True))
    return {
        "architectures": len(rows),
        "planted_faults": planted,
        "caught_fault_ratio": 1 - missed / planted if planted else None,
    }


def _counts(row: Row) -> tuple[int, int]:
    return row["planted_faults"], len(row["missed_faults"])


@click.command()
@click.option("--only", multiple=True, type=click.Choice(sorted(EVERY)), help="Only this architecture; repeatable.")
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), required=True)
def main(only: tuple[str, ...], out: Path) -> None:
    """Plant and count."""
    names = only or [name for name in EVERY if not name.startswith("hf/") and name not in TOO_SLOW]
    rows = []
    for name in names:
        rows.append(measure(name))
        click.echo(json.dumps(rows[-1]), err=True)
    environment = {"platform": platform.platform(), "python": platform.python_version(), "torch": torch.__version__}
    result = {"figures": compute_figures(rows), "rows": rows, "environment": environment}
    out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(json.dumps(result["figures"], indent=1))


if __name__ == "__main__":
    main()
