"""``model.ort``: the winner in ONNX Runtime's own format, checked on the golden inputs.

In: a build, its choice and the winner's file. Out: the choice with an ``OrtFile``, or with a note that says why not.

A runtime that loads this format computes no constants. Weights that are stored in few bits are therefore unpacked
either in the file, which then has 2 to 4 times the bytes, or again in each run, which takes about 10 ns for each weight
of 4 bits: a network of 0.7 million weights took 8 ms instead of 0.07. The dense form ships if a smaller trial would
win: measured on the device, it has to keep every limit, and an A/B must not find it slower than the baseline.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from edgeopt.bench.compare import compare
from edgeopt.bench.measure import measure
from edgeopt.bench.outputs import run_arrays
from edgeopt.bundle.golden import Golden, spread_of
from edgeopt.errors import DeviceError, EdgeoptError, ParityError, StepError
from edgeopt.graph.apply import convert_to_ort_format
from edgeopt.graph.facts import measure_deflated
from edgeopt.model_files.layout import weight_files
from edgeopt.pipeline.artifacts.device_parity import HOST_PROVIDERS, host_target, runs_here
from edgeopt.pipeline.artifacts.evaluator import worst_measurement
from edgeopt.pipeline.boundary import run_step
from edgeopt.pipeline.context import Build, maker_versions
from edgeopt.records.choice import Choice, OrtFile
from edgeopt.records.profile import GraphLevel, OrtPlatform
from edgeopt.records.trial import Measured
from edgeopt.report import words
from edgeopt.report.proof import with_runtime
from edgeopt.select.limits import judge_device_limits
from edgeopt.statistics import comparison_ratio, verdict

_STAGE = "ort-format"
_MIN_SAVED_RATIO = 0.05
"""Of the unpacked form's bytes: for less, the dense one isn't worth a measurement."""
_MODEL_NAME, _OPERATORS_NAME = "model.ort", "required_operators.config"
_ARM_MACHINES = ("aarch64", "arm")


@dataclass(frozen=True)
class _Form:
    """One way to write the winner."""

    weights: Literal["unpacked", "stored"]
    model: Path
    operators: Path
    level: GraphLevel
    platform: OrtPlatform

    @property
    def size_bytes(self) -> int:
        return self.model.stat().st_size

    @property
    def record(self) -> OrtFile:
        return OrtFile(
            file=_MODEL_NAME,
            operators_file=_OPERATORS_NAME,
            size_bytes=self.size_bytes,
            download_bytes=measure_deflated(self.model),
            level=self.level,
            target_platform=self.platform,
            weights=self.weights,
            onnxruntime=maker_versions()["onnxruntime"],
        )


def add_ort_file(
    build: Build, choice: Choice, model: Path, golden: Golden, folder: Path
) -> tuple[Choice, dict[str, Path]]:
    """Write the winner in ONNX Runtime's own format, if the target asks for it.

    Args:
        build: The build.
        choice: Its choice, with a winner.
        model: The winner's file.
        golden: What the bundle has to check it with.
        folder: For the files.

    Returns:
        The choice with an ``OrtFile`` and notes, and the files by their name in the bundle; none if it failed.
    """
    if not build.profile.ort_format:
        return choice, {}
    build.progress("bundle", "model.ort")
    try:
        form, notes = _make(build, choice, model, golden, folder)
    except (StepError, DeviceError) as error:
        return _with_notes(build, choice, f"The bundle has no model.ort: {_reason(error)}"), {}
    ort = form.record
    notes = (*notes, *_over_limit(build, ort))
    files = {ort.file: form.model, ort.operators_file: form.operators}
    return msgspec.structs.replace(_with_notes(build, choice, *notes), ort=ort), files


def _reason(error: EdgeoptError) -> str:
    return error.reason if isinstance(error, StepError) else str(error)


def _with_notes(build: Build, choice: Choice, *notes: str) -> Choice:
    for note in notes:
        build.progress("note", note)
    return msgspec.structs.replace(choice, notes=(*choice.notes, *notes))


def _make(build: Build, choice: Choice, model: Path, golden: Golden, folder: Path) -> tuple[_Form, tuple[str, ...]]:
    """Return the form that ships, and notes about it.

    Raises:
        StepError, DeviceError: it cannot be made, or does not compute what the winner does.
    """
    _check_possible(build, model, golden)
    level = build.profile.graph_level
    first = _convert(build, model, folder, "stored" if level == "disabled" else "unpacked", level)
    _check_outputs(build, first, golden)
    if level == "disabled":
        return first, ()
    try:
        dense = _convert(build, model, folder, "stored", _dense_level(level, choice))
        if dense.size_bytes > (1 - _MIN_SAVED_RATIO) * first.size_bytes:
            return first, ()
        _check_outputs(build, dense, golden)
        objection = _find_objection(build, choice, dense)
    except (StepError, DeviceError) as error:
        objection = f"kept as model.onnx stores them, it failed ({_reason(error)})."
    if objection is None:
        return dense, ()
    return first, (f"model.ort holds weights unpacked, in {words.size(first.size_bytes)}: {objection}",)


def _dense_level(level: GraphLevel, choice: Choice) -> GraphLevel:
    """Return the level of the dense form: the last one stores weights of float16 in float32."""
    assert choice.winner is not None
    is_half = choice.trial(choice.winner).recipe.precision == "fp16"
    return "extended" if level == "all" and is_half else level


def _check_possible(build: Build, model: Path, golden: Golden) -> None:
    """Refuse what the format is not for.

    Raises:
        StepError: with the reason.
    """
    if build.profile.providers != HOST_PROVIDERS:
        others = ", ".join(name for name in build.profile.providers if name not in HOST_PROVIDERS)
        raise StepError(
            _STAGE,
            f"edgeopt writes it for the processor, and the target {build.profile.name} names {others}. Leave out "
            "--ort-format (ort_format in the profile), or build for a target with CPUExecutionProvider only.",
        )
    if weight_files(model):
        raise StepError(_STAGE, "the winner does not fit into one file, and this format has no place for a second one.")
    if not golden.outputs:
        raise StepError(_STAGE, "there are no golden outputs to check it with.")


def _convert(
    build: Build, model: Path, folder: Path, weights: Literal["unpacked", "stored"], level: GraphLevel
) -> _Form:
    form = _Form(
        weights=weights,
        model=folder / weights / _MODEL_NAME,
        operators=folder / weights / _OPERATORS_NAME,
        level=level,
        platform=_platform_of(build),
    )
    form.model.parent.mkdir()
    convert_to_ort_format(
        model, form.model, form.operators, level=level, platform=form.platform, folds=weights == "unpacked"
    )
    return form


def _platform_of(build: Build) -> OrtPlatform:
    """Return where the file will run: only a file for this very machine may have this processor's layout."""
    if build.device_info.kind != "measured":
        return "any"
    machine = platform.machine().lower() if runs_here(build) else build.device_info.id.lower()
    if machine.startswith(_ARM_MACHINES):
        return "arm"
    return "amd64" if runs_here(build) and machine in ("x86_64", "amd64") else "any"


def _check_outputs(build: Build, form: _Form, golden: Golden) -> None:
    """Compare outputs on the golden inputs with the bundle's.

    Raises:
        ParityError: an output is missing, or further off than its tolerance.
        StepError, DeviceError: it does not run on this machine.
    """
    (outputs,) = run_step(_STAGE, run_arrays, form.model, [dict(golden.inputs)], host_target(build), _STAGE)
    for name, expected in golden.outputs.items():
        spread = spread_of(expected, outputs[name]) if name in outputs else float("inf")
        if not spread <= golden.tolerances[name]:
            raise ParityError(
                _STAGE,
                f"output '{name}' of the converted file is off by {spread:.3g} on the golden inputs; "
                f"{golden.tolerances[name]:.3g} is allowed. Ship model.onnx, or try another graph_level.",
            )


def _find_objection(build: Build, choice: Choice, form: _Form) -> str | None:
    """Return why the dense form may not ship, in words; None if it may.

    Raises:
        StepError, DeviceError: it cannot be measured.
    """
    budget, baseline = build.budget, choice.trial(0).outcome
    if build.calibration is not None or not isinstance(baseline, Measured):
        return "the time to unpack them in each run could not be measured on the target."
    found = [
        run_step(
            _STAGE,
            measure,
            form.model,
            target,
            percentile=budget.latency_percentile,
            max_latency_ms=budget.max_latency_ms,
            progress=lambda _: None,
        )
        for target in build.run_targets
    ]
    worst = worst_measurement(found, budget.latency_percentile, budget.confidence)
    dense = (
        f"as dense as in model.onnx they would take {words.size(form.size_bytes)}, but unpacking them in each run would"
    )
    findings = judge_device_limits(worst, _deciding_bytes(build, form.record), budget)
    if missed := [str(one.limit) for one in findings if not one.kept]:
        return f"{dense} miss the limit on {words.listed(missed)}."
    original = build.workspace.artifact(baseline.artifact.sha256)
    against = run_step(_STAGE, compare, form.model, original, build.run_target, seed=build.seed)
    if verdict(against) != "slower":
        return None
    return f"{dense} take {words.times(comparison_ratio(against).value)} the time of the baseline."


def _deciding_bytes(build: Build, ort: OrtFile) -> int:
    return build.budget.deciding_bytes(ort.size_bytes, ort.download_bytes)


def _over_limit(build: Build, ort: OrtFile) -> tuple[str, ...]:
    allowed, found = build.budget.max_size_bytes, build.budget.judged_bytes(_deciding_bytes(build, ort))
    if allowed is None or found <= allowed:
        return ()
    size = f"{words.distinguishable(found, allowed, 'bytes')}{with_runtime(build.budget)}"
    limit = words.limit(allowed, "bytes")
    return (f"{ort.file} has {size}, but the size limit, which was judged on model.onnx, is {limit}.",)
