"""Node times: several files of one network in turns under ONNX Runtime's profiler, on one device."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edgeopt.bench.requests import run_request, runtime_request
from edgeopt.device.base import Device
from edgeopt.records.base import Record
from edgeopt.records.profile import Profile

_STAGE = "latency table"


class ProfilingTurns(Record, frozen=True, kw_only=True):
    """How long each file runs."""

    rounds: int = 5
    """Turns of each file: the machine's speed changes within seconds, and the median over rounds does not."""
    seconds: float = 0.02
    """Of one turn without the profiler, and of one with it."""
    min_runs: int = 5
    warmup_runs: int = 3
    budget_seconds: float = 30.0
    """No further turn begins after this, but for the first files."""
    min_models: int = 6
    """First files that are timed however long it takes."""


DEFAULT_PROFILING_TURNS = ProfilingTurns()
LONG_PROFILING_TURNS = ProfilingTurns(rounds=3, seconds=0.1, budget_seconds=15.0, min_models=2)
"""For people who look at one file or two."""


class NodeTime(NamedTuple):
    """One node of a file."""

    name: str
    operator: str
    inputs: list[list[int]]
    outputs: list[list[int]]
    ns: float
    """Until the next node starts."""
    provider: str = ""
    """The execution provider that ran it."""


class FileTime(NamedTuple):
    """One file."""

    file: int
    """Its place among the files given."""
    ns: float
    """Of a whole run without the profiler: CPU time on one thread of the processor, wall time elsewhere."""
    nodes: list[NodeTime]


def profile_nodes(
    models: Sequence[Path],
    device: Device,
    profile: Profile,
    batch_size: int,
    allow_fallback: tuple[str, ...],
    inputs: Path | None,
    turns: ProfilingTurns = DEFAULT_PROFILING_TURNS,
) -> list[FileTime]:
    """Time every node of every file, as the profile says that it runs.

    Times of a round are divided by how slow the round was for the first file, so that they compare.

    Args:
        models: Files of one network; the first is what others are compared with.
        device: Where they run.
        profile: Providers and threads.
        batch_size: Samples a run.
        allow_fallback: As in ``edgeopt.bench.measure.measure``.
        inputs: A ``.npz`` with one array for each graph input; None for random values.
        turns: How long.

    Returns:
        Those files that were reached.

    Raises:
        ProviderError, StepError, InputError, DeviceError: see ``edgeopt.bench.measure.measure``.
    """
    clock = "cpu_ns" if profile.threads == 1 and profile.providers == ("CPUExecutionProvider",) else "wall_ns"
    found = _ask(models, device, profile, batch_size, allow_fallback, inputs, turns)
    rounds: list[dict[int, Any]] = []
    for turn in found:
        if turn["model"] == 0:
            rounds.append({})
        rounds[-1][turn["model"]] = turn
    paces = [statistics.median(one[0][clock]) for one in rounds]
    usual = statistics.median(paces)
    result = []
    for index in sorted(rounds[0]):
        mine = [(usual / pace, one[index]) for pace, one in zip(paces, rounds, strict=True) if index in one]
        first = mine[0][1]["nodes"]
        same = [(pace, turn["nodes"]) for pace, turn in mine if len(turn["nodes"]) == len(first)]
        nodes = [
            NodeTime(
                node["name"],
                node["operator"],
                node["inputs"],
                node["outputs"],
                statistics.median(pace * nodes[place]["ns"] for pace, nodes in same),
                node["provider"],
            )
            for place, node in enumerate(first)
        ]
        result.append(FileTime(index, statistics.median(p * statistics.median(t[clock]) for p, t in mine), nodes))
    return result


def with_input_shapes(
    timed: Sequence[FileTime],
    models: Sequence[Path],
    device: Device,
    profile: Profile,
    batch_size: int,
    inputs: Path | None,
) -> list[FileTime]:
    """Return profiles with every input's shape: what ONNX Runtime re-packs is missing from its profile otherwise.

    Each file runs once more without re-packing, which changes no node.
    """
    turns = ProfilingTurns(rounds=1, seconds=0.0, min_runs=1, warmup_runs=0, min_models=len(models))
    found = _ask(models, device, profile, batch_size, (), inputs, turns, prepacking=False)
    whole = []
    for one, turn in zip(timed, found, strict=True):
        same = [node["operator"] for node in turn["nodes"]] == [node.operator for node in one.nodes]
        inside = (
            [node._replace(inputs=told["inputs"]) for node, told in zip(one.nodes, turn["nodes"], strict=True)]
            if same
            else one.nodes
        )
        whole.append(one._replace(nodes=inside))
    return whole


def time_by_provider(nodes: Sequence[NodeTime]) -> dict[str, float]:
    """Return the share of the nodes' time, in 0..1, of each execution provider that ran some; largest first."""
    total, times = sum(node.ns for node in nodes) or 1.0, Counter[str]()
    for node in nodes:
        times[node.provider] += node.ns  # type: ignore[assignment]
    return {name: ns / total for name, ns in times.most_common()}


def node_shapes(
    models: Sequence[Path],
    device: Device,
    profile: Profile,
    batch_size: int,
    allow_fallback: tuple[str, ...],
    inputs: Path | None,
) -> list[list[NodeTime]]:
    """Run each file once as it is written, with no optimization, and return its nodes with their shapes.

    Raises:
        ProviderError, StepError, InputError, DeviceError: see ``edgeopt.bench.measure.measure``.
    """
    turns = ProfilingTurns(rounds=1, seconds=0.0, min_runs=1, warmup_runs=0, min_models=len(models))
    profile = msgspec.structs.replace(profile, graph_level="disabled")
    found = _ask(models, device, profile, batch_size, allow_fallback, inputs, turns)
    return [[NodeTime(**node) for node in turn["nodes"]] for turn in found]


def _ask(
    models: Sequence[Path],
    device: Device,
    profile: Profile,
    batch_size: int,
    allow_fallback: tuple[str, ...],
    inputs: Path | None,
    turns: ProfilingTurns,
    prepacking: bool = True,
) -> list[dict[str, Any]]:
    request = runtime_request(
        "nodes", str(models[0]), profile, allow_fallback=allow_fallback, batch_size=batch_size,
        inputs=str(inputs) if inputs else "",
    )  # fmt: skip
    request = msgspec.structs.replace(
        request,
        models=tuple(str(model) for model in models),
        min_models=min(turns.min_models, len(models)),
        rounds=turns.rounds,
        prepacking=prepacking,
        warmup_runs=turns.warmup_runs,
        warmup_seconds=0.0,
        min_runs=turns.min_runs,
        min_seconds=turns.seconds,
        max_seconds=turns.budget_seconds,
    )
    found: list[dict[str, Any]] = run_request(device, request, _STAGE, seconds=20 * turns.budget_seconds)["turns"]
    return found
