"""Low-rank candidates: which layers of a network are factorized, decided by timing both forms on the build's device.

In: the smallest network that keeps the score. Out: candidates, or a sentence that says why there are none. The rule
itself is ``edgeopt.planning.low_rank_rule``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx

from edgeopt.bench.nodes import ProfilingTurns, profile_nodes
from edgeopt.bench.outputs import write_batches
from edgeopt.errors import DeviceError, StepError
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.model import save
from edgeopt.latency.single_layer import join_models, make_layer_model, split_models
from edgeopt.pipeline.artifacts.networks import StoredNetwork, reference
from edgeopt.pipeline.artifacts.onnx_files import timing_steps
from edgeopt.pipeline.boundary import as_failed, run_step
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.search.candidate import Candidate, factorized
from edgeopt.pipeline.torch_process import protocol
from edgeopt.planning.low_rank_rule import (
    ALLOWED_LOSS_RATIOS,
    MIN_SAVED_RATIO,
    LayerTimes,
    LowRankDecision,
    choose_layers,
)
from edgeopt.planning.width_rules import matches
from edgeopt.records.base import Record
from edgeopt.records.codec import digest, from_json
from edgeopt.records.low_rank import Factorization, LowRankLayer, LowRankTable
from edgeopt.records.profile import Precision

_STAGE = "low-rank"
TURNS = ProfilingTurns(rounds=5, seconds=0.02, budget_seconds=20.0)
MAX_FILE_BYTES = 250e6
"""Of the weights of layers in one file: protobuf writes no more than 2 GB, and memory is finite."""

TimedLayer = tuple[LowRankLayer, Factorization | None]
"""A layer as it is (None), or factorized."""


class StoredLayerTimes(Record, frozen=True, kw_only=True):
    """Times of layers as they are and factorized, in ns, by the layer's weight."""

    pairs: dict[str, tuple[float, float]]


def low_rank_candidates(build: Build, network: StoredNetwork, precision: Precision) -> tuple[list[Candidate], str]:
    """Return the low-rank candidates that a network is worth, and a sentence on why there are none.

    Nothing may train meanwhile: layers are timed if counting says that enough would be saved.

    Args:
        build: The build.
        network: The smallest network that keeps the score.
        precision: The one that would ship, in which layers are timed.
    """
    try:
        table = low_rank_table_of(build, network)
    except StepError as error:
        return [], f"Low-rank factorization was not tried: layers could not be factorized ({error.reason})"
    found: dict[str, Candidate] = {}
    reason = ""
    for index, loss in enumerate(table.losses):
        counted = choose_layers(table, index, None)
        if not counted.is_worth_training:
            reason = (
                f"Low-rank factorization was not tried: if each layer may lose {loss:.0%} of its output, it would save "
                f"{counted.saved_ratio:.0%} of the parameters; a training is worth it from {MIN_SAVED_RATIO:.0%}."
            )
            continue
        try:
            times = layer_times(build, table, index, precision)
        except (StepError, DeviceError) as error:
            failure = as_failed(error).reason
            return [], f"Low-rank factorization was not tried: layers could not be timed ({failure})"
        timed = choose_layers(table, index, times)
        if not timed.is_worth_training:
            reason = (
                f"Low-rank factorization was not tried: of {len(counted.layers)} layers that would become smaller, "
                f"{len(timed.layers)} would not become slower in {precision}; that would save {timed.saved_ratio:.0%} "
                f"of the parameters, and a training is worth it from {MIN_SAVED_RATIO:.0%}."
            )
            continue
        note = _note(timed, times, loss, precision)
        found.setdefault(digest(timed.layers), factorized(build, network, timed.layers, (note,)))
    return list(found.values()), "" if found else reason


def _note(decision: LowRankDecision, times: LayerTimes, loss: float, precision: Precision) -> str:
    whole, pair = (sum(times[name][place] for name in decision.layers) for place in (0, 1))
    kept = f"; {decision.slower_count} were kept, being slower or not timed" if decision.slower_count else ""
    return (
        f"low rank: each layer lost at most {loss:.0%} of its output before training; {len(decision.layers)} "
        f"factorized layers take {pair / whole:.2f} of their time in {precision}, timed one by one{kept}"
    )


def low_rank_table_of(build: Build, network: StoredNetwork) -> LowRankTable:
    """Return what a network's layers become when factorized, but for those that the user keeps.

    From the workspace, or found now.
    """
    step = build.profile.channel_step
    key = build.keys.of("low-rank-table", network=network.key, losses=ALLOWED_LOSS_RATIOS, step=step)
    path = build.workspace.folder("tables") / f"{key.digest}.json"
    if not path.exists():
        build.progress(_STAGE, "factorizing large layers")
        job = protocol.LowRankJob(
            network=reference(build, network), losses=ALLOWED_LOSS_RATIOS, step=step, out=str(path)
        )
        build.torch_pool.do(job, protocol.LowRankDone)
    table = from_json(path.read_bytes(), LowRankTable)
    layers = [one for one in table.layers if not any(matches(glob, one.weight) for glob in build.width_rules.keep)]
    return msgspec.structs.replace(table, layers=tuple(layers))


def layer_times(build: Build, table: LowRankTable, loss: int, precision: Precision) -> LayerTimes:
    """Return the times of each layer, as it is and factorized, on the device: from the ledger, or measured now."""
    wanted = {
        layer.weight: (layer, choice.factor) for layer in table.layers if (choice := layer.choices[loss]) is not None
    }
    key = build.keys.of("layer-times", layers=list(wanted.values()), steps=timing_steps(precision, build.profile))

    def make() -> StoredLayerTimes:
        build.progress(_STAGE, f"timing {len(wanted)} layers in {precision}, as they are and factorized")
        with build.workspace.scratch(f"layers-{key.digest}") as folder:
            return StoredLayerTimes(pairs=run_step(_STAGE, _measure, build, wanted, precision, folder))

    return build.ledger.remember(key, StoredLayerTimes, make).pairs


def _measure(
    build: Build, wanted: Mapping[str, tuple[LowRankLayer, Factorization]], precision: Precision, folder: Path
) -> dict[str, tuple[float, float]]:
    """Time every layer in both forms, in turns; equal ones once. Layers that are not reached are missing."""
    equal: dict[str, list[str]] = {}
    for name, (layer, factor) in wanted.items():
        equal.setdefault(digest((msgspec.structs.replace(layer, weight="", choices=()), factor)), []).append(name)
    layers = [(wanted[names[0]][0], factor) for names in equal.values() for factor in (None, wanted[names[0]][1])]
    files: list[Path] = []
    for part in split_by_bytes(layers):
        files += _write(build, part, precision, folder / f"from-{len(files)}")
    timed = profile_nodes(files, replace(build.run_target, inputs=None), TURNS)
    ns = {one.file: one.ns for one in timed}
    return {
        name: (ns[2 * index], ns[2 * index + 1])
        for index, names in enumerate(equal.values())
        for name in names
        if 2 * index + 1 in ns
    }


def split_by_bytes(layers: Sequence[TimedLayer], max_bytes: float = MAX_FILE_BYTES) -> list[list[TimedLayer]]:
    """Split layers into runs whose weights, in float32, take at most that many bytes; a larger layer is on its own."""
    parts: list[list[TimedLayer]] = []
    room = 0.0
    for timed in layers:
        size = 4 * timed[0].parameters  # less if it is factorized
        if size > room or not parts:
            parts.append([])
            room = max_bytes
        parts[-1].append(timed)
        room -= size
    return parts


def _write(build: Build, layers: Sequence[TimedLayer], precision: Precision, folder: Path) -> list[Path]:
    """Write a file for each layer in a precision; the graph steps are applied once, to all of them together."""
    folder.mkdir()
    source, target, calibration = folder / "float.onnx", folder / "made.onnx", folder / "calibration.npz"
    batch = build.budget.batch_size
    save(join_models([make_layer_model(layer, factor, batch) for layer, factor in layers]), source)
    rng = np.random.default_rng(0)
    inputs = {f"x{number}": (batch, *layer.input_shape) for number, (layer, _) in enumerate(layers)}
    write_batches(
        calibration,
        [{name: rng.standard_normal(shape).astype(np.float32) for name, shape in inputs.items()} for _ in range(2)],
    )
    steps = timing_steps(precision, build.profile)
    apply_steps(steps, source, target, calibration=calibration, max_opset=build.profile.max_opset,
                max_ir=build.profile.max_ir)  # fmt: skip
    files = []
    for number, model in enumerate(split_models(onnx.load_model(target))):
        files.append(folder / f"{number}.onnx")
        save(model, files[-1])
    return files
