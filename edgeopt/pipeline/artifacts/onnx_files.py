"""From an exported file to a finished one: graph steps with a parity check after each, and the facts of the result."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from edgeopt.errors import StepError
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.compatibility import check_compatibility, check_portable
from edgeopt.graph.facts import has_half_weights, read_facts
from edgeopt.graph.model import load, write_metadata
from edgeopt.graph.quantization.saturation import find_saturating_nodes
from edgeopt.graph.rounding.packing import PLANES
from edgeopt.model_files.layout import copy_model
from edgeopt.pipeline.artifacts.finished_bundle import metadata_for_apps
from edgeopt.pipeline.artifacts.networks import (
    PARITY_TOLERANCE,
    ExportedFile,
    StoredNetwork,
    check_imitation,
    check_parity,
    check_same_outputs,
)
from edgeopt.pipeline.artifacts.shared_stages import MadeStage, SharedStages
from edgeopt.pipeline.boundary import run_step
from edgeopt.pipeline.context import Build
from edgeopt.records.profile import Precision, Profile
from edgeopt.records.recipe import (
    BitsStep,
    Compact,
    DropUnseenRows,
    Float16,
    FlushDenormals,
    FuseQLinear,
    GraphStep,
    PackWeights,
    Quantize,
    QuantizeDynamic,
    QuantizeStep,
    QuantizeWeights,
    Recipe,
    Simplify,
    StoredBits,
    StoreWeights,
    WeightBits,
)
from edgeopt.records.trial import Artifact, Parity

CALIBRATION_SAMPLES = 256
"""Enough for the ranges of activations to settle: on the default network 64 and 1,024 gave the same score."""

TIMED_CALIBRATION_SAMPLES = 8
"""Of files that are made only to be timed: their ranges do not change the latency."""

MAX_UNEXPLAINED_RATIO = 0.2
"""Of what int8 changes, by which a file may differ from the network that was trained to compute like it. Integer
kernels round some values to the next of 255 steps where training does not: 0.05 to 0.07 on four trained networks of
0.1 to 0.4 M parameters, 0.005 to 0.04 on small ones that int8 harms."""

HALF_PARITY_TOLERANCE = 1e-2
"""In place of ``PARITY_TOLERANCE`` for networks in 16 bits: folded constants round in another order, and float16 has 11
bits (1e-3 at a value, a few times that after several layers). Wrong graphs are beyond 0.1."""

_IN_8_BITS = StoreWeights()

FIRST_STEPS: tuple[GraphStep, ...] = (Simplify(), FlushDenormals())
"""Every variant begins with these."""


def graph_steps(precision: Precision, profile: Profile) -> tuple[GraphStep, ...]:
    """Return the steps that bring an exported file to ``precision``."""
    match precision:
        case "fp32":
            return (*FIRST_STEPS, last_step(profile))
        case "fp16":
            return (*FIRST_STEPS, Float16(), last_step(profile))
        case "int8":
            return int8_steps(static_int8(profile), profile)


def last_step(profile: Profile) -> Compact:
    """Return the step that every variant ends with; a file in ONNX Runtime's own format cannot compute weights once."""
    folds = can_unpack(profile) and not profile.ort_format
    return Compact(keep_names=profile.keep_names, convolves_transforms=folds)


def timing_steps(precision: Precision, profile: Profile) -> tuple[GraphStep, ...]:
    """Return the steps to a file that is made only to be timed: few calibration samples, and names are kept."""
    return tuple(
        msgspec.structs.replace(step, samples=TIMED_CALIBRATION_SAMPLES) if isinstance(step, Quantize) else step
        for step in graph_steps(precision, profile)
        if not isinstance(step, Compact)
    )


def static_int8(profile: Profile) -> Quantize:
    """Return the first int8 step that every network is tried with.

    Weights multiplied by uint8 activations have 7 bits: with 8, sums overflow on x86 processors without VNNI, and the
    same file would score less there than here.
    """
    return Quantize(
        activations=profile.activation_type,
        per_channel=True,
        reduce_range=profile.activation_type == "uint8",
        calibration="minmax",
        samples=CALIBRATION_SAMPLES,
    )


def may_use_runtime_operators(profile: Profile) -> bool:
    """Tell whether the file may contain ONNX Runtime's own operators, which only its CPU provider runs."""
    return profile.operators == "runtime" and profile.providers == ("CPUExecutionProvider",)


def int8_steps(step: QuantizeStep, profile: Profile) -> tuple[GraphStep, ...]:
    """Return all steps of an int8 variant; integer operators of ONNX Runtime are written out if they may be there."""
    fuse = (FuseQLinear(),) if may_use_runtime_operators(profile) and isinstance(step, Quantize) else ()
    pack = (PackWeights(),) if isinstance(step, BitsStep) and has_few_bits(step) else ()
    return (*FIRST_STEPS, step, *fuse, *pack, last_step(profile))


def has_few_bits(step: BitsStep) -> bool:
    """Tell whether weights of a step have fewer than 8 bits, so that they are packed."""
    return step.weight_bits in PLANES or any(bits in PLANES for _, bits in step.bits_of)


def can_unpack(profile: Profile) -> bool:
    """Tell whether packed weights are unpacked when a file is loaded: by ONNX Runtime's constant folding."""
    return may_use_runtime_operators(profile) and profile.graph_level != "disabled"


def with_weight_bits(steps: tuple[GraphStep, ...], bits: WeightBits) -> tuple[GraphStep, ...]:
    """Return the steps of an int8 variant whose weights have that many bits."""
    pack = (PackWeights(),) if bits in PLANES else ()
    changed = [_with_bits(one, bits) for one in steps]
    return (*changed[:-1], *pack, changed[-1])


def _with_bits(step: GraphStep, bits: WeightBits) -> GraphStep:
    if isinstance(step, Quantize):
        return msgspec.structs.replace(step, weight_bits=bits)
    if isinstance(step, StoreWeights) and bits in PLANES:
        return msgspec.structs.replace(step, weight_bits=bits, samples=CALIBRATION_SAMPLES)
    return step


def with_bits_of(steps: tuple[GraphStep, ...], bits_of: tuple[tuple[str, StoredBits], ...]) -> tuple[GraphStep, ...]:
    """Return the steps of an int8 variant whose weights have bits of their own; others have 8."""

    def changed(step: GraphStep) -> GraphStep:
        if isinstance(step, Quantize):
            return msgspec.structs.replace(step, weight_bits=8, bits_of=bits_of)
        if isinstance(step, StoreWeights | QuantizeDynamic):
            return msgspec.structs.replace(step, weight_bits=8, samples=CALIBRATION_SAMPLES, bits_of=bits_of)
        return step

    found = [changed(step) for step in steps if not isinstance(step, PackWeights)]
    pack = (PackWeights(),) if any(bits in PLANES for _, bits in bits_of) else ()
    return (*found[:-1], *pack, found[-1])


def storing_the_rest(steps: tuple[GraphStep, ...], step: StoreWeights = _IN_8_BITS) -> tuple[GraphStep, ...]:
    """Return the steps of an int8 variant that also stores in int8 the weights that it would leave in float."""
    place = next((index for index, one in enumerate(steps) if isinstance(one, PackWeights)), len(steps) - 1)
    return (*steps[:place], step, *steps[place:])


def make_artifact(
    build: Build, network: StoredNetwork, exported: ExportedFile, recipe: Recipe, reasons: tuple[str, ...] = ()
) -> Artifact:
    """Return the finished file of a recipe: from the ledger, or made now.

    If onnxsim fails or changes the outputs, the graph goes on without it.

    Args:
        build: The build.
        network: The network that was exported.
        exported: The exported file.
        recipe: The steps.
        reasons: Why these steps were chosen; kept with the notes.

    Raises:
        StepError: a step fails, or a graph computes something else.
    """
    key = build.keys.of("artifact", recipe=recipe, metadata=metadata_for_apps(build))

    def make() -> Artifact:
        with build.workspace.scratch(f"steps-{key.digest}") as folder:
            notes: tuple[str, ...] = ()
            steps = recipe.graph_steps
            try:
                done = _run_steps(build, network, exported, steps, folder / "model.onnx")
            except StepError as error:
                if not any(isinstance(step, Simplify) for step in steps) or error.stage not in _SIMPLIFY_STAGES:
                    raise
                notes = (f"the graph was not simplified: {error.reason}",)
                steps = tuple(step for step in steps if not isinstance(step, Simplify))
                done = _run_steps(build, network, exported, steps, folder / "plain.onnx")
            notes = (*exported.notes, *reasons, *notes, *done.notes)
            return _keep(build, key.digest, exported, done._replace(notes=notes), is_changed=bool(steps))

    return build.ledger.remember(
        key, Artifact, make, is_usable=lambda found: build.workspace.has_artifact(found.sha256)
    )


_SIMPLIFY_STAGES = ("simplify", "simplified")
"""The step itself, and the parity check after it."""


class _Finished(NamedTuple):
    """A file after all steps, and what is known of it."""

    path: Path
    parities: tuple[Parity, ...]
    notes: tuple[str, ...]
    names: dict[str, str]
    """What the short names of inner values stand for."""


def _run_steps(
    build: Build, network: StoredNetwork, exported: ExportedFile, steps: tuple[GraphStep, ...], target: Path
) -> _Finished:
    """Apply the steps, and compare files on the way with the network's own outputs.

    Every stage is compared while outputs must stay the same; after that those that change values, and the last.
    """
    source = exported_file = build.workspace.artifact(exported.sha256)
    if not steps:
        copy_model(source, target, link_weights=True)
        return _Finished(target, (), (), {})
    calibration = _calibration(build, network, steps)
    exact_tolerance = HALF_PARITY_TOLERANCE if has_half_weights(load(source, "graph")) else PARITY_TOLERANCE
    drops_rows = any(isinstance(step, DropUnseenRows) for step in steps)  # other ids have other rows then
    shared, made, exact = SharedStages(build, network, exported), list[MadeStage](), True
    for index, step in enumerate(steps):
        stage = stage_of(step)
        exact = exact and stage.exact
        tolerance = exact_tolerance if exact else None
        checked = stage.checked and (exact or not stage.exact or index == len(steps) - 1)

        def make(
            path: Path, step: GraphStep = step, source: Path = source, stage: Stage = stage,
            tolerance: float | None = tolerance, checked: bool = checked,
        ) -> MadeStage:  # fmt: skip
            build.torch_pool.check_open()
            (result,) = run_step(
                "graph", apply_steps, (step,), source, path,
                calibration=calibration, max_opset=build.profile.max_opset, max_ir=build.profile.max_ir,
            )  # fmt: skip
            parity = None
            if checked and drops_rows:
                parity = check_same_outputs(build, exported_file, path, stage.name, tolerance)
            elif checked:
                edge = exported.edge_inputs
                parity = check_parity(build, network, path, stage.name, tolerance, edge, exported.rounding)
            return MadeStage(notes=result.notes, parity=parity, names=dict(result.names))

        if index == len(steps) - 1:
            found = make(target)
        else:
            own = target.with_name(f"{target.stem}.{index}.onnx")
            before = steps[: index + 1]
            source, found = shared.make(before, _calibration(build, network, before), own, make)
        made.append(found)
    parities = [one.parity for one in made if one.parity is not None]
    quantize = next((step for step in steps if isinstance(step, Quantize)), None)
    if quantize is not None and quantize.calibration == "trained" and network.key is not None:
        parities.append(check_imitation(build, network, target, MAX_UNEXPLAINED_RATIO))
    return _Finished(target, tuple(parities), tuple(note for one in made for note in one.notes), made[-1].names)


def _calibration(build: Build, network: StoredNetwork, steps: tuple[GraphStep, ...]) -> Path | None:
    """Return the file that a step's ranges or rounding come from; None if no step needs one."""
    for step in steps:
        if isinstance(step, Quantize) and step.calibration == "trained":
            assert network.fake_quant_sites is not None
            return build.workspace.folder("tables") / network.fake_quant_sites
        if isinstance(step, BitsStep | QuantizeWeights) and step.samples:
            return build.data.calibration_file(step.samples)
    return None


class Stage(NamedTuple):
    """What a graph step means for parity."""

    name: str
    """Of the stage that the step leads to."""
    exact: bool = True
    """Whether the outputs have to stay the same within parity's tolerance; otherwise the score decides."""
    checked: bool = True
    """Whether the outputs are compared with the network's own."""


def stage_of(step: GraphStep) -> Stage:
    """Return the stage that a step leads to."""
    match step:
        case DropUnseenRows():
            return Stage("rows dropped")
        case Simplify():
            return Stage("simplified")
        case FlushDenormals():
            return Stage("flushed", checked=False)  # the next stage is checked
        case Quantize() | QuantizeDynamic() | QuantizeWeights() | StoreWeights():
            return Stage("quantized", exact=False)
        case FuseQLinear():
            return Stage("fused")
        case PackWeights():
            return Stage("packed")
        case Float16():
            return Stage("float16", exact=False)
        case Compact():
            return Stage("final")


def _keep(build: Build, key: str, exported: ExportedFile, done: _Finished, *, is_changed: bool) -> Artifact:
    """Check a finished file against the profile's ceilings, move it into the workspace, and return its facts."""
    path = done.path
    if is_changed:
        run_step("metadata", write_metadata, path, build.data.given_metadata | metadata_for_apps(build))
    check_compatibility(path, build.profile.max_opset, build.profile.max_ir)
    if build.profile.operators == "qdq":
        check_portable(path)
    found = run_step("facts", read_facts, path, build.sample_shapes)
    notes = (*done.notes, *found.notes)
    if found.is_download_estimated:
        notes = (*notes, "download: estimated from every 16th MB of the weights")
    risky = find_saturating_nodes(load(path, "facts"))
    if risky:
        notes = (
            *notes,
            f"portable: {len(risky)} int8 nodes can overflow 16 bits on x86 processors without VNNI; expect another "
            "score there",
        )
    return Artifact(
        key=key,
        sha256=build.workspace.keep_artifact(path),
        size_bytes=found.size_bytes,
        download_bytes=found.download_bytes,
        parameters=found.parameters,
        nonzero_parameters=found.nonzero_parameters,
        weight_types=found.weight_types,
        macs=found.macs,
        opset=found.opset,
        ir_version=found.ir_version,
        exporter=exported.exporter,
        parities=(*exported.parities, *done.parities),
        notes=notes,
        names=done.names,
    )
