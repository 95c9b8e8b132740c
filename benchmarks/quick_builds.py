"""Build networks of the zoo that nobody chose, with `--quick`, and look at the file that ships.

    pip install '.[bench]'
    python benchmarks/quick_builds.py [--only NAME ...] [--add] --json benchmarks/results/quick_builds.json

Every eighth network, by name, of those that came into the zoo after the pruning rules. Weights and data are random, and
the network teaches (``random_teachers.py``); a candidate may lose 0.05 of the outputs' variance. The target is the
server that this machine is, where every verdict counts (a stand-in drops nothing for its int8 verdicts); limits in
milliseconds are waived, since A/Bs decide what is slower. After 10 minutes a build begins nothing new. A build
**ships well** if its winner has fewer bytes than the same network in float32 and is no slower, or if the result says
why not: each int8 variant has a reason (slower layers by name, the score, an error).

``--add`` keeps what the file has and builds only what it lacks.

Claims: ``networks``, ``int8_shipped_or_smaller_ratio`` (winners smaller than their float counterpart and no slower, of
all), ``explained_ratio`` (these, and those whose result says why not), ``int8_shipped_ratio``,
``int8_slower_than_float`` (winners that lost their A/B), ``median_size_ratio`` and ``median_speed_ratio`` (of the
baseline to the winner).
"""

from __future__ import annotations

import json
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.builds import BUILT_CODES

ROOT = Path(__file__).parents[1]
EVERY_NTH = 8
MAX_DROP = 0.05
BUILD_MINUTES = 10
"""A build begins nothing new after that: two language models train a step a second here, and would go on for longer."""
TIME_LIMIT_SECONDS = 2700

Row = dict[str, Any]


def choose_names() -> list[str]:
    """Return the networks that are built."""
    from benchmarks.zoo.every import NEW

    return sorted(NEW)[::EVERY_NTH]


def build(name: str, folder: Path) -> Row:
    """Build one network, and return its row with the whole choice."""
    task = f"{Path(__file__).with_name('random_teachers.py')}:{name.replace('/', '_')}"
    command = [sys.executable, "-m", "edgeopt", "build", task, "--target", "server", "--quick", "--yes", "--json",
               "--max-drop", str(MAX_DROP), "--latency-ms", "none", "--throughput", "none", "--out", "out",
               "--workspace", "workspace", "--time-limit", str(BUILD_MINUTES)]  # fmt: skip
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=TIME_LIMIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"name": name, "exit": None, "problem": f"took more than {TIME_LIMIT_SECONDS} s", "choice": None}
    seconds = time.perf_counter() - start
    if done.returncode not in BUILT_CODES:
        problem = done.stderr.strip().splitlines()[-1:] or [""]
        return {"name": name, "exit": done.returncode, "problem": problem[0], "choice": None, "seconds": seconds}
    choice = json.loads(done.stdout)
    return {"name": name, "exit": done.returncode, "seconds": seconds, **summarize(choice), "choice": choice}


def summarize(choice: dict[str, Any]) -> Row:
    """Return what a build shipped, compared with the same network in float32, and why not a smaller file."""
    baseline, winner = choice["baseline"], choice["winner"]
    reasons = {trial["number"]: explain(trial) for trial in choice["trials"] if is_int8(trial)}
    if winner is None:
        return {"winner": None, "smaller": False, "slower": False, "explained": False, "int8_reasons": reasons}
    counterpart = find_float_counterpart(choice["trials"], winner) or baseline
    judged = winner["against_float"] or winner["against_baseline"]
    against = winner["against_baseline"]
    smaller = winner["size_bytes"] < counterpart["size_bytes"]
    slower = judged is not None and judged["verdict"] == "slower"
    return {
        "winner": winner["number"], "weight_types": winner["weight_types"], "is_int8": is_int8(winner),
        "size_bytes": winner["size_bytes"], "float_bytes": counterpart["size_bytes"],
        "size_ratio": baseline["size_bytes"] / winner["size_bytes"],
        "speed_ratio": None if against is None else 1 / against["latency_ratio"],
        "against_float": judged, "score_drop": winner["score_drop"], "smaller": smaller, "slower": slower,
        "explained": bool(reasons) and all(reasons.values()), "int8_reasons": reasons,
        "failed_trainings": choice["failed_trainings"],
    }  # fmt: skip


def is_int8(trial: dict[str, Any]) -> bool:
    """Tell whether a trial's file has weights in integers, of 3 to 8 bits."""
    return any(step["step"].startswith(("quantize", "store-weights")) for step in trial["recipe"]["graph_steps"])


def find_float_counterpart(trials: list[dict[str, Any]], winner: dict[str, Any]) -> dict[str, Any] | None:
    """Return the measured float32 trial of the winner's network."""
    shrunk = ("quantize", "float16")
    return next(
        (
            trial
            for trial in trials
            if trial["status"] == "measured"
            and trial["recipe"]["torch_steps"] == winner["recipe"]["torch_steps"]
            and trial["number"] != winner["number"]
            and not any(step["step"].startswith(shrunk) for step in trial["recipe"]["graph_steps"])
        ),
        None,
    )


def explain(trial: dict[str, Any]) -> str:
    """Return what the result says against a trial; empty if it says nothing."""
    if trial["status"] != "measured":
        return f"{trial['stage']}: {trial['reason']}"
    if trial["misses"]:
        return "misses " + ", ".join(miss["limit"] for miss in trial["misses"])
    for key in ("against_float", "against_baseline"):
        if trial[key] is not None and trial[key]["verdict"] == "slower":
            return f"{key.replace('_', ' ')}: {trial[key]['latency_ratio']:.2f}"
    return "keeps every limit"


def compute_figures(rows: list[Row]) -> dict[str, Any]:
    """Return the claims."""
    built = [row for row in rows if row.get("winner") is not None]
    well = [row for row in built if row["smaller"] and not row["slower"]]
    speeds = [row["speed_ratio"] for row in built if row["speed_ratio"] is not None]
    return {
        "networks": len(rows),
        "int8_shipped_or_smaller_ratio": len(well) / len(rows),
        "explained_ratio": sum(row in well or row.get("explained", False) for row in rows) / len(rows),
        "int8_shipped_ratio": sum(row["is_int8"] for row in built) / len(rows),
        "int8_slower_than_float": sum(row["is_int8"] and row["slower"] for row in built),
        "median_size_ratio": statistics.median(row["size_ratio"] for row in built) if built else None,
        "median_speed_ratio": statistics.median(speeds) if speeds else None,
    }


def write(out: Path, rows: list[Row]) -> dict[str, Any]:
    """Write figures, rows and raw results."""
    rows = sorted(rows, key=lambda row: str(row["name"]))
    result = {
        "figures": compute_figures(rows),
        "rows": [{key: value for key, value in row.items() if key != "choice"} for row in rows],
        "samples": {row["name"]: row["choice"] for row in rows},
        "environment": {"platform": platform.platform(), "python": platform.python_version()},
        "command": "python " + shlex.join(sys.argv),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1))
    return result


def read_rows(out: Path) -> list[Row]:
    """Return the rows of an earlier run."""
    found = json.loads(out.read_text())
    return [{**row, "choice": found["samples"][row["name"]]} for row in found["rows"]]


@click.command()
@click.option("--only", multiple=True, help="Build only this network; may be repeated.")
@click.option("--add", is_flag=True, help="Keep the rows that the file has; with --only, these are built again.")
@click.option("--json", "out", type=click.Path(path_type=Path), required=True)
def main(only: tuple[str, ...], add: bool, out: Path) -> None:
    """Build each network, and write figures and raw results after each."""
    sys.path.insert(0, str(ROOT))
    rows = read_rows(out) if add and out.exists() else []
    known = {row["name"] for row in rows}
    names = list(only) or [name for name in choose_names() if name not in known]
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            row = build(name, Path(folder))
        rows = [*(old for old in rows if old["name"] != name), row]
        click.echo(json.dumps({key: value for key, value in row.items() if key != "choice"}), err=True)
        result = write(out, rows)
    print(json.dumps(result["figures"], indent=1))


if __name__ == "__main__":
    main()
