"""Runs one graph step or one int8 study in a subprocess: ``python -m edgeopt.graph.subprocess_worker [DESCRIPTOR]``.

A ``GraphJob`` in JSON goes in on stdin, a ``GraphAnswer`` comes out on stdout. A library that crashes ends this
process, not the build, and no ONNX Runtime session shares a process with torch. Output of libraries goes to stderr, so
that stdout holds only the answer. The process ends when the pipe of ``DESCRIPTOR`` does: then its parent is gone.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from pathlib import Path

import msgspec

from edgeopt.errors import StepError
from edgeopt.records.base import Record
from edgeopt.records.codec import to_json
from edgeopt.records.quantization import FakeQuantSites, SensitivityStudy
from edgeopt.records.recipe import GraphStep, Quantize


class StepJob(Record, frozen=True, kw_only=True, tag_field="job", tag="step"):
    """One step to apply."""

    step: GraphStep
    source: str
    target: str
    calibration: str | None


class StudyJob(Record, frozen=True, kw_only=True, tag_field="job", tag="study"):
    """How int8 changes a network's outputs; see ``edgeopt.graph.quantization.sensitivity.study_sensitivity``."""

    step: Quantize
    source: str
    calibration: str
    held_back: int
    rank: bool


class FakeQuantJob(Record, frozen=True, kw_only=True, tag_field="job", tag="fake-quant"):
    """Where an int8 file rounds; see ``edgeopt.graph.quantization.fake_quant.read_fake_quant_sites``."""

    step: Quantize
    source: str
    calibration: str
    inputs: str
    out: str


class FloatPrefixJob(Record, frozen=True, kw_only=True, tag_field="job", tag="float-prefix"):
    """Int8 variants whose first layers stay float.

    See ``edgeopt.graph.quantization.float_prefix.write_float_prefixes``.
    """

    step: Quantize
    source: str
    calibration: str
    folder: str
    fused: bool


GraphJob = StepJob | StudyJob | FakeQuantJob | FloatPrefixJob


class GraphAnswer(Record, frozen=True, kw_only=True):
    """The result of a job."""

    notes: tuple[str, ...]
    reason: str | None
    """Why the step refused; None if it was done."""
    study: SensitivityStudy | None = None
    fake_quant_sites: FakeQuantSites | None = None
    float_prefixes: tuple[tuple[str, ...], ...] = ()


def main() -> None:
    """Do the job on stdin; print the answer."""
    if len(sys.argv) > 1:
        threading.Thread(target=_end_with_pipe, args=(int(sys.argv[1]),), daemon=True).start()
    answers = os.dup(1)
    os.dup2(2, 1)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    sys.modules["torch"] = None  # type: ignore[assignment]  # libraries would import it for nothing
    job: GraphJob = msgspec.json.decode(sys.stdin.buffer.read(), type=GraphJob)
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        os.chdir(folder)  # ONNX Runtime leaves a model there if its shape inference fails
        try:
            answer = _do(job)
        except StepError as error:
            answer = GraphAnswer(notes=(), reason=error.reason)
        os.chdir(tempfile.gettempdir())
    with open(answers, "wb") as file:  # noqa: PTH123 - a descriptor has no path
        file.write(to_json(answer))


def _end_with_pipe(descriptor: int) -> None:
    os.read(descriptor, 1)
    os._exit(1)


def _do(job: GraphJob) -> GraphAnswer:
    """Do a job; imports come only here, after torch is blocked."""
    if isinstance(job, StudyJob):
        from edgeopt.graph.model import load
        from edgeopt.graph.quantization.sensitivity import study_sensitivity

        model = load(Path(job.source), "study")
        study = study_sensitivity(model, job.step, Path(job.calibration), job.held_back, rank=job.rank)
        return GraphAnswer(notes=(), reason=None, study=study)
    if isinstance(job, FakeQuantJob):
        from edgeopt.graph.model import load
        from edgeopt.graph.quantization.fake_quant import read_fake_quant_sites

        model = load(Path(job.source), "quantize-aware")
        sites = read_fake_quant_sites(model, job.step, Path(job.calibration), Path(job.inputs), Path(job.out))
        return GraphAnswer(notes=(), reason=None, fake_quant_sites=sites)
    if isinstance(job, FloatPrefixJob):
        from edgeopt.graph.model import load
        from edgeopt.graph.quantization.float_prefix import write_float_prefixes

        model = load(Path(job.source), "quantize")
        prefixes = write_float_prefixes(model, job.step, Path(job.calibration), Path(job.folder), fused=job.fused)
        return GraphAnswer(notes=(), reason=None, float_prefixes=prefixes)
    from edgeopt.graph.steps import apply_step

    calibration = None if job.calibration is None else Path(job.calibration)
    return GraphAnswer(notes=apply_step(job.step, Path(job.source), Path(job.target), calibration), reason=None)


if __name__ == "__main__":
    main()
