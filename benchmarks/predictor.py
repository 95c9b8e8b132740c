"""How far predicted latencies of pruned networks are from measured ones.

    python benchmarks/predictor.py [--quick] --json benchmarks/results/predictor.json

Claims: ``networks`` (held out, each pruned and exported like a candidate of a build), ``median_error_ratio`` and
``p90_error_ratio`` of the predicted latency, relative to the original in the same precision; the truth is the
interleaved A/B against the original. Three families: the residual network of the default task, a depthwise one, one
with squeeze and excitation. Each network is at random widths, half of them in fp32, half in int8.
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
NETWORKS = 7
"""Of each family in each precision."""
LEAST_RATIO = 0.15
TURNS = ComparisonTurns(pairs=6, pair_seconds=0.3)
SEED = 7
"""Other than what draws the table's probes."""


def request(task: str, workspace: Path) -> BuildRequest:
    """Return what opens a task as a build does."""
    return BuildRequest(
        task=task, data=None, profile=load_profile("phone"), device="local:", out=str(workspace / "out"),
        workspace=str(workspace), allow_fallback=(), workers=1, time_limit_seconds=None, quick=False, more=False,
        command=(),
    )  # fmt: skip


def random_widths(groups: GroupTable, step: int, rng: np.random.Generator) -> dict[str, int]:
    """Return widths as candidates have them: a share for the whole network, and each group's around it."""
    center = rng.uniform(LEAST_RATIO, 0.9)
    widths = {}
    for group in groups.free:
        share = float(np.clip(center * rng.uniform(0.6, 1.4), LEAST_RATIO, 1.0))
        widths[group.name] = min(group.channels, max(1, round(group.channels * share / step)) * step)
    return widths


def exported_at(build: Build, exported: ExportedFile, widths: list[dict[str, int]], folder: Path) -> list[Path]:
    """Prune and export the original at these widths, by the exporter that made the original's file."""
    paths = [folder / f"held-out-{number}.onnx" for number in range(len(widths))]
    job = protocol.ProbeJob(
        exporter=exported.exporter,
        widths=tuple(widths),
        outs=tuple(map(str, paths)),
        max_opset=build.profile.max_opset,
        max_ir=build.profile.max_ir,
    )
    build.trainers.do(job, protocol.ProbeDone)
    return paths


def finished(build: Build, source: Path, target: Path, precision: Precision) -> Path:
    """Take an exported file through the graph steps of a candidate."""
    apply_steps(graph_steps(precision, build.profile), source, target, calibration=build.data.calibration_file(256),
                max_opset=build.profile.max_opset, max_ir=build.profile.max_ir)  # fmt: skip
    return target


def run_family(family: str, build: Build, count: int, folder: Path) -> list[dict[str, Any]]:
    """Predict and measure ``count`` networks in each precision."""
    search = start(build)
    groups, _ = group_table_of(build, search.original, importance_of(build))
    rng = np.random.default_rng(SEED)
    widths = [random_widths(groups, build.profile.channel_step, rng) for _ in range(count * len(PRECISIONS))]
    files = exported_at(build, search.exported, widths, folder)
    original = build.workspace.artifact(search.exported.sha256)
    rows: list[dict[str, Any]] = []
    for place, precision in enumerate(PRECISIONS):
        times = latency_table(build, groups, search.exported, precision)
        if isinstance(times, NoLatencyTable):
            raise click.ClickException(f"{family} in {precision} has no latency table: {times.reason}")
        predictor = Predictor(times)
        parent = finished(build, original, folder / f"parent-{precision}.onnx", precision)
        for number in range(place, len(files), len(PRECISIONS)):
            model = finished(build, files[number], folder / f"{number}-{precision}.onnx", precision)
            ab = compare(
                model, parent, build.connection, build.profile, seed=number, turns=TURNS,
                inputs=build.data.timing_inputs(1),
            )  # fmt: skip
            measured = comparison_ratio(ab)
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
                    "sample": json.loads(to_json(ab)),
                }
            )
            click.echo(
                f"{family} {precision}: predicted {predicted:.3f}, measured {measured.value:.3f} "
                f"({measured.low:.3f} to {measured.high:.3f})", err=True,
            )  # fmt: skip
    return rows


def measured_family(family: str, task: str, count: int, root: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Open a family's task as a build does; return the environment and the rows."""
    asked = request(task, root)
    with (
        Workspace(root).open() as workspace,
        open_build(asked, workspace, lambda _: asked.profile.limits, lambda *_: None) as build,
    ):
        return json.loads(to_json(build.environment)), run_family(family, build, count, root)


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the claims, and the same for each family and precision."""
    errors = np.array([row["error_ratio"] for row in rows])
    found: dict[str, float] = {
        "networks": len(rows),
        "median_error_ratio": float(np.median(errors)),
        "p90_error_ratio": float(np.quantile(errors, 0.9)),
        "max_error_ratio": float(errors.max()),
    }
    for family, precision in dict.fromkeys((row["family"], row["precision"]) for row in rows):
        part = [row["error_ratio"] for row in rows if (row["family"], row["precision"]) == (family, precision)]
        found[f"{family}_{precision}_median_error_ratio"] = float(np.median(part))
    return found


@click.command()
@click.option("--quick", is_flag=True, help="One network of each family in each precision.")
@click.option("--json", "out", type=click.Path(path_type=Path, dir_okay=False), required=True)
def main(quick: bool, out: Path) -> None:
    """Measure everything and write the JSON."""
    rows: list[dict[str, Any]] = []
    environment: dict[str, Any] = {}
    begin = time.monotonic()
    for family, task in FAMILIES.items():
        root = Path(tempfile.mkdtemp(prefix="predictor-"))
        try:
            environment, found = measured_family(family, task, 1 if quick else NETWORKS, root)
            rows += found
        finally:
            shutil.rmtree(root, ignore_errors=True)
        samples = [row["sample"] for row in rows]
        plain = [{name: value for name, value in row.items() if name != "sample"} for row in rows]
        document = {
            "figures": figures(rows) | {"seconds": time.monotonic() - begin},
            "rows": plain,
            "samples": samples,
            "environment": environment,
            "command": shlex.join(["python", *sys.argv]),
        }
        out.write_text(json.dumps(document) + "\n", encoding="utf-8")
    click.echo(json.dumps(figures(rows), indent=1))


if __name__ == "__main__":
    main()
