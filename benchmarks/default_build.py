"""The default build, and what is left of it without pruning, without distillation, without quantization.

    python benchmarks/default_build.py [--quick] --json benchmarks/results/default_build.json

Claims: ``size_ratio`` (baseline bytes over winner's), ``speed_ratio`` (interleaved A/B on one thread, baseline over
winner), ``test_drop`` (on the test images, all 10,000 where ``EDGEOPT_DATA`` holds them), ``seconds``.
"""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

HARD_LABELS = '''"""The default task, trained on the labels alone."""

import msgspec
from edgeopt.tasks.fashion import Fashion

task = Fashion()
task.training = msgspec.structs.replace(task.training, kl_weight=0.0, mse_weight=0.0, hard_weight=1.0)
'''


def build(folder: Path, name: str, task: str, quick: bool) -> tuple[dict[str, Any], float]:
    """Run one build in a workspace of its own; return its choice.json and its wall time in seconds."""
    command = [sys.executable, "-m", "edgeopt", "build", task, "--target", "phone", "--json", "--out", f"{name}-out",
               "--workspace", f"{name}-workspace", *(["--quick"] if quick else [])]  # fmt: skip
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode not in (0, 3):
        raise click.ClickException(f"{shlex.join(command)} ended with code {done.returncode}")
    return json.loads(done.stdout), seconds


def compare(workspace: Path, trial: dict[str, Any] | None, baseline: dict[str, Any]) -> None:
    """Compare a trial's file with the baseline's by `edgeopt bench --against`, where the build had no reason to."""
    if trial is None or trial["against_baseline"] is not None:
        return
    command = [sys.executable, "-m", "edgeopt", "bench", trial["onnx"], "--against", baseline["onnx"],
               "--target", "phone", "--json"]  # fmt: skip
    done = subprocess.run(command, cwd=workspace, stdout=subprocess.PIPE, text=True, check=True)
    trial["against_baseline"] = json.loads(done.stdout)["against"]


def keeps(trial: dict[str, Any]) -> bool:
    """Tell whether a trial was measured and keeps every limit."""
    return trial["status"] == "measured" and not trial["misses"]


def smallest(trials: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the smallest trial that keeps every limit."""
    return min(filter(keeps, trials), key=lambda trial: trial["size_bytes"], default=None)


def is_int8(trial: dict[str, Any]) -> bool:
    """Tell whether a trial's file is quantized."""
    return any(step["step"] == "quantize" for step in trial["recipe"]["graph_steps"])


def is_float(trial: dict[str, Any]) -> bool:
    """Tell whether a trial's file is float32 throughout."""
    return not any(step["step"] in ("quantize", "half") for step in trial["recipe"]["graph_steps"])


def row(name: str, trial: dict[str, Any] | None, baseline: dict[str, Any]) -> dict[str, Any]:
    """Return one row of the table; None where nothing keeps the limits."""
    if trial is None:
        return {"name": name, "size_ratio": None, "speed_ratio": None, "selection_drop": None}
    against = trial["against_baseline"]
    return {
        "name": name,
        "size_bytes": trial["size_bytes"],
        "size_ratio": baseline["size_bytes"] / trial["size_bytes"],
        "speed_ratio": None if against is None else 1 / against["latency_ratio"],
        "speed_ci95": None if against is None else sorted(1 / bound for bound in against["ci95"]),
        "p50_ms": trial["latency_ms"]["p50"],
        "peak_memory_bytes": trial["peak_memory_bytes"],
        "selection_drop": trial["score_drop"],
        "selection_drop_ci95": trial["score_drop_ci95"],
    }


def rows_of(folder: Path, choice: dict[str, Any], labels_alone: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the table, every row with its A/B; ``labels_alone`` is None where that build was left out."""
    baseline, trials = choice["baseline"], choice["trials"]
    plain = [t for t in trials if not t["recipe"]["torch_steps"] and is_int8(t)]
    chosen = [
        ("everything", "full", choice["winner"]),
        ("without pruning", "full", smallest(plain)),
        ("without quantization", "full", smallest([t for t in trials if is_float(t) and t["number"] > 0])),
    ]
    if labels_alone is not None:
        hard = smallest([t for t in labels_alone["trials"] if is_int8(t)])
        chosen.append(("without distillation (labels alone)", "hard", hard))
    for _, build_name, trial in chosen:
        compare(folder / f"{build_name}-workspace", trial, baseline)
    return [row(name, trial, baseline) for name, _, trial in chosen]


def summary(
    choice: dict[str, Any],
    seconds: float,
    labels_alone: dict[str, Any] | None,
    rows: list[dict[str, Any]],
    command: str,
) -> dict[str, Any]:
    """Return figures, rows and raw results of the builds."""
    test = choice["test"]
    figures = {
        "size_ratio": rows[0]["size_ratio"],
        "speed_ratio": rows[0]["speed_ratio"],
        "test_drop": None if test is None else test["baseline_score"] - test["winner_score"],
        "test_drop_ci95": None if test is None else test["drop_ci95"],
        "test_images": None if test is None else test["samples"],
        "baseline_test_score": None if test is None else test["baseline_score"],
        "seconds": seconds,
    }
    return {
        "figures": figures,
        "rows": rows,
        "samples": {"default": choice, "labels_alone": labels_alone},
        "environment": {"platform": platform.platform(), "python": platform.python_version()},
        "command": command,
    }


@click.command()
@click.option("--quick", is_flag=True)
@click.option("--skip-labels-alone", is_flag=True, help="Leave out the second build, which trains without a teacher.")
@click.option("--json", "out", type=click.Path(path_type=Path), required=True)
def main(quick: bool, skip_labels_alone: bool, out: Path) -> None:
    """Run the builds, print the table, and write figures and raw results."""
    hard: dict[str, Any] | None = None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        choice, seconds = build(folder, "full", "fashion", quick)
        if not skip_labels_alone:
            (folder / "hard_labels.py").write_text(HARD_LABELS)
            hard, _ = build(folder, "hard", "hard_labels.py:task", quick)
        rows = rows_of(folder, choice, hard)
    result = summary(choice, seconds, hard, rows, "python " + shlex.join(sys.argv))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1))
    print(json.dumps({"figures": result["figures"], "rows": result["rows"]}, indent=1))


if __name__ == "__main__":
    main()
