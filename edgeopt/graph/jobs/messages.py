"""What a build and the process of a graph job write for each other, as JSON in a folder of the job."""

from __future__ import annotations

from edgeopt.records.base import Record
from edgeopt.records.profile import GraphLevel, OrtPlatform
from edgeopt.records.quantization import BitStudy, FakeQuantSites, SensitivityStudy
from edgeopt.records.recipe import GraphStep, Quantize

JOB_FILE, ANSWER_FILE, PRINTED_FILE = "job.json", "answer.json", "printed.txt"
"""Of a job's folder: a ``GraphJob``, a ``GraphAnswer``, and what the process printed."""


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


class BitStudyJob(Record, frozen=True, kw_only=True, tag_field="job", tag="bit-study"):
    """How fewer bits of each weight change a network's outputs; see ``edgeopt.graph.weights.bit_study``."""

    samples: int
    source: str
    calibration: str
    held_back: int


class OrtFormatJob(Record, frozen=True, kw_only=True, tag_field="job", tag="ort-format"):
    """A model in ONNX Runtime's own format; see ``edgeopt.graph.ort_format``."""

    source: str
    target: str
    operators: str
    level: GraphLevel
    platform: OrtPlatform
    folds: bool


GraphJob = StepJob | StudyJob | FakeQuantJob | FloatPrefixJob | BitStudyJob | OrtFormatJob


class GraphAnswer(Record, frozen=True, kw_only=True):
    """The result of a job."""

    notes: tuple[str, ...]
    reason: str | None
    """Why the step refused; None if it was done."""
    study: SensitivityStudy | None = None
    fake_quant_sites: FakeQuantSites | None = None
    float_prefixes: tuple[tuple[str, ...], ...] = ()
    bit_study: BitStudy | None = None
