"""The ONNX half of a candidate: graph steps with parity after each, and the facts of the finished file."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgeopt.errors import StepError
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.compatibility import check_ceiling
from edgeopt.graph.facts import facts
from edgeopt.graph.model import load
from edgeopt.graph.quantization.saturation import saturating_nodes
from edgeopt.pipeline.artifacts.networks import (
    PARITY_TOLERANCE,
    ExportedFile,
    StoredNetwork,
    check_imitation,
    check_parity,
)
from edgeopt.pipeline.boundary import run_step
from edgeopt.pipeline.context import Build
from edgeopt.records.codec import artifact_key, digest
from edgeopt.records.profile import Precision, Profile
from edgeopt.records.recipe import (
    Compact,
    Float16,
    FlushDenormals,
    FuseQLinear,
    GraphStep,
    Quantize,
    QuantizeDynamic,
    QuantizeStep,
    QuantizeWeights,
    Recipe,
    Simplify,
)
from edgeopt.records.trial import Artifact, Parity

_CALIBRATION_SAMPLES = 256
"""Enough for the ranges of activations to settle: on the default network 64 and 1,024 gave the same score."""


UNEXPLAINED_SHARE = 0.2
"""Of what int8 changes, by which a file may differ from the network that was trained to compute as it does. Integer
kernels round some values to the next of 255 steps where training does not: 0.05 to 0.07 on four trained networks of
0.1 to 0.4 M parameters, 0.005 to 0.04 on small ones that int8 harms."""

HEAD: tuple[GraphStep, ...] = (Simplify(), FlushDenormals())
"""The first steps of every form."""


def graph_steps(precision: Precision, profile: Profile) -> tuple[GraphStep, ...]:
    """Return the steps that bring an exported file to ``precision``."""
    match precision:
        case "fp32":
            return (*HEAD, Compact())
        case "fp16":
            return (*HEAD, Float16(), Compact())
        case "int8":
            return in_int8(static_int8(profile), profile)


def static_int8(profile: Profile) -> Quantize:
    """Return the first int8 form that every network is tried in.

    Weights next to uint8 activations have 7 bits: with 8, sums overflow on x86 processors without VNNI, and the same
    file would score less there than here.
    """
    return Quantize(
        activations=profile.activation_type,
        per_channel=True,
        reduce_range=profile.activation_type == "uint8",
        calibration="minmax",
        samples=_CALIBRATION_SAMPLES,
    )


def on_cpu_alone(profile: Profile) -> bool:
    """Tell whether ONNX Runtime's own operators will do: no other provider runs the file."""
    return profile.providers == ("CPUExecutionProvider",)


def in_int8(step: QuantizeStep, profile: Profile) -> tuple[GraphStep, ...]:
    """Return all steps of an int8 form; where the CPU alone runs the file, its integer operators are written out."""
    fuse = (FuseQLinear(),) if on_cpu_alone(profile) and isinstance(step, Quantize) else ()
    return (*HEAD, step, *fuse, Compact())


def make_artifact(
    build: Build, network: StoredNetwork, exported: ExportedFile, recipe: Recipe, reasons: tuple[str, ...] = ()
) -> Artifact:
    """Return the finished file of a recipe: from the ledger, or made now.

    Where onnxsim fails or changes what is computed, the graph goes on without it.

    Args:
        build: The build.
        network: What was exported.
        exported: The exported file.
        recipe: The steps.
        reasons: Why these steps were chosen; kept with the notes.

    Raises:
        StepError: a step fails, or a graph computes something else.
    """
    key = artifact_key(build.fingerprint, recipe, f"{build.versions} {build.profile.max_opset} {build.profile.max_ir}")
    found = build.ledger.get("artifact", key, Artifact)
    if found is not None and build.workspace.artifact(found.sha256).exists():
        return found
    folder = build.workspace.folder("stages") / digest((key, "steps"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        notes: tuple[str, ...] = ()
        steps = recipe.graph_steps
        try:
            path, parities, made = _run_steps(build, network, exported, steps, folder / "model.onnx")
        except StepError as error:
            if not any(isinstance(step, Simplify) for step in steps) or error.stage not in ("simplify", "simplified"):
                raise
            notes = (f"the plain graph was kept, not the simplified one: {error.reason}",)
            steps = tuple(step for step in steps if not isinstance(step, Simplify))
            path, parities, made = _run_steps(build, network, exported, steps, folder / "plain.onnx")
        found = keep_file(build, key, path, exported, parities, (*exported.notes, *reasons, *notes, *made))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    build.ledger.put("artifact", key, found)
    return found


def _run_steps(
    build: Build, network: StoredNetwork, exported: ExportedFile, steps: tuple[GraphStep, ...], target: Path
) -> tuple[Path, tuple[Parity, ...], tuple[str, ...]]:
    """Apply the steps and check each stage against the network's own outputs."""
    quantize = next((step for step in steps if isinstance(step, Quantize)), None)
    calibration = None if quantize is None else _calibration(build, network, quantize)
    source = build.workspace.artifact(exported.sha256)
    if not steps:
        shutil.copyfile(source, target)
        return target, (), ()
    results = run_step(
        "graph",
        apply_steps,
        steps,
        source,
        target,
        calibration=calibration,
        max_opset=build.profile.max_opset,
        max_ir=build.profile.max_ir,
    )
    parities = []
    exact = True
    for result in results:
        exact = exact and not isinstance(result.step, QuantizeStep | Float16)
        if isinstance(result.step, Simplify | QuantizeStep | FuseQLinear | Float16 | Compact):
            tolerance = PARITY_TOLERANCE if exact else None
            parities.append(check_parity(build, network, result.path, stage_name(result.step), tolerance))
    if quantize is not None and quantize.calibration == "trained" and network.key is not None:
        parities.append(check_imitation(build, network, target, UNEXPLAINED_SHARE))
    return target, tuple(parities), tuple(note for result in results for note in result.notes)


def _calibration(build: Build, network: StoredNetwork, step: Quantize) -> Path:
    """Return the file that a step's ranges come from."""
    if step.calibration == "trained":
        assert network.roundings is not None
        return build.workspace.folder("tables") / network.roundings
    return build.data.calibration_file(step.samples)


def stage_name(step: GraphStep) -> str:
    """Return the name of the stage that a step leads to."""
    match step:
        case Simplify():
            return "simplified"
        case Quantize() | QuantizeDynamic() | QuantizeWeights():
            return "quantized"
        case FuseQLinear():
            return "fused"
        case Float16():
            return "half"
        case FlushDenormals():
            return "flushed"
        case Compact():
            return "final"


def keep_file(
    build: Build, key: str, path: Path, exported: ExportedFile, parities: tuple[Parity, ...], notes: tuple[str, ...]
) -> Artifact:
    """Check a finished file against the profile's ceiling, keep it, and return its facts."""
    check_ceiling(path, build.profile.max_opset, build.profile.max_ir)
    found = run_step("facts", facts, path)
    risky = saturating_nodes(load(path, "facts"))
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
        macs=found.macs,
        opset=found.opset,
        ir_version=found.ir_version,
        exporter=exported.exporter,
        parities=(*exported.parities, *parities),
        notes=notes,
    )
