"""Compare predicted latencies of pruned networks with measured ones.

    python benchmarks/predictor.py [--quick] --json benchmarks/results/predictor.json

Claims: ``networks`` (held out, each pruned and exported like a candidate of a build), ``median_error_ratio`` and
``p90_error_ratio`` of the predicted latency. Latencies are relative to the original in the same precision, and the
measured one comes from the interleaved A/B against it. There are three families: the default task's residual network, a
depthwise one, and one with squeeze-and-excitation. Their pruned networks have random widths; half are fp32, half int8.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from edgeopt.bench.compare import ComparisonTurns, compare
from edgeopt.config.profiles import load_profile
from edgeopt.graph.apply import apply_steps
from edgeopt.latency.predictor import Predictor
from edgeopt.pipeline.artifacts.latency_table import latency_table
from edgeopt.pipeline.artifacts.networks import ExportedFile, group_table_of
from edgeopt.pipeline.artifacts.onnx_files import graph_steps
from edgeopt.pipeline.build import BuildRequest, open_build, start
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.search.candidate import importance_of
from edgeopt.pipeline.torch_process import protocol
from edgeopt.records.codec import to_json
from edgeopt.records.groups import GroupTable
from edgeopt.records.latency import NoLatencyTable
from edgeopt.records.profile import Precision
from edgeopt.statistics import comparison_ratio
from edgeopt.store.workspace import Workspace

FOLDER = Path(__file__).parent
FAMILIES = {
    "residual": "fashion",
    "depthwise": f"{FOLDER / 'random_tasks.py'}:mobilenet_v2",
    "squeeze-excite": f"{FOLDER / 'random_tasks.py'}:mobilenet_v3",
}
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
NETWORK_COUNT = 7
"""Of each family in each precision."""
MIN_WIDTH_RATIO = 0.15
TURNS = ComparisonTurns(pairs=6, pair_seconds=0.3)
SEED = 7
"""Differs from the seed of the latency table's probes."""


def make_request(task: str, workspace: Path) -> BuildRequest:
    """Return the request that opens a task as a build does."""
    return BuildRequest(
        task=task, data=None, profile=load_profile("phone"), devices=("local:",), out=str(workspace / "out"),
        workspace=str(workspace), allow_fallback=(), workers=1, time_limit_seconds=None, quick=False,
        command=(),
    )  # fmt: skip


def draw_widths(groups: GroupTable, step: int, rng: np.random.Generator) -> dict[str, int]:
    """Return widths like a candidate's: a ratio for the network, and each group's own ratio near it."""
    center = rng.uniform(MIN_WIDTH_RATIO, 0.9)
    widths = {}
    for group in groups.free:
        ratio = float(np.clip(center * rng.uniform(0.6, 1.4), MIN_WIDTH_RATIO, 1.0))
        widths[group.name] = min(group.channels, max(1, round(group.channels * ratio / step)) * step)
    return widths


def export_pruned(build: Build, exported: ExportedFile, widths: list[dict[str, int]], folder: Path) -> list[Path]:
    """Prune the original to each of these widths, and export it with the exporter of the original's file."""
    paths = [folder / f"held-out-{number}.onnx" for number in range(len(widths))]
    job = protocol.ProbeJob(
        exporter=exported.exporter,
        widths=tuple(widths),
        outs=tuple(map(str, paths)),
        max_opset=build.profile.max_opset,
        max_ir=build.profile.max_ir,
    )
    build.torch_pool.do(job, protocol.ProbeDone)
    return paths


def finish_file(build: Build, source: Path, target: Path, precision: Precision) -> Path:
    """Apply a candidate's graph steps to an exported file."""
    apply_steps(graph_steps(precision, build.profile), source, target, calibration=build.data.calibration_file(256),
                max_opset=build.profile.max_opset, max_ir=build.profile.max_ir)  # fmt: skip
    return target


def run_family(family: str, build: Build, count: int, folder: Path) -> list[dict[str, Any]]:
    """Predict and measure ``count`` networks in each precision."""
    runner = start(build).runner
    groups, _ = group_table_of(build, runner.original, importance_of(build))
    rng = np.random.default_rng(SEED)
    widths = [draw_widths(groups, build.profile.channel_step, rng) for _ in range(count * len(PRECISIONS))]
    files = export_pruned(build, runner.exported, widths, folder)
    original = build.workspace.artifact(runner.exported.sha256)
    rows: list[dict[str, Any]] = []
    for offset, precision in enumerate(PRECISIONS):
        times = latency_table(build, groups, runner.exported, precision)
        if isinstance(times, NoLatencyTable):
            raise click.ClickException(f"{family} in {precision} has no latency table: {times.reason}")
        predictor = Predictor(times)
        parent = finish_file(build, original, folder / f"parent-{precision}.onnx", precision)
        for number in range(offset, len(files), len(PRECISIONS)):
            model = finish_file(build, files[number], folder / f"{number}-{precision}.onnx", precision)
            comparison = compare(model, parent, build.run_target, seed=number, turns=TURNS)
            measured = comparison_ratio(comparison)
            predicted = predictor.ratio(groups.widths(widths[number]))
            rows.append(
                {
                    "family": family,
                    "precision": precision,
                    "parameters_ratio": groups.parameters(widths[number]) / groups.parameters({}),
                    "predicted_ratio": predicted,
                    "measured_ratio": measured.value,
                    "measured_interval": [measured.low, measured.high],
                    "error_ratio": abs(predicted / measured.value - 1),
                    "table_seconds": times.seconds,
                    "sample": json.loads(to_json(comparison)),
                }
            )
            click.echo(
                f"{family} {precision}: predicted {predicted:.3f}, measured {measured.value:.3f} "
                f"({measured.low:.3f} to {measured.high:.3f})", err=True,
            )  # fmt: skip
    return rows


def measure_family(family: str, task: str, count: int, root: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Open a family's task as a build does; return the environment and the rows."""
    request = make_request(task, root)
    with (
        Workspace(root).open() as workspace,
        open_build(request, workspace, lambda *_: request.profile.limits, lambda *_: None) as build,
    ):
        return json.loads(to_json(build.environment)), run_family(family, build, count, root)


def compute_figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the claims, and the median error of each family and precision."""
    errors = np.array([row["error_ratio"] for row in rows])
    figures: dict[str, float] = {
        "networks": len(rows),
        "median_error_ratio": float(np.median(errors)),
        "p90_error_ratio": float(np.quantile(errors, 0.9)),
        "max_error_ratio": float(errors.max()),
    }
    for family, precision in dict.fromkeys((row["family"], row["precision"]) for row in rows):
        group = [row["error_ratio"] for row in rows if (row["family"], row["precision"]) == (family, precision)]
        figures[f"{family}_{precision}_median_error_ratio"] = float(np.median(group))
    return figures


@click.command()
@click.option("--quick", is_flag=True, help="One network of each family in each precision.")
@click.option("--json", "out", type=click.Path(path_type=Path, dir_okay=False), required=True)
def main(quick: bool, out: Path) -> None:
    """Predict and measure every network, and write figures, rows and samples."""
    rows: list[dict[str, Any]] = []
    environment: dict[str, Any] = {}
    begin = time.monotonic()
    for family, task in FAMILIES.items():
        root = Path(tempfile.mkdtemp(prefix="predictor-"))
        try:
            environment, family_rows = measure_family(family, task, 1 if quick else NETWORK_COUNT, root)
            rows += family_rows
        finally:
            shutil.rmtree(root, ignore_errors=True)
        samples = [row["sample"] for row in rows]
        rows_without_samples = [{name: value for name, value in row.items() if name != "sample"} for row in rows]
        document = {
            "figures": compute_figures(rows) | {"seconds": time.monotonic() - begin},
            "rows": rows_without_samples,
            "samples": samples,
            "environment": environment,
            "command": shlex.join(["python", *sys.argv]),
        }
        out.write_text(json.dumps(document) + "\n", encoding="utf-8")
    click.echo(json.dumps(compute_figures(rows), indent=1))


if __name__ == "__main__":
    main()
