"""Graph steps in order, each from one file to the next. Every stage's file is kept, so that its parity can be checked.

Steps that may crash or that open an ONNX Runtime session run in a process of their own (``edgeopt.graph.jobs``). The
debug log shows each job, its duration, its exit code and what it printed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgeopt.errors import CrashError, StepError, last_line, signal_name
from edgeopt.graph.compatibility import check_compatibility
from edgeopt.graph.jobs.messages import (
    BitStudyJob,
    FakeQuantJob,
    FloatPrefixJob,
    GraphAnswer,
    GraphJob,
    OrtFormatJob,
    StepJob,
    StudyJob,
)
from edgeopt.graph.jobs.processes import run_job
from edgeopt.graph.steps import STEPS, Remarks, apply_step, name_of
from edgeopt.model_files.layout import copy_model
from edgeopt.records.codec import from_json, to_json
from edgeopt.records.profile import GraphLevel, OrtPlatform
from edgeopt.records.quantization import BitStudy, FakeQuantSites, SensitivityStudy
from edgeopt.records.recipe import GraphStep, Quantize

_logger = logging.getLogger(__name__)

_MAX_SECONDS = 1800.0
"""How long one step may take."""


class StepResult(NamedTuple):
    """One stage: its step, its file, and its notes for the report."""

    step: GraphStep
    path: Path
    notes: tuple[str, ...]
    names: Mapping[str, str]
    """What new names of inner values stand for."""


def apply_steps(
    steps: tuple[GraphStep, ...],
    source: Path,
    target: Path,
    *,
    calibration: Path | None,
    max_opset: int,
    max_ir: int,
) -> list[StepResult]:
    """Apply the steps one after another.

    Args:
        steps: In order; without any, the file is copied.
        source: The file to start from; it is not changed.
        target: Path of the last stage's file. Earlier ones are next to it, as ``STEM.0-simplify.onnx`` and so on.
        calibration: What a step reads samples or ranges from (``edgeopt.bench.outputs.write_batches``).
        max_opset: The newest operator set that the target loads.
        max_ir: The newest file format that the target loads.

    Raises:
        StepError: a step refused, crashed or ran out of time, or the target cannot load its file.
        StoppedError: ``kill_graph_processes`` was called.
    """
    if not steps:
        copy_model(source, target, link_weights=True)
    results: list[StepResult] = []
    for index, step in enumerate(steps):
        last = index == len(steps) - 1
        path = target if last else target.with_name(f"{target.stem}.{index}-{name_of(step)}.onnx")
        apply_one = _apply_in_subprocess if STEPS[type(step)].in_subprocess else apply_step
        notes, names = apply_one(step, source, path, calibration)
        check_compatibility(path, max_opset, max_ir, stage=name_of(step))
        results.append(StepResult(step, path, notes, names))
        source = path
    return results


def study_sensitivity_of_file(
    step: Quantize, source: Path, calibration: Path, held_back: int, *, rank: bool
) -> SensitivityStudy:
    """Compare calibration methods on a float file, and rank its nodes.

    See ``edgeopt.graph.quantization.sensitivity.study_sensitivity``.

    Raises:
        StepError: it refused, crashed or ran out of time.
    """
    job = StudyJob(
        step=step,
        source=_absolute(source),
        calibration=_absolute(calibration),
        held_back=held_back,
        rank=rank,
    )
    study = _run_worker(job, "study").study
    assert study is not None
    return study


def study_weight_bits_of_file(samples: int, source: Path, calibration: Path, held_back: int) -> BitStudy:
    """Measure how much fewer bits of each weight of a float file disturb its outputs.

    See ``edgeopt.graph.weights.bit_study.study_weight_bits``.

    Raises:
        StepError: it refused, crashed or ran out of time.
    """
    job = BitStudyJob(
        samples=samples, source=_absolute(source), calibration=_absolute(calibration), held_back=held_back
    )
    study = _run_worker(job, "study").bit_study
    assert study is not None
    return study


def find_fake_quant_sites(step: Quantize, source: Path, calibration: Path, inputs: Path, out: Path) -> FakeQuantSites:
    """Return where the int8 file of a float file rounds.

    See ``edgeopt.graph.quantization.fake_quant.read_fake_quant_sites``.

    Raises:
        StepError: it refused, crashed or ran out of time.
    """
    job = FakeQuantJob(
        step=step,
        source=_absolute(source),
        calibration=_absolute(calibration),
        inputs=_absolute(inputs),
        out=_absolute(out),
    )
    sites = _run_worker(job, "quantize-aware").fake_quant_sites
    assert sites is not None
    return sites


def write_float_prefix_files(
    step: Quantize, source: Path, calibration: Path, folder: Path, *, fused: bool
) -> tuple[tuple[str, ...], ...]:
    """Write int8 variants of a float file whose first layers stay float.

    See ``edgeopt.graph.quantization.float_prefix.write_float_prefixes``.

    Raises:
        StepError: it refused, crashed or ran out of time.
    """
    job = FloatPrefixJob(
        step=step,
        source=_absolute(source),
        calibration=_absolute(calibration),
        folder=_absolute(folder),
        fused=fused,
    )
    return _run_worker(job, "quantize").float_prefixes


def convert_to_ort_format(
    source: Path, target: Path, operators: Path, *, level: GraphLevel, platform: OrtPlatform, folds: bool
) -> None:
    """Write a model in ONNX Runtime's own format; see ``edgeopt.graph.ort_format.write_ort_format``.

    Raises:
        StepError: ONNX Runtime refused, crashed or ran out of time.
    """
    job = OrtFormatJob(
        source=_absolute(source),
        target=_absolute(target),
        operators=_absolute(operators),
        level=level,
        platform=platform,
        folds=folds,
    )
    _run_worker(job, "ort-format")


def _apply_in_subprocess(step: GraphStep, source: Path, target: Path, calibration: Path | None) -> Remarks:
    """Apply one step in a subprocess."""
    job = StepJob(
        step=step,
        source=_absolute(source),
        target=_absolute(target),
        calibration=None if calibration is None else _absolute(calibration),
    )
    return Remarks(_run_worker(job, name_of(step)).notes)


def _absolute(path: Path) -> str:
    """Return a path as jobs name it: the process that does a job may run in another folder."""
    return str(path.absolute())


def _run_worker(job: GraphJob, stage: str) -> GraphAnswer:
    """Do a job in a process of its own; errors name ``stage``."""
    _logger.debug("%s: sending %s for %s", stage, type(job).__name__, job.source)
    started = time.perf_counter()
    try:
        done = run_job(to_json(job), _MAX_SECONDS)
    except TimeoutError as error:
        _logger.debug("%s: killed after %.2f s", stage, time.perf_counter() - started)
        _log_printed(stage, str(error))
        raise CrashError(stage, f"did not end within {_MAX_SECONDS:.0f} s. The build continues without it.") from error
    _logger.debug("%s: exit code %d after %.2f s", stage, done.exit_code, time.perf_counter() - started)
    _log_printed(stage, done.printed)
    if done.exit_code != 0:
        raise CrashError(stage, _describe_exit(done.exit_code, done.printed), done.printed)
    try:
        answer = from_json(done.answer, GraphAnswer)
    except msgspec.DecodeError as error:
        raise CrashError(stage, f"its process gave no answer ({error}).", done.printed) from error
    if answer.reason is not None:
        raise StepError(stage, answer.reason, done.printed)
    return answer


def _log_printed(stage: str, printed: str) -> None:
    for line in printed.splitlines():
        _logger.debug("%s: printed: %s", stage, line)


def _describe_exit(code: int, trace: str) -> str:
    """Say how a subprocess failed."""
    if code < 0:
        return f"its process was ended by {signal_name(-code)}. The build continues without it."
    return f"its process failed: {last_line(trace) or f'exit code {code}'}"
