"""Low rank in a search: which layers of a network become two, decided by timing both forms on the build's device."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx

from edgeopt.bench.nodes import Turns, profile_nodes
from edgeopt.bench.outputs import write_batches
from edgeopt.errors import DeviceError, StepError
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.files import save
from edgeopt.graph.layer import apart, joined, layer_model
from edgeopt.pipeline import jobs
from edgeopt.pipeline.candidates import Candidate, low_rank
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.files import graph_steps
from edgeopt.pipeline.networks import Network, reference
from edgeopt.pipeline.steps import as_failed, run_step
from edgeopt.records.base import Record
from edgeopt.records.codec import digest, from_json
from edgeopt.records.low_rank import Factor, FactorLayer, FactorTable
from edgeopt.records.profile import Precision
from edgeopt.records.recipe import Compact, Quantize
from edgeopt.search.factors import LEAST_SAVED, LOSSES, Decision, Times, decide

STAGE = "low-rank"
TURNS = Turns(rounds=5, seconds=0.02, budget_seconds=20.0)
CALIBRATION_SAMPLES = 8
"""Ranges decide no latency."""
MOST_BYTES = 250e6
"""Of the weights of layers that lie in one file: protobuf writes no more than 2 GB, and memory is finite."""

Form = tuple[FactorLayer, Factor | None]
"""A layer, as it is or as a pair."""


class LayerTimes(Record, frozen=True, kw_only=True):
    """Times of layers and of their pairs, in ns, by the layer's weight."""

    pairs: dict[str, tuple[float, float]]


def factored(build: Build, network: Network, precision: Precision) -> tuple[list[Candidate], str]:
    """Return the candidates of low rank that a network is worth, and a sentence on what was found.

    Nothing may train meanwhile: layers are timed where counting says that enough would be saved.

    Args:
        build: The build.
        network: The smallest network that keeps the score.
        precision: The one that would ship, in which layers are timed.
    """
    try:
        table = factor_table(build, network)
    except StepError as error:
        return [], f"Low rank was not tried: layers could not be factored ({error.reason})"
    found: dict[str, Candidate] = {}
    said = ""
    for index, loss in enumerate(table.losses):
        counted = decide(table, index, None)
        if not counted.worth_it:
            said = (
                f"Low rank was not tried: with {loss:.0%} of each layer's output lost, layers of low rank would save "
                f"{counted.saved_ratio:.0%} of the parameters; {LEAST_SAVED:.0%} is worth a training."
            )
            continue
        try:
            times = layer_times(build, table, index, precision)
        except (StepError, DeviceError) as error:
            return [], f"Low rank was not tried: layers could not be timed ({as_failed(error).reason})"
        timed = decide(table, index, times)
        if not timed.worth_it:
            said = (
                f"Low rank was not tried: of {len(counted.layers)} layers with a smaller pair, {len(timed.layers)} are "
                f"not slower as two in {precision}, and would save {timed.saved_ratio:.0%} of the parameters; "
                f"{LEAST_SAVED:.0%} is worth a training."
            )
            continue
        note = _note(timed, times, loss, precision)
        found.setdefault(digest(timed.layers), low_rank(build, network, timed.layers, (note,)))
    return list(found.values()), "" if found else said


def _note(decision: Decision, times: Times, loss: float, precision: Precision) -> str:
    whole, pair = (sum(times[name][place] for name in decision.layers) for place in (0, 1))
    kept = f"; {decision.kept} kept their form, being slower as two" if decision.kept else ""
    return (
        f"low rank: at most {loss:.0%} of each layer's output lost before training; as two, {len(decision.layers)} "
        f"layers take {pair / whole:.2f} of their time in {precision}, timed alone{kept}"
    )


def factor_table(build: Build, network: Network) -> FactorTable:
    """Return what a network's layers would become: from the workspace, or found now."""
    step = build.profile.channel_step
    key = digest(("factors", build.fingerprint, network.key, LOSSES, step, build.versions))
    path = build.workspace.folder("tables") / f"{key}.json"
    if not path.exists():
        build.progress(STAGE, "what large layers would be as two")
        job = jobs.FactorsJob(network=reference(build, network), losses=LOSSES, step=step, out=str(path))
        build.trainers.do(job, jobs.FactorsDone)
    return from_json(path.read_bytes(), FactorTable)


def layer_times(build: Build, table: FactorTable, loss: int, precision: Precision) -> Times:
    """Return the times of each layer and its pair on the device: from the ledger, or measured now."""
    wanted = {
        layer.weight: (layer, choice.factor) for layer in table.layers if (choice := layer.choices[loss]) is not None
    }
    steps = graph_steps(precision, build.profile)
    place = (build.device.id, build.environment.onnxruntime, steps, build.profile.runtime, build.allow_fallback)
    key = digest(("layer-times", [wanted[name] for name in wanted], place, build.budget.batch_size, build.versions))
    found = build.ledger.get("layer-times", key, LayerTimes)
    if found is None:
        build.progress(STAGE, f"times of {len(wanted)} layers as one and as two in {precision}")
        folder = build.workspace.folder("stages") / f"layers-{key}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            found = LayerTimes(pairs=run_step(STAGE, _measure, build, wanted, precision, folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        build.ledger.put("layer-times", key, found)
    return found.pairs


def _measure(
    build: Build, wanted: dict[str, tuple[FactorLayer, Factor]], precision: Precision, folder: Path
) -> dict[str, tuple[float, float]]:
    """Time every layer and its pair in turns; equal ones once. Layers that are not reached are missing."""
    alike: dict[str, list[str]] = {}
    for name, (layer, factor) in wanted.items():
        alike.setdefault(digest((msgspec.structs.replace(layer, weight="", choices=()), factor)), []).append(name)
    layers = [(wanted[names[0]][0], factor) for names in alike.values() for factor in (None, wanted[names[0]][1])]
    files: list[Path] = []
    for few in in_parts(layers):
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


def in_parts(layers: Sequence[Form], most_bytes: float = MOST_BYTES) -> list[list[Form]]:
    """Part layers into runs whose weights, in float32, come to so many bytes at most; a larger layer is alone."""
    parts: list[list[Form]] = []
    room = 0.0
    for form in layers:
        size = 4 * form[0].parameters  # of a pair it is less
        if size > room or not parts:
            parts.append([])
            room = most_bytes
        parts[-1].append(form)
        room -= size
    return parts


def _write(build: Build, layers: Sequence[Form], precision: Precision, folder: Path) -> list[Path]:
    """Write a file for each layer in the precision asked for; graph steps are done once, on all of them together."""
    folder.mkdir()
    source, target, calibration = folder / "float.onnx", folder / "made.onnx", folder / "calibration.npz"
    batch = build.budget.batch_size
    save(joined([layer_model(layer, factor, batch) for layer, factor in layers]), source)
    rng = np.random.default_rng(0)
    inputs = {f"x{number}": (batch, *layer.input_shape) for number, (layer, _) in enumerate(layers)}
    write_batches(
        calibration,
        [{name: rng.standard_normal(shape).astype(np.float32) for name, shape in inputs.items()} for _ in range(2)],
    )
    steps = tuple(
        msgspec.structs.replace(step, samples=CALIBRATION_SAMPLES) if isinstance(step, Quantize) else step
        for step in graph_steps(precision, build.profile)
        if not isinstance(step, Compact)
    )
    apply_steps(steps, source, target, calibration=calibration, max_opset=build.profile.max_opset,
                max_ir=build.profile.max_ir)  # fmt: skip
    files = []
    for number, model in enumerate(apart(onnx.load_model(target))):
        files.append(folder / f"{number}.onnx")
        save(model, files[-1])
    return files
