"""Graph steps in order, each from one file to the next; every stage's file stays, so that parity can be checked."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgeopt.errors import StepError
from edgeopt.graph.compatibility import check_ceiling
from edgeopt.graph.steps import STEPS, AnyStep, apply_step, name_of
from edgeopt.graph.subprocess_worker import FakeQuantJob, FloatPrefixJob, GraphAnswer, GraphJob, StepJob, StudyJob
from edgeopt.records.codec import from_json, to_json
from edgeopt.records.quantization import FakeQuantSites, SensitivityStudy
from edgeopt.records.recipe import Quantize

_MAX_SECONDS = 1800.0
"""How long one step may take."""


class StepResult(NamedTuple):
    """One stage: what was done, where the file is, and what the report has to say."""

    step: AnyStep
    path: Path
    notes: tuple[str, ...]


def apply_steps(
    steps: tuple[AnyStep, ...],
    source: Path,
    target: Path,
    *,
    calibration: Path | None,
    max_opset: int,
    max_ir: int,
) -> list[StepResult]:
    """Do the steps one after the other.

    Args:
        steps: In order; none is a plain copy.
        source: The file to start from; it is not changed.
        target: Where the last stage's file goes. Earlier ones lie beside it as ``STEM.0-simplify.onnx`` and so on.
        calibration: An uncompressed ``.npz`` with keys ``B/NAME`` (batch index, input name), for ``Quantize``.
        max_opset: The newest operator set that the target loads.
        max_ir: The newest file format that the target loads.

    Raises:
        StepError: a step refused, crashed or ran out of time, or its file breaks a ceiling.
    """
    if not steps:
        shutil.copyfile(source, target)
    results: list[StepResult] = []
    for index, step in enumerate(steps):
        last = index == len(steps) - 1
        path = target if last else target.with_name(f"{target.stem}.{index}-{name_of(step)}.onnx")
        run = _run_apart if STEPS[type(step)].apart else apply_step
        notes = run(step, source, path, calibration)
        check_ceiling(path, max_opset, max_ir, stage=name_of(step))
        results.append(StepResult(step, path, notes))
        source = path
    return results


def study_sensitivity_of_file(
    step: Quantize, source: Path, calibration: Path, held_back: int, *, rank: bool
) -> SensitivityStudy:
    """Compare calibration methods on a float file, and rank its nodes; see ``edgeopt.graph.quantization.sensitivity.study_sensitivity``.

    Raises:
        StepError: it refused, crashed or ran out of time.
    """
    job = StudyJob(
        step=step,
        source=str(source.absolute()),
        calibration=str(calibration.absolute()),
        held_back=held_back,
        rank=rank,
    )
    found = _ask_child(job, "study").study
    assert found is not None
    return found


def find_fake_quant_sites(step: Quantize, source: Path, calibration: Path, inputs: Path, out: Path) -> FakeQuantSites:
    """Return where the int8 file of a float file rounds; see ``edgeopt.graph.quantization.fake_quant.read_fake_quant_sites``.

    Raises:
        StepError: it refused, crashed or ran out of time.
    """
    job = FakeQuantJob(
        step=step,
        source=str(source.absolute()),
        calibration=str(calibration.absolute()),
        inputs=str(inputs.absolute()),
        out=str(out.absolute()),
    )
    found = _ask_child(job, "quantize-aware").fake_quant_sites
    assert found is not None
    return found


def write_float_prefix_files(
    step: Quantize, source: Path, calibration: Path, folder: Path, *, fused: bool
) -> tuple[tuple[str, ...], ...]:
    """Write int8 forms of a float file whose first layers stay float; see ``edgeopt.graph.quantization.float_prefix.write_float_prefixes``.

    Raises:
        StepError: it refused, crashed or ran out of time.
    """
    job = FloatPrefixJob(
        step=step,
        source=str(source.absolute()),
        calibration=str(calibration.absolute()),
        folder=str(folder.absolute()),
        fused=fused,
    )
    return _ask_child(job, "quantize").float_prefixes


def _run_apart(step: AnyStep, source: Path, target: Path, calibration: Path | None) -> tuple[str, ...]:
    """Do one step in a child process."""
    job = StepJob(
        step=step,
        source=str(source.absolute()),
        target=str(target.absolute()),
        calibration=None if calibration is None else str(calibration.absolute()),
    )
    return _ask_child(job, name_of(step)).notes


def _ask_child(job: GraphJob, name: str) -> GraphAnswer:
    """Do a job in a process of its own; ``name`` is the stage that errors name."""
    command = [sys.executable, "-m", "edgeopt.graph.subprocess_worker"]
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    try:
        done = subprocess.run(
            command,
            input=to_json(job),
            capture_output=True,
            env=environment,
            timeout=_MAX_SECONDS,
            check=False,
            start_new_session=True,  # so that Ctrl-C reaches the parent alone
        )
    except subprocess.TimeoutExpired as error:
        raise StepError(name, f"did not end within {_MAX_SECONDS:.0f} s. Leave this step out.") from error
    trace = done.stderr.decode(errors="replace")
    if done.returncode != 0:
        raise StepError(name, _death(done.returncode, trace), trace)
    try:
        answer = from_json(done.stdout, GraphAnswer)
    except msgspec.DecodeError as error:
        raise StepError(name, f"its process gave no answer ({error}).", trace) from error
    if answer.reason is not None:
        raise StepError(name, answer.reason, trace)
    return answer


def _death(code: int, trace: str) -> str:
    """Say how a child process ended."""
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}. Leave this step out."
    lines = [line for line in trace.splitlines() if line.strip()]
    return f"its process failed: {lines[-1] if lines else f'exit code {code}'}"
