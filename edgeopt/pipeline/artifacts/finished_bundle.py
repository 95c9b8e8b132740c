"""The folder that an app takes: the winner, golden arrays with measured tolerances, and how inputs are made.

In: a build and its choice. Out: the bundle, and the choice with what was found on the way.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeopt.bench.outputs import run_arrays
from edgeopt.bench.run_target import RunTarget
from edgeopt.bundle.golden import (
    INT8_TOLERANCE_RATIO,
    NO_GOLDEN,
    Array,
    Golden,
    GoldenAnswer,
    find_answers,
    largest_difference,
    measured_tolerance,
    tolerance_ratio,
)
from edgeopt.bundle.manifest import Origin
from edgeopt.bundle.raw_inputs import RawInput, ResizedImage, make_raw, make_resized, pixels_of
from edgeopt.bundle.write import write_bundle
from edgeopt.errors import DataError, DeviceError, StepError
from edgeopt.model_files.layout import is_unchanged
from edgeopt.pipeline.artifacts.device_parity import DEVICE_STAGE, host_target, outputs_on_golden
from edgeopt.pipeline.context import Build, maker_versions
from edgeopt.pipeline.judged_sizes import dynamic_dimensions
from edgeopt.records.choice import Choice
from edgeopt.records.preprocessing import ImagePreprocessing, Preprocessing
from edgeopt.records.profile import GraphLevel
from edgeopt.records.trial import Measured

_LEVELS: tuple[GraphLevel, ...] = ("disabled", "basic")
"""Beside the target's own: other runtimes fuse other nodes."""
_BYTE_STEPS = 255
_FLOAT_NOISE_RATIO = 1e-6
"""Of the largest value: what one rounding more or less changes in float32."""
_UNKNOWN_INPUTS = (
    "The task has no `preprocessing` as data, and an app that guesses it is silently wrong. Give the "
    "task `preprocessing=edgeopt.ImagePreprocessing(...)` (`edgeopt guide app`)."
)


def write_finished(build: Build, choice: Choice, out: Path, command: tuple[str, ...]) -> Choice:
    """Write the folder that an app takes, and return the choice with notes and warnings about it.

    Raises:
        StepError: the winner's file was changed after it was made.
        WorkspaceError: the folder cannot be written.
    """
    with build.clock.stage("bundle"):
        build.progress("bundle", str(out))
        model, golden = None, NO_GOLDEN
        preprocessing = _preprocessing(build)
        if choice.winner is not None:
            outcome = choice.trial(choice.winner).outcome
            assert isinstance(outcome, Measured)
            sha256 = outcome.artifact.sha256
            model = build.workspace.artifact(sha256)
            if not is_unchanged(model, sha256):
                raise StepError("bundle", f"{model} was changed after it was made. Delete it and run again.")
            try:
                golden = make_golden(build, model, choice.trial(choice.winner).recipe, outcome, preprocessing)
            except (StepError, DeviceError) as error:
                note = f"The bundle has no golden arrays, because the winner could not be run on this machine: {error}"
                choice = msgspec.structs.replace(choice, notes=(*choice.notes, note))
            choice = _with_warnings(build, choice, preprocessing)
        write_bundle(out, choice, model=model, golden=golden, origin=_origin(build, preprocessing, command))
        return choice


def _origin(build: Build, preprocessing: Mapping[str, Preprocessing], command: tuple[str, ...]) -> Origin:
    task = build.data.task
    return Origin(
        labels=task.labels,
        preprocessing=_in_words(task.preprocessing),
        postprocessing=task.postprocessing,
        versions=dict(maker_versions()),
        seed=build.seed,
        command=shlex.join(command),
        dynamic=tuple(dynamic_dimensions(task, build.sizes)),
        value_ranges=_value_ranges(build),
        input_preprocessing=dict(preprocessing),
        licence=task.licence,
    )


def _preprocessing(build: Build) -> dict[str, Preprocessing]:
    """Return how inputs are made, by name, as far as the task says it as data."""
    said = build.data.task.preprocessing
    if isinstance(said, str):
        return {}
    return dict(said) if isinstance(said, Mapping) else {build.data.task.input_names[0]: said}


def _in_words(said: str | Preprocessing | Mapping[str, Preprocessing]) -> str:
    if isinstance(said, Mapping):
        return "; ".join(f"'{name}': {how.text}" for name, how in said.items())
    return said if isinstance(said, str) else said.text


def _value_ranges(build: Build) -> dict[str, tuple[float, float]]:
    """Return the smallest and largest finite value of each input over the samples on which the build judged."""
    ranges: dict[str, tuple[float, float]] = {}
    for batch in build.data.fed_inputs:
        for name, values in batch.items():
            finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
            if finite.size:
                low, high = ranges.get(name, (np.inf, -np.inf))
                ranges[name] = (min(low, float(finite.min())), max(high, float(finite.max())))
    return ranges


def _with_warnings(build: Build, choice: Choice, preprocessing: Mapping[str, Preprocessing]) -> Choice:
    """Return a choice that warns of inputs which its preprocessing cannot give, or of which nothing is known."""
    if not preprocessing:
        if build.data.task.preprocessing:
            return choice  # said in words
        if build.data.task.kind == "onnx":
            return choice  # whoever has only the file does not know more
        return msgspec.structs.replace(choice, warnings=(*choice.warnings, _UNKNOWN_INPUTS))
    found = [reason for _, _, reason in _raw_inputs(build, preprocessing) if reason]
    warnings = [f"The task's own preprocessing does not give its inputs: {reason}" for reason in found]
    return msgspec.structs.replace(choice, warnings=(*choice.warnings, *warnings))


def _raw_inputs(build: Build, preprocessing: Mapping[str, Preprocessing]) -> Iterator[tuple[str, RawInput | None, str]]:
    """Yield each input whose preprocessing is known, with the files that give it or the reason why none do."""
    for name, how in preprocessing.items():
        if name not in build.data.golden_inputs:
            yield name, None, f"there is no input '{name}'; there are {', '.join(build.data.golden_inputs)}."
            continue
        try:
            yield name, make_raw(name, build.data.golden_inputs[name], how), ""
        except DataError as error:
            yield name, None, str(error)


def make_golden(
    build: Build, model: Path, recipe: Any, outcome: Measured, preprocessing: Mapping[str, Preprocessing]
) -> Golden:
    """Run the winner on golden inputs, and measure how far its outputs may be off elsewhere.

    Raises:
        StepError, DeviceError: it does not run on this machine.
    """
    raw = {name: one for name, one, _ in _raw_inputs(build, preprocessing) if one is not None}
    inputs = {name: raw[name].values if name in raw else array for name, array in build.data.golden_inputs.items()}
    outputs = outputs_on_golden(build, model, inputs)
    ratio = tolerance_ratio(recipe, outcome.artifact.weight_types, outcome.artifact.parities)
    spread = _spread(build, model, inputs, outputs, steps=_BYTE_STEPS if ratio >= INT8_TOLERANCE_RATIO else None)
    on_device = max((one.max_abs_error for one in outcome.artifact.parities if one.stage == DEVICE_STAGE), default=0.0)
    tolerances = {
        name: measured_tolerance(output, max(spread[name], on_device), ratio) for name, output in outputs.items()
    }
    resized = {name: _resized(name, one.values, preprocessing[name]) for name, one in raw.items()}
    return Golden(
        inputs=inputs,
        outputs=outputs,
        tolerances=tolerances,
        raw=raw,
        resized={name: image for name, image in resized.items() if image is not None},
        answers=_answers(build, outputs, tolerances),
    )


def _resized(name: str, values: Array, how: Preprocessing) -> ResizedImage | None:
    return make_resized(pixels_of(name, values, how)[0], how) if isinstance(how, ImagePreprocessing) else None


def _answers(build: Build, outputs: Mapping[str, Array], tolerances: Mapping[str, float]) -> tuple[GoldenAnswer, ...]:
    """Return the classes that outputs of scores name; by the score's own reading of them if there is one."""
    kind, labels = build.data.score_kind, build.data.task.labels
    if kind is None:
        output = build.data.task.output_names[0]  # a task that scores itself, with a name for each value
        axes = {output: 1} if labels and outputs[output].shape[1:] == (len(labels),) else {}
    else:
        axes = {part.output: part.class_axis for part in kind.parts if part.layout == "classes"}
    return tuple(
        answer
        for name, axis in axes.items()
        for answer in find_answers(name, outputs[name], axis, labels, tolerances[name])
    )


def _spread(
    build: Build, model: Path, inputs: Mapping[str, Array], outputs: Mapping[str, Array], steps: int | None
) -> dict[str, float]:
    """Return the largest difference of each output between ways in which a correct runtime may compute it.

    Args:
        build: The build.
        model: The file.
        inputs: Golden ones.
        outputs: The expected ones.
        steps: Into which 8 bits divide an input's range, if activations have 8 bits; None for float.
    """
    target = host_target(build)
    found = [_run_again(model, inputs, _at_level(target, level)) for level in _LEVELS]
    found += [_run_again(model, _nudged(inputs, steps, seed), target) for seed in range(2)]
    return {
        name: max((largest_difference(output, other[name]) for other in found if other is not None), default=0.0)
        for name, output in outputs.items()
    }


def _at_level(target: RunTarget, level: GraphLevel) -> RunTarget:
    return replace(target, profile=msgspec.structs.replace(target.profile, graph_level=level))


def _run_again(model: Path, inputs: Mapping[str, Array], target: RunTarget) -> dict[str, Any] | None:
    """Return outputs; None if the file only runs at its own graph level."""
    try:
        (outputs,) = run_arrays(model, [dict(inputs)], target, "golden")
    except StepError:
        return None
    return outputs


def _nudged(inputs: Mapping[str, Array], steps: int | None, seed: int) -> dict[str, Any]:
    """Return inputs off by half a step of 8 bits, or by a rounding of float32: other kernels round otherwise."""
    generator = np.random.default_rng(seed)
    nudged: dict[str, Any] = dict(inputs)
    for name, array in inputs.items():
        if array.dtype.kind != "f":
            continue
        values = array.astype(np.float64)
        size = np.ptp(values) / steps if steps else 2 * _FLOAT_NOISE_RATIO * float(np.abs(values).max(initial=0))
        nudged[name] = (values + size * (generator.random(values.shape) - 0.5)).astype(array.dtype)
    return nudged
