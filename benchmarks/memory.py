"""Whether the peaks of memory that edgeopt reports are what a network of known weights and activations must use.

    python benchmarks/memory.py [--quick] --json benchmarks/results/memory.json

Claim: ``worst_error_ratio``, the largest relative difference between a measured peak (loading, running) and the bytes
that the network cannot do without, over networks from mostly weights to mostly activations.

Each network multiplies its input by its weights one after the other, in place; makes some tensors from the result that
are all alive at once; and concatenates them. What must be there:

- loading: all weights, and one of them twice, as they are copied one by one from the file that was read;
- running: the weights, the input, the tensors, and their concatenation;
- running with ONNX Runtime's arena: tensors and concatenation once more, as the arena keeps what the first run took
  beside the block that is planned for all later ones.

- loading from an ``.ort`` whose weights stay in the file: none of them; running then has them from the file.

What a session needs beside (kernels, the graph) is measured on the same network a thousand times smaller, and added.
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
from edgeopt.config.profiles import load_profile
from edgeopt.device.local import LocalDevice
from edgeopt.records.measurement import Memory

SMALLER = 1000
MEGABYTE = 1_000_000


class Network(NamedTuple):
    """A synthetic network; all its tensors have ``tensor_bytes``."""

    weights: int
    alive: int
    tensor_bytes: int

    def load_bytes(self) -> int:
        """Return what is there when the last weight is copied."""
        return (self.weights + 1) * self.tensor_bytes

    def run_bytes(self, arena: bool) -> int:
        """Return what is there when it concatenates."""
        return (self.weights + 1 + 2 * self.alive * (2 if arena else 1)) * self.tensor_bytes

    def write(self, path: Path) -> None:
        """Write it as ONNX."""
        size = self.tensor_bytes // 4
        rng, nodes, stored, last = np.random.default_rng(0), [], [], "x"
        for index in range(self.weights):
            stored.append(numpy_helper.from_array(rng.standard_normal(size, np.float32), f"w{index}"))
            nodes.append(helper.make_node("Mul", [last, f"w{index}"], [f"m{index}"]))
            last = f"m{index}"
        for index in range(self.alive):
            stored.append(numpy_helper.from_array(np.array(index, np.float32), f"s{index}"))
            nodes.append(helper.make_node("Add", [last, f"s{index}"], [f"a{index}"]))
        nodes.append(helper.make_node("Concat", [f"a{index}" for index in range(self.alive)], ["c"], axis=0))
        nodes.append(helper.make_node("ReduceMax", ["c"], ["y"], axes=[1], keepdims=1))
        ends = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            for name, shape in (("x", [1, size]), ("y", [self.alive, 1]))
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


def weighed(network: Network, folder: Path, arena: bool) -> Memory:
    """Return the peaks as edgeopt measures them."""
    path = folder / "network.onnx"
    network.write(path)
    profile = msgspec.structs.replace(load_profile("phone"), memory_arena=arena)
    request = runtime_request("memory", str(path), profile, allow_fallback=())
    found = measure_memory(LocalDevice(), request, "memory", lambda _text: None)
    if found is None:
        raise click.ClickException("this system does not tell peaks of memory")
    return found


def row(name: str, network: Network, folder: Path, arena: bool) -> dict[str, Any]:
    """Weigh a network and its small twin, and hold the peaks against what must be there."""
    found = weighed(network, folder, arena)
    twin = weighed(network._replace(tensor_bytes=network.tensor_bytes // SMALLER), folder, arena)
    load, run = network.load_bytes() + twin.load_peak_bytes, network.run_bytes(arena) + twin.run_peak_bytes
    return {
        "network": name,
        "arena": arena,
        "weight_bytes": network.weights * network.tensor_bytes,
        "known_load_bytes": load,
        "known_run_bytes": run,
        "load_error_ratio": found.load_peak_bytes / load - 1,
        "run_error_ratio": found.run_peak_bytes / run - 1,
        "measured": msgspec.to_builtins(found),
        "small_twin": msgspec.to_builtins(twin),
    }


def modes_of(network: Network, folder: Path, processes: int) -> tuple[MemoryMode, ...]:
    """Return the peaks in every mode."""
    path = folder / "network.onnx"
    network.write(path)
    found = measure_memory_modes(path, LocalDevice(), load_profile("phone"), batch_size=1, allow_fallback=(), inputs=None,
                        processes=processes, progress=lambda _text: None)  # fmt: skip
    if found is None:
        raise click.ClickException("this system does not tell peaks of memory")
    return found


def mode_rows(name: str, network: Network, folder: Path, processes: int) -> list[dict[str, Any]]:
    """Weigh a network and its small twin in every mode, and hold the peaks against what must be there."""
    twins = modes_of(network._replace(tensor_bytes=network.tensor_bytes // SMALLER), folder, processes)
    rows = []
    for found, twin in zip(modes_of(network, folder, processes), twins, strict=True):
        stored, mapped = network.weights * network.tensor_bytes, found.weights == "mapped"
        whole = twin.load_peak_bytes + network.load_bytes()
        load = twin.load_peak_bytes if mapped else whole
        run = twin.run_peak_bytes + network.run_bytes(found.memory_arena)
        rows.append(
            {
                "network": name,
                "mode": {key: getattr(found, key) for key in ("memory_arena", "prepacking", "weights")},
                "load_error_ratio": (found.load_peak_bytes - found.load_mapped_bytes - load)
                / (twin.load_peak_bytes + network.load_bytes()),
                "run_error_ratio": found.run_peak_bytes / run - 1,
                "mapped_error_ratio": (found.run_mapped_bytes - stored * mapped) / stored,
                "measured": msgspec.to_builtins(found),
                "small_twin": msgspec.to_builtins(twin),
            }
        )
    return rows


@click.command()
@click.option("--quick", is_flag=True, help="One network.")
@click.option("--json", "out", type=click.Path(path_type=Path), required=True)
def main(quick: bool, out: Path) -> None:
    """Weigh every network, print the rows, and write figures and raw results."""
    names = ["both"] if quick else list(NETWORKS)
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(name, NETWORKS[name], Path(folder), arena) for arena in (False, True) for name in names]
        modes = [found for name in names for found in mode_rows(name, NETWORKS[name], Path(folder), PROCESSES)]
    worst_mode = max(abs(found[key]) for found in modes for key in found if key.endswith("error_ratio"))
    errors = [abs(r[key]) for r in rows for key in ("load_error_ratio", "run_error_ratio")]
    samples = [{key: r.pop(key) for key in ("measured", "small_twin")} for r in rows]
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
