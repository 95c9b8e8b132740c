"""Does one graph job in a process of its own: ``python -m edgeopt.graph.jobs.worker FOLDER DESCRIPTOR``.

The folder holds the job and gets the answer (``messages``). No ONNX Runtime session shares a process with torch. The
process ends when the pipe of ``DESCRIPTOR`` does: then its parent is gone. ``fork_server`` does jobs in forks of
itself, which have imported everything already.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import msgspec

from edgeopt.errors import StepError
from edgeopt.graph.jobs.messages import (
    ANSWER_FILE,
    JOB_FILE,
    PRINTED_FILE,
    BitStudyJob,
    FakeQuantJob,
    FloatPrefixJob,
    GraphAnswer,
    GraphJob,
    OrtFormatJob,
    StudyJob,
)
from edgeopt.records.codec import to_json


def main() -> None:
    """Do the job of the folder that the command names."""
    block_torch()
    do_job(Path(sys.argv[1]), int(sys.argv[2]))


def block_torch() -> None:
    """Keep libraries from importing torch, which they would do for nothing, and from sending anything home."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    sys.modules["torch"] = None  # type: ignore[assignment]


def do_job(folder: Path, watched: int) -> None:
    """Do the job of a folder, and write the answer there; what is printed goes to a file.

    Args:
        folder: Of the job.
        watched: A pipe that ends with the parent of this process.
    """
    threading.Thread(target=_end_with_pipe, args=(watched,), daemon=True).start()
    with (folder / PRINTED_FILE).open("wb") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    os.chdir(folder)  # ONNX Runtime leaves a model there if its shape inference fails
    job: GraphJob = msgspec.json.decode((folder / JOB_FILE).read_bytes(), type=GraphJob)
    try:
        answer = _do(job)
    except StepError as error:
        answer = GraphAnswer(notes=(), reason=error.reason)
    (folder / ANSWER_FILE).write_bytes(to_json(answer))


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
    if isinstance(job, BitStudyJob):
        from edgeopt.graph.model import load
        from edgeopt.graph.weights.bit_study import study_weight_bits

        model = load(Path(job.source), "study")
        bits = study_weight_bits(model, job.samples, Path(job.calibration), job.held_back)
        return GraphAnswer(notes=(), reason=None, bit_study=bits)
    if isinstance(job, OrtFormatJob):
        from edgeopt.graph.ort_format import write_ort_format

        files = Path(job.source), Path(job.target), Path(job.operators)
        write_ort_format(*files, level=job.level, platform=job.platform, folds=job.folds)
        return GraphAnswer(notes=(), reason=None)
    from edgeopt.graph.steps import apply_step

    calibration = None if job.calibration is None else Path(job.calibration)
    done = apply_step(job.step, Path(job.source), Path(job.target), calibration)
    return GraphAnswer(notes=done.notes, reason=None)


if __name__ == "__main__":
    main()
