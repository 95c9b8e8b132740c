"""Of how many architectures a latency table can be made: their files at any widths are sliced out of the original's.

    python benchmarks/latency_tables.py [--quick] [--only NAME ...] [--add]
        --json benchmarks/results/latency_tables.json

Every architecture of the coverage benchmark is exported at its own widths and at others, as a build does, and its files
with all and with half of each group's channels have to run under ONNX Runtime. Nothing is timed. Without a table a
build chooses widths by counted work. Files are in float32: int8 files differ in what is quantized, not in sizes.

Figures: ``architectures`` (those with channels that can go), ``tables``, and ``without``: the others, with the reason.
"""

from __future__ import annotations

import json
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import onnx
import onnxruntime as ort
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from benchmarks.zoo.architecture import Architecture
from benchmarks.zoo.every import EVERY
from edgeopt.errors import EdgeoptError
from edgeopt.export.to_onnx import export
from edgeopt.graph.apply import apply_steps
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.importance import score_channels
from edgeopt.passes.prune.rewrite import prune
from edgeopt.passes.prune.table import build_group_table
from edgeopt.pipeline.artifacts.latency_table import learn_template
from edgeopt.records.recipe import Importance, Simplify

MAX_OPSET, MAX_IR = 20, 10
ORT_ERRORS = (ort_errors.Fail, ort_errors.InvalidGraph, ort_errors.InvalidArgument, ort_errors.RuntimeException)
QUICK = ("resnet18", "bert", "gpt", "densenet", "yolo")
Row = dict[str, Any]


def try_one(name: str, architecture: Architecture, folder: Path) -> Row:
    """Return the row of an architecture: whether it has channels that can go, and why it has no table."""
    start = time.perf_counter()
    torch.manual_seed(0)
    row: Row = {"name": name, "groups": None, "failure": None}
    try:
        module, inputs = architecture.build()
        network = Network.trace(module.eval(), inputs)
        groups = analyse(network)
        scores = score_channels(network, groups, Importance(method="l2"), None, None)
        table = build_group_table(network, groups, scores, network.example_inputs)
        row["groups"] = len(table.free)
        if table.free:

            def teach(widths: Sequence[dict[str, int]]) -> list[onnx.ModelProto]:
                keep = [{group: range(width) for group, width in one.items()} for one in widths]
                return [
                    write(prune(network, groups, one), folder / f"{number}.onnx") for number, one in enumerate(keep)
                ]

            template = learn_template(table, teach).template
            half = {group.name: max(group.least, (group.channels + 1) // 2) for group in table.free}
            for widths in (table.widths(), table.widths() | half):
                run(template.at(widths), network.example_inputs)
    except (EdgeoptError, *ORT_ERRORS) as error:
        row["failure"] = str(error)[:300]
    return row | {"seconds": time.perf_counter() - start}


def write(network: Network, path: Path) -> onnx.ModelProto:
    """Return a network's simplified file."""
    inputs = network.example_inputs
    (output,) = (node for node in network.eval_module.graph.nodes if node.op == "output")
    names = [f"output_{index}" for index in range(len(output.all_input_nodes))]
    export(
        network.eval_module, inputs, path, input_names=[f"input_{index}" for index in range(len(inputs))],
        output_names=names, max_opset=MAX_OPSET, max_ir=MAX_IR,
    )  # fmt: skip
    made = path.with_suffix(".simplified.onnx")
    apply_steps((Simplify(),), path, made, calibration=None, max_opset=MAX_OPSET, max_ir=MAX_IR)
    return onnx.load(made)


def run(model: onnx.ModelProto, inputs: Sequence[torch.Tensor]) -> None:
    """Run a file once."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    arrays = {f"input_{index}": value.numpy() for index, value in enumerate(inputs)}
    session.run(None, {one.name: arrays[one.name] for one in session.get_inputs()})


def compute_figures(rows: Sequence[Row]) -> Row:
    """Return the claims."""
    prunable = [row for row in rows if row["groups"]]
    return {
        "architectures": len(prunable),
        "tables": sum(row["failure"] is None for row in prunable),
        "without": {row["name"]: row["failure"] for row in prunable if row["failure"]},
        "not_analysed": {row["name"]: row["failure"] for row in rows if row["groups"] is None},
    }


@click.command()
@click.option("--quick", is_flag=True, help=f"Only {', '.join(QUICK)}.")
@click.option("--only", "names", multiple=True, type=click.Choice(list(EVERY)), help="Only these architectures.")
@click.option("--add", is_flag=True, help="Keep the rows that the file has.")
@click.option("--json", "out", type=click.Path(path_type=Path), required=True, help="File for figures and rows.")
def main(quick: bool, names: tuple[str, ...], add: bool, out: Path) -> None:
    """Make a file at half of the channels of every architecture."""
    torch.set_num_threads(1)
    wanted = names or (QUICK if quick else tuple(EVERY))
    rows: list[Row] = json.loads(out.read_text())["rows"] if add and out.exists() else []
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        for name in wanted:
            rows = [row for row in rows if row["name"] != name]
            rows.append(try_one(name, EVERY[name], Path(folder)))
            click.echo(f"{name}: {rows[-1]['failure'] or 'ok'}", err=True)
            document = {
                "figures": compute_figures(rows),
                "rows": rows,
                "command": shlex.join(["python", "benchmarks/latency_tables.py", *sys.argv[1:]]),
                "machine": f"{platform.machine()}, torch {torch.__version__}, onnxruntime {ort.__version__}",
            }
            out.write_text(json.dumps(document, indent=1) + "\n")
    click.echo(json.dumps(compute_figures(rows), indent=1))


if __name__ == "__main__":
    main()
