"""Low rank in a search: which layers of a network become two, decided by timing both forms on the build's device."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx

from edgeopt.bench.nodes import ProfilingTurns, profile_nodes
from edgeopt.bench.outputs import write_batches
from edgeopt.errors import DeviceError, StepError
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.model import save
from edgeopt.latency.single_layer import join_models, layer_model, split_models
from edgeopt.pipeline.artifacts.networks import StoredNetwork, reference
from edgeopt.pipeline.artifacts.onnx_files import graph_steps
from edgeopt.pipeline.boundary import as_failed, run_step
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.search.candidate import Candidate, low_rank
from edgeopt.pipeline.torch_process import protocol
from edgeopt.planning.low_rank_rule import (
    ALLOWED_LOSS_RATIOS,
    MIN_SAVED_RATIO,
    LayerTimes,
    LowRankDecision,
    choose_layers,
)
from edgeopt.records.base import Record
from edgeopt.records.codec import digest, from_json
from edgeopt.records.low_rank import Factorization, LowRankLayer, LowRankTable
from edgeopt.records.profile import Precision
from edgeopt.records.recipe import Compact, Quantize

_STAGE = "low-rank"
TURNS = ProfilingTurns(rounds=5, seconds=0.02, budget_seconds=20.0)
_CALIBRATION_SAMPLES = 8
"""Ranges decide no latency."""
MAX_FILE_BYTES = 250e6
"""Of the weights of layers that lie in one file: protobuf writes no more than 2 GB, and memory is finite."""

TimedForm = tuple[LowRankLayer, Factorization | None]
"""A layer, as it is or as a pair."""


class StoredLayerTimes(Record, frozen=True, kw_only=True):
    """Times of layers and of their pairs, in ns, by the layer's weight."""

    pairs: dict[str, tuple[float, float]]


def low_rank_candidates(build: Build, network: StoredNetwork, precision: Precision) -> tuple[list[Candidate], str]:
    """Return the candidates of low rank that a network is worth, and a sentence on what was found.

    Nothing may train meanwhile: layers are timed where counting says that enough would be saved.

    Args:
        build: The build.
        network: The smallest network that keeps the score.
        precision: The one that would ship, in which layers are timed.
    """
    try:
        table = stored_low_rank_table(build, network)
    except StepError as error:
        return [], f"Low rank was not tried: layers could not be factored ({error.reason})"
    found: dict[str, Candidate] = {}
    said = ""
    for index, loss in enumerate(table.losses):
        counted = choose_layers(table, index, None)
        if not counted.worth_it:
            said = (
                f"Low rank was not tried: with {loss:.0%} of each layer's output lost, layers of low rank would save "
                f"{counted.saved_ratio:.0%} of the parameters; {MIN_SAVED_RATIO:.0%} is worth a training."
            )
            continue
        try:
            times = layer_times(build, table, index, precision)
        except (StepError, DeviceError) as error:
            return [], f"Low rank was not tried: layers could not be timed ({as_failed(error).reason})"
        timed = choose_layers(table, index, times)
        if not timed.worth_it:
            said = (
                f"Low rank was not tried: of {len(counted.layers)} layers with a smaller pair, {len(timed.layers)} are "
                f"not slower as two in {precision}, and would save {timed.saved_ratio:.0%} of the parameters; "
                f"{MIN_SAVED_RATIO:.0%} is worth a training."
            )
            continue
        note = _note(timed, times, loss, precision)
        found.setdefault(digest(timed.layers), low_rank(build, network, timed.layers, (note,)))
    return list(found.values()), "" if found else said


def _note(decision: LowRankDecision, times: LayerTimes, loss: float, precision: Precision) -> str:
    whole, pair = (sum(times[name][place] for name in decision.layers) for place in (0, 1))
    kept = f"; {decision.kept} kept their form, being slower as two" if decision.kept else ""
    return (
        f"low rank: at most {loss:.0%} of each layer's output lost before training; as two, {len(decision.layers)} "
        f"layers take {pair / whole:.2f} of their time in {precision}, timed alone{kept}"
    )


def stored_low_rank_table(build: Build, network: StoredNetwork) -> LowRankTable:
    """Return what a network's layers would become: from the workspace, or found now."""
    step = build.profile.channel_step
    key = digest(("factors", build.fingerprint, network.key, ALLOWED_LOSS_RATIOS, step, build.versions))
    path = build.workspace.folder("tables") / f"{key}.json"
    if not path.exists():
        build.progress(_STAGE, "what large layers would be as two")
        job = protocol.LowRankJob(
            network=reference(build, network), losses=ALLOWED_LOSS_RATIOS, step=step, out=str(path)
        )
        build.trainers.do(job, protocol.LowRankDone)
    return from_json(path.read_bytes(), LowRankTable)


def layer_times(build: Build, table: LowRankTable, loss: int, precision: Precision) -> LayerTimes:
    """Return the times of each layer and its pair on the device: from the ledger, or measured now."""
    wanted = {
        layer.weight: (layer, choice.factor) for layer in table.layers if (choice := layer.choices[loss]) is not None
    }
    steps = graph_steps(precision, build.profile)
    place = (build.device.id, build.environment.onnxruntime, steps, build.profile.runtime, build.allow_fallback)
    key = digest(("layer-times", [wanted[name] for name in wanted], place, build.budget.batch_size, build.versions))
    found = build.ledger.get("layer-times", key, StoredLayerTimes)
    if found is None:
        build.progress(_STAGE, f"times of {len(wanted)} layers as one and as two in {precision}")
        folder = build.workspace.folder("stages") / f"layers-{key}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            found = StoredLayerTimes(pairs=run_step(_STAGE, _measure, build, wanted, precision, folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        build.ledger.put("layer-times", key, found)
    return found.pairs


def _measure(
    build: Build, wanted: dict[str, tuple[LowRankLayer, Factorization]], precision: Precision, folder: Path
) -> dict[str, tuple[float, float]]:
    """Time every layer and its pair in turns; equal ones once. Layers that are not reached are missing."""
    alike: dict[str, list[str]] = {}
    for name, (layer, factor) in wanted.items():
        alike.setdefault(digest((msgspec.structs.replace(layer, weight="", choices=()), factor)), []).append(name)
    layers = [(wanted[names[0]][0], factor) for names in alike.values() for factor in (None, wanted[names[0]][1])]
    files: list[Path] = []
    for few in split_by_bytes(layers):
        files += _write(build, few, precision, folder / f"from-{len(files)}")
    timed = profile_nodes(files, build.connection, build.profile, build.budget.batch_size, build.allow_fallback,
                          None, TURNS)  # fmt: skip
    ns = {one.file: one.ns for one in timed}
    return {
        name: (ns[2 * index], ns[2 * index + 1])
        for index, names in enumerate(alike.values())
        for name in names
        if 2 * index + 1 in ns
    }


def split_by_bytes(layers: Sequence[TimedForm], most_bytes: float = MAX_FILE_BYTES) -> list[list[TimedForm]]:
    """Part layers into runs whose weights, in float32, come to so many bytes at most; a larger layer is alone."""
    parts: list[list[TimedForm]] = []
    room = 0.0
    for form in layers:
        size = 4 * form[0].parameters  # of a pair it is less
        if size > room or not parts:
            parts.append([])
            room = most_bytes
        parts[-1].append(form)
        room -= size
    return parts


def _write(build: Build, layers: Sequence[TimedForm], precision: Precision, folder: Path) -> list[Path]:
    """Write a file for each layer in the precision asked for; graph steps are done once, on all of them together."""
    folder.mkdir()
    source, target, calibration = folder / "float.onnx", folder / "made.onnx", folder / "calibration.npz"
    batch = build.budget.batch_size
    save(join_models([layer_model(layer, factor, batch) for layer, factor in layers]), source)
    rng = np.random.default_rng(0)
    inputs = {f"x{number}": (batch, *layer.input_shape) for number, (layer, _) in enumerate(layers)}
    write_batches(
        calibration,
        [{name: rng.standard_normal(shape).astype(np.float32) for name, shape in inputs.items()} for _ in range(2)],
    )
    steps = tuple(
        msgspec.structs.replace(step, samples=_CALIBRATION_SAMPLES) if isinstance(step, Quantize) else step
        for step in graph_steps(precision, build.profile)
        if not isinstance(step, Compact)
    )
    apply_steps(steps, source, target, calibration=calibration, max_opset=build.profile.max_opset,
                max_ir=build.profile.max_ir)  # fmt: skip
    files = []
    for number, model in enumerate(split_models(onnx.load_model(target))):
        files.append(folder / f"{number}.onnx")
        save(model, files[-1])
    return files
