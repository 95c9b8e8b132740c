"""A graph step or a look at what int8 does in a process of its own: ``python -m edgeopt.graph.subprocess_worker``.

A job as JSON in, an ``GraphAnswer`` out. A library that crashes takes this process down, not the build; and no session ever
lives beside torch. What libraries print goes to stderr, so that stdout holds the answer alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from edgeopt.errors import StepError
from edgeopt.records.base import Record
from edgeopt.records.codec import to_json
from edgeopt.records.quantization import FakeQuantSites, SensitivityStudy
from edgeopt.records.recipe import FuseQLinear, GraphStep, Quantize


class StepJob(Record, frozen=True, kw_only=True, tag_field="job", tag="step"):
    """One step to do."""

    step: GraphStep | FuseQLinear
    source: str
    target: str
    calibration: str | None


class StudyJob(Record, frozen=True, kw_only=True, tag_field="job", tag="study"):
    """What int8 does to a network; see ``edgeopt.graph.quantization.sensitivity.study_sensitivity``."""

    step: Quantize
    source: str
    calibration: str
    held_back: int
    rank: bool


class FakeQuantJob(Record, frozen=True, kw_only=True, tag_field="job", tag="roundings"):
    """Where an int8 file rounds; see ``edgeopt.graph.quantization.fake_quant.read_fake_quant_sites``."""

    step: Quantize
    source: str
    calibration: str
    inputs: str
    out: str


class FloatPrefixJob(Record, frozen=True, kw_only=True, tag_field="job", tag="fronts"):
    """Int8 forms whose first layers stay float; see ``edgeopt.graph.quantization.float_prefix.write_float_prefixes``."""

    step: Quantize
    source: str
    calibration: str
    folder: str
    fused: bool


GraphJob = StepJob | StudyJob | FakeQuantJob | FloatPrefixJob


class GraphAnswer(Record, frozen=True, kw_only=True):
    """What came of it."""

    notes: tuple[str, ...]
    reason: str | None
    """Why the step refused; None where it was done."""
    study: SensitivityStudy | None = None
    fake_quant_sites: FakeQuantSites | None = None
    float_prefixes: tuple[tuple[str, ...], ...] = ()


def main() -> None:
    """Do the job on stdin; print the answer."""
    answers = os.dup(1)
    os.dup2(2, 1)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    sys.modules["torch"] = None  # type: ignore[assignment]  # libraries would import it for nothing, beside a session
    job: GraphJob = msgspec.json.decode(sys.stdin.buffer.read(), type=GraphJob)
    try:
        answer = _do(job)
    except StepError as error:
        answer = GraphAnswer(notes=(), reason=error.reason)
    with open(answers, "wb") as file:  # noqa: PTH123 - a descriptor has no path
        file.write(to_json(answer))


def _do(job: GraphJob) -> GraphAnswer:
    """Do a job; what it needs is imported only now, after torch is barred."""
    if isinstance(job, StudyJob):
        from edgeopt.graph.model import load
        from edgeopt.graph.quantization.sensitivity import study_sensitivity

        model = load(Path(job.source), "study")
        found = study_sensitivity(model, job.step, Path(job.calibration), job.held_back, rank=job.rank)
        return GraphAnswer(notes=(), reason=None, study=found)
    if isinstance(job, FakeQuantJob):
        from edgeopt.graph.model import load
        from edgeopt.graph.quantization.fake_quant import read_fake_quant_sites

        model = load(Path(job.source), "quantize-aware")
        places = read_fake_quant_sites(model, job.step, Path(job.calibration), Path(job.inputs), Path(job.out))
        return GraphAnswer(notes=(), reason=None, fake_quant_sites=places)
    if isinstance(job, FloatPrefixJob):
        from edgeopt.graph.model import load
        from edgeopt.graph.quantization.float_prefix import write_float_prefixes

        model = load(Path(job.source), "quantize")
        fronts = write_float_prefixes(model, job.step, Path(job.calibration), Path(job.folder), fused=job.fused)
        return GraphAnswer(notes=(), reason=None, float_prefixes=fronts)
    from edgeopt.graph.steps import apply_step

    calibration = None if job.calibration is None else Path(job.calibration)
    return GraphAnswer(notes=apply_step(job.step, Path(job.source), Path(job.target), calibration), reason=None)


if __name__ == "__main__":
    main()
