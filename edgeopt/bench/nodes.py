"""Node times: several files of one network take turns under ONNX Runtime's profiler, on one device.

In: models and a profile. Out: a ``FileTime`` for each file that was reached.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edgeopt.bench.requests import run_request, runtime_request
from edgeopt.bench.run_target import RunTarget
from edgeopt.records.base import Record

_STAGE = "latency table"


class ProfilingTurns(Record, frozen=True, kw_only=True):
    """How often and how long each file runs."""

    rounds: int = 5
    """Turns of each file: the machine's speed changes within seconds, the median over rounds doesn't."""
    seconds: float = 0.02
    """Length of one turn without the profiler, and of one with it."""
    min_runs: int = 5
    warmup_runs: int = 3
    budget_seconds: float = 30.0
    """No further turn begins after this, except for the first files."""
    min_models: int = 6
    """Number of first files that are timed however long it takes."""


DEFAULT_PROFILING_TURNS = ProfilingTurns()
LONG_PROFILING_TURNS = ProfilingTurns(rounds=3, seconds=0.1, budget_seconds=15.0, min_models=2)
"""For commands that show one or two files to a user."""


class NodeTime(NamedTuple):
    """One node of a file's profile."""

    name: str
    operator: str
    inputs: list[list[int]]
    outputs: list[list[int]]
    ns: float
    """Time until the next node starts."""
    provider: str = ""
    """The execution provider that ran it."""


class FileTime(NamedTuple):
    """The times of one file."""

    file: int
    """Its index among the given files."""
    ns: float
    """Time of a whole run without the profiler: CPU time on one thread of the processor, otherwise wall time."""
    nodes: list[NodeTime]


def profile_nodes(
    models: Sequence[Path],
    target: RunTarget,
    turns: ProfilingTurns = DEFAULT_PROFILING_TURNS,
) -> list[FileTime]:
    """Time every node of every file, with the profile's settings.

    The times of a round are divided by how slow that round was for the first file, so that rounds are comparable.

    Args:
        models: Files of one network; the others are compared with the first.
        target: Where and how they run.
        turns: How often and how long each file runs.

    Returns:
        The files that were reached.

    Raises:
        ProviderError, StepError, InputError, DeviceError: see ``edgeopt.bench.measure.measure``.
    """
    profile = target.profile
    clock = "cpu_ns" if profile.threads == 1 and profile.providers == ("CPUExecutionProvider",) else "wall_ns"
    answers = _run_turns(models, target, turns)
    rounds: list[dict[int, Any]] = []
    for turn in answers:
        if turn["model"] == 0:
            rounds.append({})
        rounds[-1][turn["model"]] = turn
    first_ns = [statistics.median(files[0][clock]) for files in rounds]
    scales = [statistics.median(first_ns) / ns for ns in first_ns]
    result = []
    for index in sorted(rounds[0]):
        scaled_turns = [(scale, files[index]) for scale, files in zip(scales, rounds, strict=True) if index in files]
        first = scaled_turns[0][1]["nodes"]
        same = [(scale, turn["nodes"]) for scale, turn in scaled_turns if len(turn["nodes"]) == len(first)]
        nodes = [
            NodeTime(
                node["name"],
                node["operator"],
                node["inputs"],
                node["outputs"],
                statistics.median(scale * nodes[position]["ns"] for scale, nodes in same),
                node["provider"],
            )
            for position, node in enumerate(first)
        ]
        ns = statistics.median(scale * statistics.median(turn[clock]) for scale, turn in scaled_turns)
        result.append(FileTime(index, ns, nodes))
    return result


def add_input_shapes(
    timed: Sequence[FileTime],
    models: Sequence[Path],
    target: RunTarget,
) -> list[FileTime]:
    """Return the profiles with the shapes of all inputs: ONNX Runtime's own profile lacks those of re-packed weights.

    Each file runs once more without re-packing, which changes no node.
    """
    turns = ProfilingTurns(rounds=1, seconds=0.0, min_runs=1, warmup_runs=0, min_models=len(models))
    answers = _run_turns(models, target, turns, prepacking=False)
    completed = []
    for file, turn in zip(timed, answers, strict=True):
        unpacked = turn["nodes"]
        nodes = file.nodes
        if [node["operator"] for node in unpacked] == [node.operator for node in nodes]:
            nodes = [node._replace(inputs=other["inputs"]) for node, other in zip(nodes, unpacked, strict=True)]
        completed.append(file._replace(nodes=nodes))
    return completed


def provider_time_ratios(nodes: Sequence[NodeTime]) -> dict[str, float]:
    """Return each execution provider's share of the nodes' time, in 0..1, largest first."""
    return _time_ratios((node.provider, node.ns) for node in nodes)


def operator_time_ratios(nodes: Sequence[NodeTime]) -> dict[str, float]:
    """Return each operator's share of the nodes' time, in 0..1, largest first."""
    return _time_ratios((node.operator, node.ns) for node in nodes)


def _time_ratios(times: Iterable[tuple[str, float]]) -> dict[str, float]:
    sums = defaultdict[str, float](float)
    for name, ns in times:
        sums[name] += ns
    total = sum(sums.values()) or 1.0
    return {name: ns / total for name, ns in sorted(sums.items(), key=lambda item: -item[1])}


def count_operators(nodes: Sequence[NodeTime]) -> dict[str, dict[str, int]]:
    """Return how many nodes of each operator each execution provider runs, the most first."""
    found: dict[str, Counter[str]] = {}
    for node in nodes:
        found.setdefault(node.provider, Counter())[node.operator] += 1
    return {provider: dict(counts.most_common()) for provider, counts in found.items()}


def collect_node_shapes(
    models: Sequence[Path],
    target: RunTarget,
) -> list[list[NodeTime]]:
    """Run each file once, unoptimized, and return its nodes with their shapes.

    Raises:
        ProviderError, StepError, InputError, DeviceError: see ``edgeopt.bench.measure.measure``.
    """
    turns = ProfilingTurns(rounds=1, seconds=0.0, min_runs=1, warmup_runs=0, min_models=len(models))
    unoptimized = msgspec.structs.replace(target.profile, graph_level="disabled")
    answers = _run_turns(models, replace(target, profile=unoptimized), turns)
    return [[NodeTime(**node) for node in turn["nodes"]] for turn in answers]


def _run_turns(
    models: Sequence[Path],
    target: RunTarget,
    turns: ProfilingTurns,
    prepacking: bool = True,
) -> list[dict[str, Any]]:
    request = msgspec.structs.replace(
        runtime_request("nodes", models[0], target),
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
    answers: list[dict[str, Any]] = run_request(target.device, request, _STAGE, seconds=20 * turns.budget_seconds)[
        "turns"
    ]
    return answers
