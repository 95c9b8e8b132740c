"""Compare reported memory peaks with the bytes that networks of known weights and activations need.

    python benchmarks/memory.py [--quick] --json benchmarks/results/memory.json

Claim: ``worst_error_ratio``, the largest relative difference between a measured peak (loading, running) and the bytes
that the network needs, over networks from mostly weights to mostly activations.

Each network multiplies its input by one weight after another, in place. From the result it makes some tensors that are
all live at the same time, and concatenates them. The bytes that it needs:

- loading: all weights, and one of them twice, because they are copied one by one from the file in memory;
- running: the weights, the input, the tensors and their concatenation;
- running with ONNX Runtime's arena: the tensors and their concatenation twice, because the arena keeps the blocks of
  the first run next to the block that it plans for all later runs;
- loading from an ``.ort`` file whose weights are mapped: no weights; a run then reads them from the file.

A session's other memory (kernels, the graph) is measured on the same network with tensors a thousand times smaller, and
added.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeopt.bench.memory import PROCESSES, measure_memory
from edgeopt.bench.memory_modes import MemoryMode, measure_memory_modes
from edgeopt.bench.requests import runtime_request
from edgeopt.bench.run_target import RunTarget
from edgeopt.config.profiles import load_profile
from edgeopt.device.local import LocalDevice
from edgeopt.records.measurement import Memory

SMALL_DIVISOR = 1000
MEGABYTE = 1_000_000
NO_PEAKS = "this system does not report peaks of memory"


class Network(NamedTuple):
    """A synthetic network; all its tensors have ``tensor_bytes``."""

    weights: int
    live_tensors: int
    tensor_bytes: int

    def small(self) -> Network:
        """Return the same network with tensors that hardly count."""
        return self._replace(tensor_bytes=self.tensor_bytes // SMALL_DIVISOR)

    def load_bytes(self) -> int:
        """Return the bytes in use while the last weight is copied."""
        return (self.weights + 1) * self.tensor_bytes

    def run_bytes(self, arena: bool) -> int:
        """Return the bytes in use while it concatenates."""
        return (self.weights + 1 + 2 * self.live_tensors * (2 if arena else 1)) * self.tensor_bytes

    def write(self, path: Path) -> None:
        """Write the network as ONNX."""
        size = self.tensor_bytes // 4
        rng, nodes, stored, last = np.random.default_rng(0), [], [], "x"
        for index in range(self.weights):
            stored.append(numpy_helper.from_array(rng.standard_normal(size, np.float32), f"w{index}"))
            nodes.append(helper.make_node("Mul", [last, f"w{index}"], [f"m{index}"]))
            last = f"m{index}"
        for index in range(self.live_tensors):
            stored.append(numpy_helper.from_array(np.array(index, np.float32), f"s{index}"))
            nodes.append(helper.make_node("Add", [last, f"s{index}"], [f"a{index}"]))
        nodes.append(helper.make_node("Concat", [f"a{index}" for index in range(self.live_tensors)], ["c"], axis=0))
        nodes.append(helper.make_node("ReduceMax", ["c"], ["y"], axes=[1], keepdims=1))
        ends = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            for name, shape in (("x", [1, size]), ("y", [self.live_tensors, 1]))
        ]
        graph = helper.make_graph(nodes, "known", ends[:1], ends[1:], stored)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


NETWORKS = {
    "weights": Network(16, 1, 4 * MEGABYTE),
    "both": Network(12, 4, 4 * MEGABYTE),
    "activations": Network(2, 8, 4 * MEGABYTE),
    "few large tensors": Network(4, 2, 16 * MEGABYTE),
    "many small tensors": Network(64, 32, MEGABYTE),
}


def measure_peaks(network: Network, folder: Path, arena: bool) -> Memory:
    """Measure the peaks as edgeopt does."""
    path = folder / "network.onnx"
    network.write(path)
    profile = msgspec.structs.replace(load_profile("phone"), memory_arena=arena)
    request = runtime_request("memory", path, RunTarget(device=LocalDevice(), profile=profile, kind="measured"))
    memory = measure_memory(LocalDevice(), request, "memory", lambda _text: None)
    if memory is None:
        raise click.ClickException(NO_PEAKS)
    return memory


def compare_peaks(name: str, network: Network, folder: Path, arena: bool) -> dict[str, Any]:
    """Measure a network and its small version, and compare the peaks with the bytes that the network needs."""
    memory = measure_peaks(network, folder, arena)
    small = measure_peaks(network.small(), folder, arena)
    load, run = network.load_bytes() + small.load_peak_bytes, network.run_bytes(arena) + small.run_peak_bytes
    return {
        "network": name,
        "arena": arena,
        "weight_bytes": network.weights * network.tensor_bytes,
        "known_load_bytes": load,
        "known_run_bytes": run,
        "load_error_ratio": memory.load_peak_bytes / load - 1,
        "run_error_ratio": memory.run_peak_bytes / run - 1,
        "measured": msgspec.to_builtins(memory),
        "small_network": msgspec.to_builtins(small),
    }


def measure_modes(network: Network, folder: Path, processes: int) -> tuple[MemoryMode, ...]:
    """Measure the peaks in every mode."""
    path = folder / "network.onnx"
    network.write(path)
    target = RunTarget(device=LocalDevice(), profile=load_profile("phone"), kind="measured")
    modes = measure_memory_modes(path, target, processes=processes, progress=lambda _text: None)
    if modes is None:
        raise click.ClickException(NO_PEAKS)
    return modes


def compare_mode_peaks(name: str, network: Network, folder: Path, processes: int) -> list[dict[str, Any]]:
    """Measure a network and its small version in every mode, and compare the peaks with the bytes that it needs."""
    small_modes = measure_modes(network.small(), folder, processes)
    rows = []
    for mode, small in zip(measure_modes(network, folder, processes), small_modes, strict=True):
        weight_bytes, mapped = network.weights * network.tensor_bytes, mode.weights == "mapped"
        copied_load = small.load_peak_bytes + network.load_bytes()
        load = small.load_peak_bytes if mapped else copied_load
        run = small.run_peak_bytes + network.run_bytes(mode.memory_arena)
        rows.append(
            {
                "network": name,
                "mode": {key: getattr(mode, key) for key in ("memory_arena", "prepacking", "weights")},
                "load_error_ratio": (mode.load_peak_bytes - mode.load_mapped_bytes - load) / copied_load,
                "run_error_ratio": mode.run_peak_bytes / run - 1,
                "mapped_error_ratio": (mode.run_mapped_bytes - weight_bytes * mapped) / weight_bytes,
                "measured": msgspec.to_builtins(mode),
                "small_network": msgspec.to_builtins(small),
            }
        )
    return rows


@click.command()
@click.option("--quick", is_flag=True, help="One network.")
@click.option("--json", "out", type=click.Path(path_type=Path), required=True)
def main(quick: bool, out: Path) -> None:
    """Measure every network, print the rows, and write figures and raw results."""
    names = ["both"] if quick else list(NETWORKS)
    with tempfile.TemporaryDirectory() as folder:
        rows = [compare_peaks(name, NETWORKS[name], Path(folder), arena) for arena in (False, True) for name in names]
        modes = [mode for name in names for mode in compare_mode_peaks(name, NETWORKS[name], Path(folder), PROCESSES)]
    worst_mode = max(abs(mode[key]) for mode in modes for key in mode if key.endswith("error_ratio"))
    errors = [abs(row[key]) for row in rows for key in ("load_error_ratio", "run_error_ratio")]
    samples = [{key: row.pop(key) for key in ("measured", "small_network")} for row in rows]
    result = {
        "figures": {"worst_error_ratio": max(errors), "worst_error_ratio_of_modes": worst_mode, "networks": len(names)},
        "modes": modes,
        "rows": rows,
        "samples": samples,
        "environment": msgspec.to_builtins(LocalDevice().describe()[1]),
        "command": f"python {shlex.join(sys.argv)}",
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1))
    print(json.dumps({"figures": result["figures"], "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
