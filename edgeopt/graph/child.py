"""One graph step in a process of its own: ``python -m edgeopt.graph.child``, a ``Job`` as JSON in, an ``Answer`` out.

A library that crashes takes this process down, not the build; and no session ever lives beside torch. What libraries
print goes to stderr, so that stdout holds the answer alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from edgeopt.errors import StepError
from edgeopt.records.base import Record
from edgeopt.records.codec import from_json, to_json
from edgeopt.records.recipe import Fuse, GraphStep


class Job(Record, frozen=True, kw_only=True):
    """One step to do."""

    step: GraphStep | Fuse
    source: str
    target: str
    calibration: str | None


class Answer(Record, frozen=True, kw_only=True):
    """What came of it."""

    notes: tuple[str, ...]
    reason: str | None
    """Why the step refused; None where it was done."""


def main() -> None:
    """Do the job on stdin; print the answer."""
    answers = os.dup(1)
    os.dup2(2, 1)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    sys.modules["torch"] = None  # type: ignore[assignment]  # libraries would import it for nothing, beside a session
    from edgeopt.graph.steps import run_step

    job = from_json(sys.stdin.buffer.read(), Job)
    calibration = None if job.calibration is None else Path(job.calibration)
    try:
        answer = Answer(notes=run_step(job.step, Path(job.source), Path(job.target), calibration), reason=None)
    except StepError as error:
        answer = Answer(notes=(), reason=error.reason)
    with open(answers, "wb") as file:  # noqa: PTH123 - a descriptor has no path
        file.write(to_json(answer))


if __name__ == "__main__":
    main()
