"""Count how often an A/B calls equal files "faster" or "slower", and how often it detects 5 % more work.

    python benchmarks/verdicts.py [--quick] [--minutes N] --json benchmarks/results/verdicts.json

Claims: ``false_verdict_ratio`` (a model against a copy of its file; at most 0.02), ``found_5_percent_ratio`` (a model
with about 5 % more layers; at least 0.95), ``median_against_bare_loop_ratio`` (edgeopt's worker and a plain loop take
turns; its median run time over the loop's, for the model with the ratio furthest from 1). The networks take about 0.1,
1 and 30 ms, with and without another process that multiplies matrices all the time.

A run continues where the last one stopped, so ``--minutes`` can split it. For every pair of processes, ``samples`` has
the fastest run of each turn; the verdict is computed from these.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeopt.bench.compare import compare
from edgeopt.bench.run_target import RunTarget
from edgeopt.config.profiles import load_profile
from edgeopt.device.local import LocalDevice
from edgeopt.device.process import WorkerProcess
from edgeopt.records.measurement import Comparison
from edgeopt.statistics import comparison_ratio, verdict

NETWORKS = {"0.1 ms": (16, 7, 40, 2), "1 ms": (32, 14, 60, 3), "30 ms": (64, 56, 32, 2)}
"""Channels, height and width, layers, and extra layers of the slower network (5 to 6 %)."""

REPEAT_COUNTS = {"same": 17, "planted": 8, "bare": 2}
"""Comparisons of each network with and without load. In total: 102 of equal files, 48 with more layers, 12 with a bare
loop."""

LOAD_CODE = "import numpy\na = numpy.ones((700, 700))\nwhile True:\n    a @ a"
BARE_LOOP = Path(__file__).parent / "bare_loop.py"


class BareLoopDevice(LocalDevice):
    """A device that starts edgeopt's worker and the bare loop alternately."""

    def __init__(self) -> None:
        super().__init__()
        self.started_count = 0

    def start(self) -> WorkerProcess:
        """Start edgeopt's worker, or the bare loop every second time."""
        self.started_count += 1
        return super().start() if self.started_count % 2 else WorkerProcess([sys.executable, str(BARE_LOOP)], {})


def write_network(path: Path, channels: int, size: int, layers: int) -> None:
    """Write a network of equal layers, each a 3x3 convolution and a Relu."""
    rng, nodes, weights = np.random.default_rng(0), [], []
    for layer in range(layers):
        values = rng.standard_normal((channels, channels, 3, 3)) / np.sqrt(4.5 * channels)
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"w{layer}"))
        nodes.append(helper.make_node("Conv", [f"x{layer}", f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"x{layer + 1}"]))
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", channels, size, size])
        for name in ("x0", f"x{layers}")
    ]
    graph = helper.make_graph(nodes, "layers", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def write_networks(folder: Path) -> None:
    """Write each network, two copies of its file, and the network with more layers."""
    for name, (channels, size, layers, extra_layers) in NETWORKS.items():
        write_network(folder / f"{name}.onnx", channels, size, layers)
        shutil.copyfile(folder / f"{name}.onnx", folder / f"{name} same.onnx")
        shutil.copyfile(folder / f"{name}.onnx", folder / f"{name} bare.onnx")
        write_network(folder / f"{name} planted.onnx", channels, size, layers + extra_layers)


@contextlib.contextmanager
def load_machine(busy: bool) -> Iterator[None]:
    """Keep another process busy during the block, if ``busy``."""
    if not busy:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", LOAD_CODE])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def run_comparison(folder: Path, name: str, kind: str, busy: bool, seed: int) -> dict[str, Any]:
    """Run one comparison, and return its verdict and raw samples."""
    device = BareLoopDevice() if kind == "bare" else LocalDevice()
    files = folder / f"{name} {kind}.onnx", folder / f"{name}.onnx"
    begin = time.perf_counter()
    target = RunTarget(device=device, profile=load_profile("phone"), kind="measured")
    with load_machine(busy):
        comparison = compare(*files, target, seed=seed)
    ratio = comparison_ratio(comparison)
    sides = (comparison.blocks_ns, comparison.against_blocks_ns)
    return {
        "network": name,
        "kind": kind,
        "busy": busy,
        "verdict": verdict(comparison),
        "ratio": ratio.value,
        "interval": ratio[1:],
        "pairs": len(comparison.blocks_ns) // comparison.blocks_per_pair,
        "seconds": time.perf_counter() - begin,
        "median_ns": [float(np.median(np.concatenate(blocks))) for blocks in sides],
        "comparison": msgspec.to_builtins(keep_fastest_runs(comparison)),
    }


def keep_fastest_runs(comparison: Comparison) -> Comparison:
    """Return a comparison with only the fastest run of each turn; its verdict is the same."""
    sides = (comparison.blocks_ns, comparison.against_blocks_ns)
    fastest, against_fastest = (tuple((min(block),) for block in blocks) for blocks in sides)
    return msgspec.structs.replace(comparison, blocks_ns=fastest, against_blocks_ns=against_fastest)


def make_rows(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each network, kind and load."""
    rows = []
    for name, kind, busy in {(s["network"], s["kind"], s["busy"]): None for s in samples}:
        some = [s for s in samples if (s["network"], s["kind"], s["busy"]) == (name, kind, busy)]
        rows.append(
            {
                "network": name,
                "kind": kind,
                "busy": busy,
                "comparisons": len(some),
                "verdicts": {word: sum(s["verdict"] == word for s in some) for word in ("faster", "slower")},
                "median_ratio": float(np.median([s["ratio"] for s in some])),
                "median_runs_ratio": float(np.median([s["median_ns"][0] / s["median_ns"][1] for s in some])),
                "median_ms": float(np.median([s["median_ns"][1] for s in some])) / 1e6,
                "mean_pairs": float(np.mean([s["pairs"] for s in some])),
                "mean_seconds": float(np.mean([s["seconds"] for s in some])),
            }
        )
    return sorted(rows, key=lambda row: (row["kind"], float(row["network"].split()[0]), row["busy"]))


def compute_figures(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the claims."""

    def verdict_ratio(kind: str, words: tuple[str, ...]) -> float | None:
        matches = [s["verdict"] in words for s in samples if s["kind"] == kind]
        return float(np.mean(matches)) if matches else None

    bare: dict[str, list[float]] = {}
    for sample in samples:
        if sample["kind"] == "bare":
            median_ns, against_median_ns = sample["median_ns"]
            bare.setdefault(sample["network"], []).append(median_ns / against_median_ns)
    bare_medians = [float(np.median(bare[name])) for name in NETWORKS if name in bare]
    return {
        "false_verdict_ratio": verdict_ratio("same", ("faster", "slower")),
        "found_5_percent_ratio": verdict_ratio("planted", ("slower",)),
        "median_against_bare_loop_ratio": max(bare_medians, key=lambda ratio: abs(ratio - 1), default=None),
        "equal_files_compared": sum(s["kind"] == "same" for s in samples),
        "planted_compared": sum(s["kind"] == "planted" for s in samples),
    }


def plan(quick: bool) -> Iterator[tuple[str, str, bool, int]]:
    """Yield network, kind, load and seed of every comparison, in an order that is balanced if it stops early."""
    for repeat in range(1 if quick else max(REPEAT_COUNTS.values())):
        for kind, repeat_count in REPEAT_COUNTS.items():
            if repeat < repeat_count:
                for name in NETWORKS:
                    yield from ((name, kind, busy, repeat) for busy in (False, True))


@click.command()
@click.option("--quick", is_flag=True, help="One comparison of each kind.")
@click.option("--minutes", type=float, default=float("inf"), help="Stop after this time; the next run continues.")
@click.option("--json", "out", type=click.Path(path_type=Path), required=True)
def main(quick: bool, minutes: float, out: Path) -> None:
    """Run the comparisons that are not in the file yet, and write figures, rows and samples."""
    samples = json.loads(out.read_text())["samples"] if out.exists() else []
    done = {(s["network"], s["kind"], s["busy"], s["seed"]) for s in samples}
    environment = msgspec.to_builtins(LocalDevice().describe()[1])
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as name:
        write_networks(Path(name))
        for network, kind, busy, seed in plan(quick):
            if time.monotonic() > end:
                break
            if (network, kind, busy, seed) in done:
                continue
            samples.append({**run_comparison(Path(name), network, kind, busy, seed), "seed": seed})
            result = {
                "figures": compute_figures(samples),
                "rows": make_rows(samples),
                "samples": samples,
                "environment": environment,
                "command": f"python {shlex.join(sys.argv)}",
            }
            part = out.with_suffix(".part")
            part.write_text(json.dumps(result))
            part.replace(out)
    print(json.dumps({"figures": compute_figures(samples), "rows": make_rows(samples)}, indent=1))


if __name__ == "__main__":
    main()
