"""Build one task for three targets in one search, and for each target in a search of its own.

    python benchmarks/targets.py [--task fashion] [--quick] [--work DIR] --json benchmarks/results/targets.json

The one search shares trainings, files and scores between the targets; the others begin in fresh workspaces. Each target
allows another drop of the score (``MAX_DROPS``), so that each needs another network; limits on time, memory and size
are waived, so that a slow machine has winners too. Nothing else may run: seconds are compared over all of it.

Claims: ``cost_ratio_to_one_target`` (seconds in which the one search trained and made files, for all targets together,
over those of the most expensive search of its own), ``trainings_ratio_to_one_target`` (the same of different networks
that were trained), ``seconds_ratio_to_own_searches`` (wall time of the one search over that of the three together) and
``worst_size_ratio_to_own_search`` (bytes of a target's winner over those of its own search's).
"""

from __future__ import annotations

import json
import platform
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.builds import run_build

MAX_DROPS = {"car": 0.005, "phone": 0.01, "server": 0.02}
"""By target."""
TRAINING_STAGE = "train and make files"
WAIVED = ("latency-ms", "throughput", "memory-mb", "size-mb")
Row = dict[str, Any]


def build(task: str, targets: Sequence[str], folder: Path, quick: bool) -> Row:
    """Build for some targets in a folder; return the wall time and each target's ``choice.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    limits = [f"[targets.{target}.limits]\nmax_drop = {drop}\n" for target, drop in MAX_DROPS.items()]
    (folder / "edgeopt.toml").write_text("\n".join(limits), encoding="utf-8")
    words = [task, "--yes", "--out", "out", "--workspace", "workspace"]
    words += [word for target in targets for word in ("--target", target)]
    words += [word for limit in WAIVED for word in (f"--{limit}", "none")]
    words += ["--quick"] if quick else []
    seconds = run_build(words, folder).seconds
    folders = {target: folder / "out" / target if len(targets) > 1 else folder / "out" for target in targets}
    choices = {target: json.loads((path / "choice.json").read_text("utf-8")) for target, path in folders.items()}
    return {"seconds": seconds, "choices": choices}


def training_seconds(row: Row) -> float:
    """Return the seconds in which a search trained and made files, over its targets."""
    return float(sum(choice["seconds"].get(TRAINING_STAGE, 0.0) for choice in row["choices"].values()))


def trained_networks(row: Row) -> int:
    """Return how many different networks the trials of a search are of, without the given one."""
    return len(
        {
            json.dumps([trial["recipe"]["torch_steps"], trial["recipe"]["parent"]])
            for choice in row["choices"].values()
            for trial in choice["trials"]
            if trial["recipe"]["torch_steps"]
        }
    )


def winner_bytes(choice: Mapping[str, Any]) -> int | None:
    """Return the bytes of a target's winner; None if nothing keeps the limits."""
    return None if choice["winner"] is None else int(choice["winner"]["size_bytes"])


def compute_figures(shared: Row, own: Mapping[str, Row]) -> Row:
    """Return the claims; None where a winner is missing."""
    sizes = {target: winner_bytes(shared["choices"][target]) for target in own}
    alone = {target: winner_bytes(row["choices"][target]) for target, row in own.items()}
    ratios = [size / other for target, size in sizes.items() if size and (other := alone[target])]
    return {
        "targets": len(own),
        "cost_ratio_to_one_target": training_seconds(shared) / max(map(training_seconds, own.values())),
        "trainings_ratio_to_one_target": trained_networks(shared) / max(map(trained_networks, own.values())),
        "seconds_ratio_to_own_searches": shared["seconds"] / sum(row["seconds"] for row in own.values()),
        "worst_size_ratio_to_own_search": max(ratios) if len(ratios) == len(own) else None,
        "winner_bytes": sizes,
        "winner_bytes_of_own_search": alone,
    }


@click.command()
@click.option("--task", default="fashion", show_default=True)
@click.option("--quick", is_flag=True, help="Quick builds.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), help="Keep the builds here.")
@click.option("--json", "out", type=click.Path(path_type=Path), required=True)
def main(task: str, quick: bool, work: Path | None, out: Path) -> None:
    """Run the builds, and write figures and every choice."""
    file, _, name = task.partition(":")
    located = f"{Path(file).resolve()}:{name}" if Path(file).is_file() else task  # builds run in folders of their own
    with tempfile.TemporaryDirectory() as temporary:
        folder = (work or Path(temporary)).resolve()
        shared = build(located, tuple(MAX_DROPS), folder / "shared", quick)
        own = {target: build(located, (target,), folder / target, quick) for target in MAX_DROPS}
    result = {
        "figures": compute_figures(shared, own),
        "shared": shared,
        "own": own,
        "environment": {"platform": platform.platform(), "python": platform.python_version()},
        "command": shlex.join(["python", "benchmarks/targets.py", "--task", task, *(["--quick"] if quick else [])]),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(json.dumps(result["figures"], indent=1))


if __name__ == "__main__":
    main()
