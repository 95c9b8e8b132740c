"""The folder that an app takes: the winner, golden arrays with measured tolerances, and how inputs are made.

In: a build and its choice. Out: the bundle, and the choice with what was found on the way.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeopt.bench.outputs import run_arrays
from edgeopt.bench.run_target import RunTarget
from edgeopt.bundle.box_answers import BoxMaps, find_box_answers
from edgeopt.bundle.golden import (
    INT8_TOLERANCE_RATIO,
    NO_GOLDEN,
    Array,
    Golden,
    GoldenAnswer,
    find_answers,
    measured_tolerance,
    output_tolerance,
    spread_of,
    tolerance_ratio,
)
from edgeopt.bundle.manifest import Origin
from edgeopt.bundle.raw_inputs import ResizedImage, make_resized, pixels_of
from edgeopt.bundle.signature import PrivateKey
from edgeopt.bundle.stated_inputs import StatedInputs
from edgeopt.bundle.write import write_bundle
from edgeopt.errors import DeviceError, StepError
from edgeopt.model_files.layout import is_unchanged
from edgeopt.pipeline.artifacts.device_parity import DEVICE_STAGE, host_target, outputs_on_golden
from edgeopt.pipeline.artifacts.ort_format.ort_file import add_ort_file
from edgeopt.pipeline.context import Build, maker_versions
from edgeopt.pipeline.judged_sizes import dynamic_dimensions
from edgeopt.pipeline.task_data import OWN_METADATA
from edgeopt.records.choice import Choice
from edgeopt.records.codec import to_json
from edgeopt.records.preprocessing import ImagePreprocessing, Preprocessing
from edgeopt.records.profile import GraphLevel, Profile
from edgeopt.records.recipe import Recipe
from edgeopt.records.trial import Measured
from edgeopt.tasks.given.onnx_file import OnnxTask
from edgeopt.tasks.peaks import LOG_SIDES, MAX_PEAKS

_LEVELS: tuple[GraphLevel, ...] = ("disabled", "basic")
"""Besides the target's own: other runtimes fuse other nodes."""
MAX_LABEL_BYTES = 1024
"""Of the labels in the file's metadata; the manifest has them in any case."""
_BYTE_STEPS = 255
_FLOAT_NOISE_RATIO = 1e-6
"""Of the largest value: what one rounding more or less changes in float32."""


def metadata_for_apps(build: Build) -> dict[str, str]:
    """Return what the file itself says to an app that has nothing else of the bundle: JSON by name.

    Many labels are left out: they would be a large part of a small file.
    """
    labels, inputs, boxes = list(build.data.task.labels), build.data.stated_inputs.preprocessing, _box_maps(build)
    found = {f"{OWN_METADATA}inputs": to_json(inputs).decode()} if inputs else {}
    found |= {f"{OWN_METADATA}boxes": to_json(boxes).decode()} if boxes else {}
    text = to_json(labels)
    return found | ({f"{OWN_METADATA}labels": text.decode()} if labels and len(text) <= MAX_LABEL_BYTES else {})


def write_finished(
    build: Build,
    choice: Choice,
    out: Path,
    command: tuple[str, ...],
    profile: Profile,
    key: PrivateKey | None = None,
) -> Choice:
    """Write the folder that an app takes, signed if there is a key; return the choice with what was found on the way.

    Args:
        build: The build.
        choice: What it chose.
        out: The folder.
        command: The build's.
        profile: The target as the user gave it; a quick build, or one on a stand-in, has changed its own.
        key: Signs the bundle.

    Raises:
        StepError: the winner's file was changed after it was made.
        WorkspaceError: the folder cannot be written.
    """
    build.clock.count_rest()
    with build.clock.stage("bundle"), tempfile.TemporaryDirectory(prefix="edgeopt-bundle-") as folder:
        build.progress("bundle", str(out))
        model, golden, names, further = None, NO_GOLDEN, dict[str, str](), dict[str, Path]()
        inputs = build.data.stated_inputs
        if choice.winner is not None:
            outcome = choice.measured(choice.winner)
            sha256, names = outcome.artifact.sha256, outcome.artifact.names
            model = build.workspace.artifact(sha256)
            if not is_unchanged(model, sha256):
                raise StepError("bundle", f"{model} was changed after it was made. Delete it and run again.")
            try:
                golden = make_golden(build, model, choice.trial(choice.winner).recipe, outcome, inputs)
            except (StepError, DeviceError) as error:
                note = f"The bundle has no golden arrays, because the winner could not be run on this machine: {error}"
                choice = msgspec.structs.replace(choice, notes=(*choice.notes, note))
            warnings, notes = (*choice.warnings, *inputs.warnings), (*choice.notes, *inputs.notes)
            choice = msgspec.structs.replace(choice, warnings=warnings, notes=notes)
            choice, further = add_ort_file(build, choice, model, golden, Path(folder))
        origin = _origin(build, inputs, command, names, profile)
        write_bundle(out, choice, model=model, golden=golden, origin=origin, key=key, further=further)
        return choice


def _origin(
    build: Build, inputs: StatedInputs, command: tuple[str, ...], names: dict[str, str], profile: Profile
) -> Origin:
    task = build.data.task
    return Origin(
        labels=task.labels,
        preprocessing=_in_words(task.preprocessing),
        postprocessing=task.postprocessing,
        versions=dict(maker_versions()),
        min_onnxruntime=build.profile.min_onnxruntime,
        seed=build.seed,
        command=shlex.join(command),
        dynamic=tuple(dynamic_dimensions(task, build.sizes)),
        value_ranges=_value_ranges(build),
        class_axes=_class_axes(build),
        boxes=_box_maps(build),
        input_preprocessing=inputs.preprocessing,
        states=build.data.states,
        zero_states=build.data.zero_states,
        licence=task.licence,
        names=names,
        profile=profile,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _in_words(said: str | Preprocessing | Mapping[str, Preprocessing]) -> str:
    if isinstance(said, Mapping):
        return "; ".join(f"'{name}': {how.text}" for name, how in said.items())
    return said if isinstance(said, str) else said.text


def _value_ranges(build: Build) -> dict[str, tuple[float, float]]:
    """Return the smallest and largest finite value of each input over the samples on which the build judged."""
    ranges: dict[str, tuple[float, float]] = {}
    for batch in build.data.fed_inputs:
        for name, values in batch.items():
            if name in build.data.states or values.dtype.kind not in "biuf":
                continue
            finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
            if finite.size:
                low, high = ranges.get(name, (np.inf, -np.inf))
                ranges[name] = (min(low, float(finite.min())), max(high, float(finite.max())))
    return ranges


def make_golden(build: Build, model: Path, recipe: Recipe, outcome: Measured, stated: StatedInputs) -> Golden:
    """Run the winner on golden inputs, and measure how far its outputs may be off elsewhere.

    Raises:
        StepError, DeviceError: it does not run on this machine.
    """
    raw = stated.raw
    inputs = {name: raw[name].values if name in raw else array for name, array in build.data.golden_inputs.items()}
    outputs = outputs_on_golden(build, model, inputs)
    ratio = tolerance_ratio(recipe, outcome.artifact.weight_types, outcome.artifact.parities)
    spread = _spread(build, model, inputs, outputs, steps=_BYTE_STEPS if ratio >= INT8_TOLERANCE_RATIO else None)
    on_device = max((one.max_rel_error for one in outcome.artifact.parities if one.stage == DEVICE_STAGE), default=0.0)
    tolerances = {
        name: measured_tolerance(output, max(spread[name], output_tolerance(output, on_device)), ratio)
        for name, output in outputs.items()
    }
    resized = {name: _resized(name, one.values, stated.preprocessing[name]) for name, one in raw.items()}
    return Golden(
        inputs=inputs,
        outputs=outputs,
        tolerances=tolerances,
        raw=raw,
        resized={name: image for name, image in resized.items() if image is not None},
        answers=_answers(build, outputs, tolerances),
    )


def _resized(name: str, values: Array, how: Preprocessing) -> ResizedImage | None:
    return make_resized(pixels_of(name, values, how), how) if isinstance(how, ImagePreprocessing) else None


def _class_axes(build: Build) -> dict[str, int]:
    """Return the dimension of the classes by output of scores; by the score's own reading of them if there is one."""
    kind, task = build.data.score_kind, build.data.task
    if kind is not None:
        return {part.output: part.class_axis for part in kind.parts if part.layout == "classes"}
    if isinstance(task, OnnxTask) or len(task.labels) < 2:
        return {}
    wanted = (len(task.labels),)  # a task that scores itself, with a name for each value
    outputs = zip(task.output_names, task.interface.example_outputs[0], strict=True)
    return {name: 1 for name, output in outputs if tuple(output.shape[1:]) == wanted}


def _box_maps(build: Build) -> BoxMaps | None:
    """Return how an app reads boxes from the outputs; None if they give none, or if the task's own ``decode`` does."""
    task: Any = None if isinstance(build.data.task, OnnxTask) else build.data.task.task
    names = build.data.task.output_names
    if not getattr(task, "reads_maps", False) or len(names) != 2:
        return None
    heatmap, sides = names
    return BoxMaps(
        heatmap=heatmap,
        sides=sides,
        stride=task.stride,
        log_sides=LOG_SIDES,
        min_score=task.min_score,
        max_boxes=MAX_PEAKS,
    )


def _answers(build: Build, outputs: Mapping[str, Array], tolerances: Mapping[str, float]) -> tuple[GoldenAnswer, ...]:
    """Return the boxes that maps give, or the classes that outputs of scores name."""
    maps = _box_maps(build)
    if maps is not None:
        return find_box_answers(maps, outputs, tolerances, build.data.task.labels)
    return tuple(
        answer
        for name, axis in _class_axes(build).items()
        for answer in find_answers(name, outputs[name], axis, build.data.task.labels, tolerances[name])
    )


def _spread(
    build: Build, model: Path, inputs: Mapping[str, Array], outputs: Mapping[str, Array], steps: int | None
) -> dict[str, float]:
    """Return how far each output is apart between ways in which a correct runtime may compute it.

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
        name: max((spread_of(output, other[name]) for other in found if other is not None), default=0.0)
        for name, output in outputs.items()
    }


def _at_level(target: RunTarget, level: GraphLevel) -> RunTarget:
    return replace(target, profile=msgspec.structs.replace(target.profile, graph_level=level))


def _run_again(model: Path, inputs: Mapping[str, Array], target: RunTarget) -> dict[str, Any] | None:
    """Return outputs; None if the file only runs at its own graph level."""
    try:
        (outputs,) = run_arrays(model, [dict(inputs)], target, "golden")
    except (StepError, DeviceError):
        return None
    return outputs


def _nudged(inputs: Mapping[str, Array], steps: int | None, seed: int) -> dict[str, Any]:
    """Return inputs off by half a step of 8 bits, or by a rounding of float32: other kernels round otherwise."""
    generator = np.random.default_rng(seed)
    nudged: dict[str, Any] = dict(inputs)
    for name, array in inputs.items():
        if array.dtype.kind == "f" and array.size:
            values = array.astype(np.float64)
            size = np.ptp(values) / steps if steps else 2 * _FLOAT_NOISE_RATIO * float(np.abs(values).max(initial=0))
            nudged[name] = (values + size * (generator.random(values.shape) - 0.5)).astype(array.dtype)
        elif array.dtype == np.uint8 and steps:  # pixels: a quarter of them one level up or down
            moves = generator.integers(-1, 2, array.shape) * generator.integers(0, 2, array.shape)
            moved = array.astype(np.int16) + moves
            nudged[name] = moved.clip(0, 255).astype(np.uint8)
    return nudged
