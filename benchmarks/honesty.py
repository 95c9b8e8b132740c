"""Build the default task with other samples that select, and see what winners lose on images that are held back.

    EDGEOPT_DATA=DIR python benchmarks/honesty.py [--builds 20] [--full] [--add] --json benchmarks/results/honesty.json

Each build has its own 2,000 images that select, and its own order of training images; the other 13,000 that the trained
network has not seen are held back (``honesty_tasks.py``). A winner may lose ``MAX_DROP``. Its drop on the images that
are held back is known to within 0.002, so the two drops show how much of a result is luck.

Claims: ``builds``, ``winners`` (builds that have one), ``mean_drop_selection``, ``mean_drop_heldout``,
``kept_on_heldout_ratio`` (of the winners: those that lose at most ``MAX_DROP`` there), ``winner_size_spread_ratio``
(bytes of the largest winner over those of the smallest) and ``median_seconds``.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.builds import run_build
from benchmarks.honesty_tasks import SEED_VARIABLE

MAX_DROP = 0.01
ROOT = Path(__file__).parents[1]
Row = dict[str, Any]


def build(seed: int, full: bool) -> Row:
    """Build with one split, and return the row with the winner's drops."""
    task = f"{Path(__file__).with_name('honesty_tasks.py')}:task"
    words = [task, "--target", "phone", "--max-drop", str(MAX_DROP), "--yes"]
    words += [] if full else ["--quick"]
    variables = {
        SEED_VARIABLE: str(seed),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    with tempfile.TemporaryDirectory() as folder:
        choice, seconds = run_build(words, Path(folder), variables)
    winner, test = choice["winner"], choice["test"]
    row: Row = {"seed": seed, "full": full, "seconds": seconds, "trials": len(choice["trials"])}
    if winner is None or test is None:
        return row | {"winner": None}
    return row | {
        "winner": winner["number"],
        "size_bytes": winner["size_bytes"],
        "drop_selection": winner["score_drop"],
        "drop_selection_ci95": winner["score_drop_ci95"],
        "drop_heldout": test["baseline_score"] - test["winner_score"],
        "drop_heldout_ci95": test["drop_ci95"],
        "expected": choice["expected"],
        "latency_ratio": winner["against_baseline"] and winner["against_baseline"]["latency_ratio"],
        "parameters": winner["parameters"],
        "recipe": winner["recipe"],
    }


def compute_figures(rows: Sequence[Row]) -> Row:
    """Return the claims."""
    won = [row for row in rows if row["winner"] is not None]
    sizes = [row["size_bytes"] for row in won]
    return {
        "builds": len(rows),
        "winners": len(won),
        "mean_drop_selection": statistics.mean(row["drop_selection"] for row in won) if won else None,
        "mean_drop_heldout": statistics.mean(row["drop_heldout"] for row in won) if won else None,
        "kept_on_heldout_ratio": sum(row["drop_heldout"] <= MAX_DROP for row in won) / len(won) if won else None,
        "winner_size_spread_ratio": max(sizes) / min(sizes) if won else None,
        "median_seconds": statistics.median(row["seconds"] for row in rows) if rows else None,
    }


@click.command()
@click.option("--builds", default=20, show_default=True, help="How many; the split of each has its number.")
@click.option("--full", is_flag=True, help="Full builds instead of quick ones.")
@click.option("--add", is_flag=True, help="Keep the builds that the file has, and run the others.")
@click.option("--json", "out", type=click.Path(path_type=Path), required=True)
def main(builds: int, full: bool, add: bool, out: Path) -> None:
    """Run the builds, and write figures and rows after each."""
    rows: list[Row] = json.loads(out.read_text("utf-8"))["rows"] if add and out.exists() else []
    known = {(row["seed"], row["full"]) for row in rows}
    for seed in range(builds):
        if (seed, full) in known:
            continue
        rows.append(build(seed, full))
        result = {
            "figures": compute_figures(rows),
            "rows": rows,
            "environment": {"platform": platform.platform(), "python": platform.python_version()},
            "command": "python benchmarks/honesty.py --json benchmarks/results/honesty.json",
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1), encoding="utf-8")
        click.echo(json.dumps({key: value for key, value in rows[-1].items() if key != "recipe"}), err=True)
    print(json.dumps(compute_figures(rows), indent=1))


if __name__ == "__main__":
    main()
