"""``Trial``: a recipe and what became of it."""

from __future__ import annotations

from typing import Literal

from edgeopt.records.base import Record
from edgeopt.records.measurement import Comparison, Measurement, NodeChange
from edgeopt.records.quantization import NodeNoise
from edgeopt.records.recipe import Recipe

Stage = Literal["module", "exported", "simplified", "quantized", "half", "final"]


class Parity(Record, frozen=True, kw_only=True):
    """How far one stage's outputs are from those of the stage before it."""

    stage: str
    max_abs_error: float
    max_rel_error: float
    """Largest absolute difference over the largest absolute value of that output."""
    tolerance: float | None
    """On ``max_rel_error``; None where the score judges instead (quantization)."""


class Artifact(Record, frozen=True, kw_only=True):
    """One ``.onnx`` file of the workspace."""

    key: str
    """``codec.artifact_key``: recipe, task, versions of what made it."""
    sha256: str
    size_bytes: int
    download_bytes: int
    """After deflate."""
    parameters: int
    nonzero_parameters: int
    macs: int
    """Multiply-accumulates for one sample."""
    opset: int
    ir_version: int
    exporter: Literal["dynamo", "torchscript", "given"]
    parities: tuple[Parity, ...]
    notes: tuple[str, ...]
    """Fall-backs taken and anything else the report has to say."""


class Score(Record, frozen=True, kw_only=True):
    """The score of a file on the selection batches, and its drop against the baseline over the same samples."""

    value: float
    drop: float
    """Baseline less this; negative where this is better."""
    drop_ci95: tuple[float, float] | None
    """Paired interval; None where the task gives no score for each sample."""
    samples: int


class AgainstTrial(Record, frozen=True, kw_only=True):
    """A file against the one that it is a variant of."""

    trial: int
    """The other's number."""
    comparison: Comparison


class Measured(Record, frozen=True, kw_only=True, tag_field="status", tag="measured"):
    """A candidate that went all the way."""

    artifact: Artifact
    measurement: Measurement
    score: Score
    against_baseline: Comparison | None
    """None for the baseline itself."""
    against_float: Comparison | None = None
    """An int8 file against the same network in float32; None where that was not compared."""
    changes_against_float: tuple[NodeChange, ...] = ()
    """Where it is slower than that: what its layers lost and gained, largest loss first, by ONNX Runtime's profile."""
    ranking: tuple[NodeNoise, ...] = ()
    """Of a mixed form: the nodes in the order in which they go back to float."""
    against_parent: AgainstTrial | None = None
    """Of a sparse or low-rank file: against that of the network it was made of, in the same precision."""
    against_full_int8: AgainstTrial | None = None
    """Of an int8 file whose first layers are float, for time: against the one that is int8 from there on."""


class Failed(Record, frozen=True, kw_only=True, tag_field="status", tag="failed"):
    """A candidate that did not; the build goes on."""

    stage: str
    reason: str
    trace: str | None


class Trial(Record, frozen=True, kw_only=True):
    """One candidate, numbered in the order of the build; the baseline is number 0."""

    number: int
    recipe: Recipe
    outcome: Measured | Failed
    seconds: dict[str, float]
    """Stage to time."""
