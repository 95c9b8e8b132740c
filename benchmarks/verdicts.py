"""How often an A/B says "faster" or "slower" of equal files, and how often it finds 5 % more work.

    python benchmarks/verdicts.py [--quick] [--minutes N] --json benchmarks/results/verdicts.json

Claims: ``false_verdict_ratio`` (a model against a byte-copy of itself, at most 0.02), ``found_5_percent_ratio`` (about
one twentieth of its layers added, at least 0.95), ``median_against_bare_loop_ratio`` (the median run of the worker
over that of a plain loop, in turns; the model furthest from 1). Networks of about 0.1, 1 and 30 ms, with and without
another process that multiplies matrices without a pause.

A run goes on where the last one stopped, so ``--minutes`` takes it in pieces. ``samples`` holds for every pair of
processes the fastest run of each turn, which is what the verdict is computed from.
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
from edgeopt.config.profiles import load_profile
from edgeopt.device.local import LocalDevice
from edgeopt.device.process import WorkerProcess
from edgeopt.records.measurement import Comparison
from edgeopt.statistics import comparison_ratio, verdict

NETWORKS = {"0.1 ms": (16, 7, 40, 2), "1 ms": (32, 14, 60, 3), "30 ms": (64, 56, 32, 2)}
"""Channels, height and width, layers, and layers that the slower one has on top (5 to 6 %)."""

REPEATS = {"same": 17, "planted": 8, "bare": 2}
"""Comparisons of each network, with and without other load: 102 of equal files, 48 planted, 12 with a bare loop."""

BUSY = "import numpy\na = numpy.ones((700, 700))\nwhile True:\n    a @ a"
BARE_LOOP = Path(__file__).parent / "bare_loop.py"


class AgainstBareLoop(LocalDevice):
    """A device whose workers are in turn edgeopt's own and the bare loop."""

    def __init__(self) -> None:
        super().__init__()
        self.started = 0

    def start(self) -> WorkerProcess:
        """Start edgeopt's worker, or every second time the loop."""
        self.started += 1
        return super().start() if self.started % 2 else WorkerProcess([sys.executable, str(BARE_LOOP)], {})


def write_network(path: Path, channels: int, size: int, layers: int) -> None:
    """Write a network of equal layers: a 3x3 convolution and Relu."""
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
    """Write each network, a byte-copy of it, and one with more layers."""
    for name, (channels, size, layers, more) in NETWORKS.items():
        write_network(folder / f"{name}.onnx", channels, size, layers)
        shutil.copyfile(folder / f"{name}.onnx", folder / f"{name} same.onnx")
        shutil.copyfile(folder / f"{name}.onnx", folder / f"{name} bare.onnx")
        write_network(folder / f"{name} planted.onnx", channels, size, layers + more)


@contextlib.contextmanager
def other_load(wanted: bool) -> Iterator[None]:
    """Keep another process busy for as long as the block lasts, if wanted."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def run(folder: Path, name: str, kind: str, busy: bool, seed: int) -> dict[str, Any]:
    """Run one comparison; return what it said, and its raw samples."""
    device = AgainstBareLoop() if kind == "bare" else LocalDevice()
    files = folder / f"{name} {kind}.onnx", folder / f"{name}.onnx"
    begin = time.perf_counter()
    with other_load(busy):
        found = compare(*files, device, load_profile("phone"), seed=seed)
    ratio = comparison_ratio(found)
    return {
        "network": name,
        "kind": kind,
        "busy": busy,
        "verdict": verdict(found),
        "ratio": ratio.value,
        "interval": ratio[1:],
        "pairs": len(found.blocks_ns) // found.blocks_per_pair,
        "seconds": time.perf_counter() - begin,
        "median_ns": [float(np.median(np.concatenate(side))) for side in (found.blocks_ns, found.against_blocks_ns)],
        "comparison": msgspec.to_builtins(fastest_of_turns(found)),
    }


def fastest_of_turns(found: Comparison) -> Comparison:
    """Return a comparison with the fastest run of each turn alone; the verdict over it is the same."""
    mine, other = (tuple((min(block),) for block in blocks) for blocks in (found.blocks_ns, found.against_blocks_ns))
    return msgspec.structs.replace(found, blocks_ns=mine, against_blocks_ns=other)


def rows(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each network, kind and load."""
    found = []
    for name, kind, busy in {(s["network"], s["kind"], s["busy"]): None for s in samples}:
        some = [s for s in samples if (s["network"], s["kind"], s["busy"]) == (name, kind, busy)]
        found.append(
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
    return sorted(found, key=lambda row: (row["kind"], float(row["network"].split()[0]), row["busy"]))


def figures(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the claims."""

    def share(kind: str, words: tuple[str, ...]) -> float | None:
        some = [s["verdict"] in words for s in samples if s["kind"] == kind]
        return float(np.mean(some)) if some else None

    bare = [
        float(np.median([s["median_ns"][0] / s["median_ns"][1] for s in samples if key(s) == ("bare", name)]))
        for name in NETWORKS
        if any(key(s) == ("bare", name) for s in samples)
    ]
    return {
        "false_verdict_ratio": share("same", ("faster", "slower")),
        "found_5_percent_ratio": share("planted", ("slower",)),
        "median_against_bare_loop_ratio": max(bare, key=lambda ratio: abs(ratio - 1), default=None),
        "equal_files_compared": sum(s["kind"] == "same" for s in samples),
        "planted_compared": sum(s["kind"] == "planted" for s in samples),
    }


def key(sample: dict[str, Any]) -> tuple[str, str]:
    """Return a comparison's kind and network."""
    return sample["kind"], sample["network"]


def plan(quick: bool) -> Iterator[tuple[str, str, bool, int]]:
    """Yield network, kind, load and seed of every comparison, so that any beginning of them is balanced."""
    for repeat in range(1 if quick else max(REPEATS.values())):
        for kind, repeats in REPEATS.items():
            if repeat < repeats:
                for name in NETWORKS:
                    yield from ((name, kind, busy, repeat) for busy in (False, True))


@click.command()
@click.option("--quick", is_flag=True, help="One comparison of each kind.")
@click.option("--minutes", type=float, default=float("inf"), help="Stop after so long; the next run goes on.")
@click.option("--json", "out", type=click.Path(path_type=Path), required=True)
def main(quick: bool, minutes: float, out: Path) -> None:
    """Run what is not in the file yet, and write figures, rows and samples."""
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
            samples.append({**run(Path(name), network, kind, busy, seed), "seed": seed})
            result = {
                "figures": figures(samples),
                "rows": rows(samples),
                "samples": samples,
                "environment": environment,
                "command": f"python {shlex.join(sys.argv)}",
            }
            part = out.with_suffix(".part")
            part.write_text(json.dumps(result))
            part.replace(out)
    print(json.dumps({"figures": figures(samples), "rows": rows(samples)}, indent=1))


if __name__ == "__main__":
    main()
