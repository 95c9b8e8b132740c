"""Whether a file computes the same on the device as on this machine: golden inputs are run in both places.

Files are compared with their networks on this machine's processor, whatever the target is; only this check is about the
device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from edgeopt.bench.outputs import run_arrays
from edgeopt.bench.run_target import RunTarget
from edgeopt.bundle.golden import FLOAT16_TOLERANCE_RATIO, Array, largest_difference, output_tolerance, tolerance_ratio
from edgeopt.device.local import LocalDevice
from edgeopt.errors import ParityError
from edgeopt.pipeline.boundary import run_step
from edgeopt.pipeline.context import Build
from edgeopt.records.recipe import Recipe
from edgeopt.records.trial import Parity
from edgeopt.tasks.given.onnx_file import OnnxTask

DEVICE_STAGE = "device"
HOST_PROVIDERS = ("CPUExecutionProvider",)


def runs_here(build: Build) -> bool:
    """Tell whether the device is this machine's processor with this very runtime, so there is nothing to compare."""
    return build.device.uri == "local:" and build.profile.providers == HOST_PROVIDERS


def host_target(build: Build) -> RunTarget:
    """Return this machine's processor as a place to run files, with the target's settings."""
    profile = msgspec.structs.replace(build.profile, providers=HOST_PROVIDERS)
    return replace(build.run_target, device=LocalDevice(), profile=profile)


def outputs_on_golden(build: Build, model: Path, inputs: Mapping[str, Array] | None = None) -> dict[str, Array]:
    """Return a file's outputs on the golden inputs, or on these, from this machine's processor."""
    return _outputs(build, model, host_target(build), "golden", inputs)


def device_parity(
    build: Build,
    sha256: str,
    recipe: Recipe,
    weight_types: tuple[str, ...] = (),
    parities: tuple[Parity, ...] = (),
) -> Parity | None:
    """Compare a file's golden outputs on the device with those on this machine, with the bundle's own tolerance.

    Other execution providers than the processor's have at least that of float16, since most of them multiply floats in
    half precision unless told otherwise (TF32, bfloat16). The score on the device then says what that costs.

    Args:
        build: The build.
        sha256: Of the file.
        recipe: What made it; an int8 file may differ more than one in float.
        weight_types: Of the file.
        parities: What was found of it on this machine.

    Returns:
        How far they are apart; None if the device is this machine.

    Raises:
        ParityError: an output is further off than the bundle's tolerance allows.
    """
    if runs_here(build):
        return None
    ratio = tolerance_ratio(recipe, weight_types, parities)
    if build.profile.providers != HOST_PROVIDERS:
        ratio = max(ratio, FLOAT16_TOLERANCE_RATIO)

    def make() -> Parity:
        model = build.workspace.artifact(sha256)
        here = outputs_on_golden(build, model)
        there = _outputs(build, model, build.run_target, DEVICE_STAGE)
        return compare_outputs(here, there, ratio)

    return build.ledger.remember(build.keys.of("device-parity", file=sha256, tolerance=ratio), Parity, make)


def compare_outputs(here: dict[str, Array], there: dict[str, Array], ratio: float) -> Parity:
    """Return how far outputs are apart.

    Raises:
        ParityError: one is missing, has another shape, or is further off than ``output_tolerance`` allows.
    """
    absolute = relative = 0.0
    for name, expected in here.items():
        allowed = output_tolerance(expected, ratio)
        difference = largest_difference(expected, there[name]) if name in there else float("inf")
        if not difference <= allowed:
            raise ParityError(
                DEVICE_STAGE,
                f"output '{name}' is off by {difference:.3g} on the device against this machine; {allowed:.3g} is "
                "allowed. An older onnxruntime there, or another provider, may compute an operator differently.",
            )
        absolute = max(absolute, difference)
        relative = max(relative, ratio * difference / allowed if allowed else 0.0)
    return Parity(stage=DEVICE_STAGE, max_abs_error=absolute, max_rel_error=relative, tolerance=ratio)


def _outputs(
    build: Build, model: Path, target: RunTarget, stage: str, inputs: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    (found,) = run_step(stage, run_arrays, model, [dict(inputs or build.data.golden_inputs)], target, stage)
    task = build.data.task
    return {name: found[name] for name in task.output_names} if isinstance(task, OnnxTask) else found
