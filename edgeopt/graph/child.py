"""A graph step or a look at what int8 does in a process of its own: ``python -m edgeopt.graph.child``.

A job as JSON in, an ``Answer`` out. A library that crashes takes this process down, not the build; and no session ever
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
from edgeopt.records.quantization import Roundings, Study
from edgeopt.records.recipe import Fuse, GraphStep, Quantize


class Job(Record, frozen=True, kw_only=True, tag_field="job", tag="step"):
    """One step to do."""

    step: GraphStep | Fuse
    source: str
    target: str
    calibration: str | None


class StudyJob(Record, frozen=True, kw_only=True, tag_field="job", tag="study"):
    """What int8 does to a network; see ``edgeopt.graph.sensitivity.study``."""

    step: Quantize
    source: str
    calibration: str
    held_back: int
    rank: bool


class RoundingsJob(Record, frozen=True, kw_only=True, tag_field="job", tag="roundings"):
    """Where an int8 file rounds; see ``edgeopt.graph.roundings.find_roundings``."""

    step: Quantize
    source: str
    calibration: str
    inputs: str
    out: str


class FrontsJob(Record, frozen=True, kw_only=True, tag_field="job", tag="fronts"):
    """Int8 forms whose first layers stay float; see ``edgeopt.graph.fronts.write_fronts``."""

    step: Quantize
    source: str
    calibration: str
    folder: str
    fused: bool


AnyJob = Job | StudyJob | RoundingsJob | FrontsJob


class Answer(Record, frozen=True, kw_only=True):
    """What came of it."""

    notes: tuple[str, ...]
    reason: str | None
    """Why the step refused; None where it was done."""
    study: Study | None = None
    roundings: Roundings | None = None
    fronts: tuple[tuple[str, ...], ...] = ()


def main() -> None:
    """Do the job on stdin; print the answer."""
    answers = os.dup(1)
    os.dup2(2, 1)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    sys.modules["torch"] = None  # type: ignore[assignment]  # libraries would import it for nothing, beside a session
    job: AnyJob = msgspec.json.decode(sys.stdin.buffer.read(), type=AnyJob)
    try:
        answer = _do(job)
    except StepError as error:
        answer = Answer(notes=(), reason=error.reason)
    with open(answers, "wb") as file:  # noqa: PTH123 - a descriptor has no path
        file.write(to_json(answer))


def _do(job: AnyJob) -> Answer:
    """Do a job; what it needs is imported only now, after torch is barred."""
    if isinstance(job, StudyJob):
        from edgeopt.graph.files import load
        from edgeopt.graph.sensitivity import study

        model = load(Path(job.source), "study")
        found = study(model, job.step, Path(job.calibration), job.held_back, rank=job.rank)
        return Answer(notes=(), reason=None, study=found)
    if isinstance(job, RoundingsJob):
        from edgeopt.graph.files import load
        from edgeopt.graph.roundings import find_roundings

        model = load(Path(job.source), "quantize-aware")
        places = find_roundings(model, job.step, Path(job.calibration), Path(job.inputs), Path(job.out))
        return Answer(notes=(), reason=None, roundings=places)
    if isinstance(job, FrontsJob):
        from edgeopt.graph.files import load
        from edgeopt.graph.fronts import write_fronts

        model = load(Path(job.source), "quantize")
        fronts = write_fronts(model, job.step, Path(job.calibration), Path(job.folder), fused=job.fused)
        return Answer(notes=(), reason=None, fronts=fronts)
    from edgeopt.graph.steps import run_step

    calibration = None if job.calibration is None else Path(job.calibration)
    return Answer(notes=run_step(job.step, Path(job.source), Path(job.target), calibration), reason=None)


if __name__ == "__main__":
    main()
