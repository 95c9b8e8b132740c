"""Run the default build, and compare it with builds without pruning, quantization or distillation.

    python benchmarks/default_build.py [--quick] --json benchmarks/results/default_build.json

Claims: ``size_ratio`` (baseline bytes over winner's), ``speed_ratio`` (interleaved A/B on one thread, baseline over
winner), ``test_drop`` (on the test images: all 10,000 if ``EDGEOPT_DATA`` has them), ``seconds``.
"""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.builds import FinishedBuild, run_build

LABELS_ONLY = '''"""The default task, trained on the labels only."""

import msgspec
from edgeopt.tasks.ready.fashion import Fashion

task = Fashion()
task.training = msgspec.structs.replace(task.training, kl_weight=0.0, mse_weight=0.0, hard_weight=1.0)
'''


def build(folder: Path, name: str, task: str, quick: bool) -> FinishedBuild:
    """Run one build in its own workspace."""
    words = [task, "--target", "phone", "--out", f"{name}-out", "--workspace", f"{name}-workspace"]
    return run_build([*words, "--quick"] if quick else words, folder)


def compare(workspace: Path, trial: dict[str, Any] | None, baseline: dict[str, Any]) -> None:
    """Compare a trial's file with the baseline's by `edgeopt bench --against`, if the build did not."""
    if trial is None or trial["against_baseline"] is not None:
        return
    command = [sys.executable, "-m", "edgeopt", "bench", trial["onnx"], "--against", baseline["onnx"],
               "--target", "phone", "--json"]  # fmt: skip
    done = subprocess.run(command, cwd=workspace, stdout=subprocess.PIPE, text=True, check=True)
    trial["against_baseline"] = json.loads(done.stdout)["against"]


def keeps_limits(trial: dict[str, Any]) -> bool:
    """Tell whether a trial was measured and keeps every limit."""
    return trial["status"] == "measured" and not trial["misses"]


def find_smallest(trials: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the smallest trial that keeps every limit."""
    return min(filter(keeps_limits, trials), key=lambda trial: trial["size_bytes"], default=None)


def is_int8(trial: dict[str, Any]) -> bool:
    """Tell whether a trial's file is quantized."""
    return any(step["step"] == "quantize" for step in trial["recipe"]["graph_steps"])


def is_float(trial: dict[str, Any]) -> bool:
    """Tell whether a trial's file is float32 throughout."""
    return not any(step["step"] in ("quantize", "float16") for step in trial["recipe"]["graph_steps"])


def make_row(name: str, trial: dict[str, Any] | None, baseline: dict[str, Any]) -> dict[str, Any]:
    """Return one row of the table; its values are None if no trial keeps the limits."""
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


def make_rows(folder: Path, choice: dict[str, Any], labels_only: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the table, every row with its A/B; ``labels_only`` is None if that build was skipped."""
    baseline, trials = choice["baseline"], choice["trials"]
    unpruned = [t for t in trials if not t["recipe"]["torch_steps"] and is_int8(t)]
    table = [
        ("everything", "full", choice["winner"]),
        ("without pruning", "full", find_smallest(unpruned)),
        ("without quantization", "full", find_smallest([t for t in trials if is_float(t) and t["number"] > 0])),
    ]
    if labels_only is not None:
        undistilled = find_smallest([t for t in labels_only["trials"] if is_int8(t)])
        table.append(("without distillation (labels only)", "labels", undistilled))
    for _, build_name, trial in table:
        compare(folder / f"{build_name}-workspace", trial, baseline)
    return [make_row(name, trial, baseline) for name, _, trial in table]


def summarize(
    choice: dict[str, Any],
    seconds: float,
    labels_only: dict[str, Any] | None,
    rows: list[dict[str, Any]],
    command: str,
) -> dict[str, Any]:
    """Return the figures, rows and raw results of the builds."""
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
        "samples": {"default": choice, "labels_only": labels_only},
        "environment": {"platform": platform.platform(), "python": platform.python_version()},
        "command": command,
    }


@click.command()
@click.option("--quick", is_flag=True)
@click.option("--skip-labels-alone", is_flag=True, help="Skip the second build, which trains without a teacher.")
@click.option("--json", "out", type=click.Path(path_type=Path), required=True)
def main(quick: bool, skip_labels_alone: bool, out: Path) -> None:
    """Run the builds, print the table, and write figures and raw results."""
    labels_only: dict[str, Any] | None = None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        choice, seconds = build(folder, "full", "fashion", quick)
        if not skip_labels_alone:
            (folder / "labels_only.py").write_text(LABELS_ONLY)
            labels_only, _ = build(folder, "labels", "labels_only.py:task", quick)
        rows = make_rows(folder, choice, labels_only)
    result = summarize(choice, seconds, labels_only, rows, "python " + shlex.join(sys.argv))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1))
    print(json.dumps({"figures": result["figures"], "rows": result["rows"]}, indent=1))


if __name__ == "__main__":
    main()
