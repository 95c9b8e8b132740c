"""``Trial``: a recipe and its outcome, which is a measured file or a failure."""

from __future__ import annotations

from typing import Literal

import msgspec

from edgeopt.records.base import Record
from edgeopt.records.measurement import Comparison, Measurement, NodeChange
from edgeopt.records.quantization import NodeNoise
from edgeopt.records.recipe import Recipe
from edgeopt.records.scoring import ScoreDirection

FailureKind = Literal["refused", "crashed", "diverged", "unfinished"]
"""Why something failed.

- ``refused``: a step's own check found its result wrong, or it cannot do what it was asked.
- ``crashed``: for a technical reason, such as a process that died, which says nothing about the network.
- ``diverged``: values are not finite.
- ``unfinished``: the time of the build was over, which says nothing about the network either.
"""


class Parity(Record, frozen=True, kw_only=True):
    """How far a file's outputs after one stage are from the outputs of the network itself, on the same inputs."""

    stage: str
    max_abs_error: float
    max_rel_error: float
    """Largest absolute difference over the largest absolute value of that output."""
    tolerance: float | None
    """On ``max_rel_error``; None if the score judges instead (quantization)."""
    by_output: dict[str, float] | None = None
    """``max_rel_error`` of each output; None if there is only one."""


class EdgeInput(Record, frozen=True, kw_only=True):
    """A batch of edge inputs on which the network itself is finite; see ``edgeopt.export.edge_inputs``."""

    kind: str
    """Words that follow *if*."""
    steady: bool
    """Whether the network gives the same outputs in float32 and float64, so that a file has to as well."""


class Artifact(Record, frozen=True, kw_only=True):
    """One ``.onnx`` file of the workspace."""

    key: str
    """Digest of its key; ``edgeopt.store.keys`` says what that depends on."""
    sha256: str
    size_bytes: int
    download_bytes: int
    """After deflate."""
    parameters: int
    nonzero_parameters: int
    macs: int
    """Multiply-accumulates for one sample."""
    weight_types: tuple[str, ...] = ()
    """Of the stored weights, such as ``float16``; empty in files of older builds."""
    opset: int
    ir_version: int
    exporter: Literal["dynamo", "torchscript", "given"]
    parities: tuple[Parity, ...]
    notes: tuple[str, ...]
    """Fallbacks taken, and other remarks for the report."""
    names: dict[str, str] = msgspec.field(default_factory=dict)
    """What the short names of inner values stand for."""


class ClassDrop(Record, frozen=True, kw_only=True):
    """How much less often the answer is right where the label is one class."""

    number: int
    """Of the class; with several labels a sample, 1 is a yes and 0 a no."""
    label: int | None = None
    """Number of the label, if a sample has several that are each a yes or a no."""
    output: str = ""
    """Its name, if several outputs give answers."""
    drop: float
    drop_ci95: tuple[float, float]
    """Paired interval over samples."""
    samples: int
    """That have the class."""
    unjudged_classes: int = 0
    """Classes in too few samples to be judged."""


class AnswerChanges(Record, frozen=True, kw_only=True):
    """How a file's answers differ from the baseline's."""

    flip_ratio: float
    """Share of answers that differ, whether they are better or worse."""
    flip_ratio_ci95: tuple[float, float]
    worst_class: ClassDrop | None
    """The class whose interval reaches the largest drop; None if no class has enough samples."""


class Score(Record, frozen=True, kw_only=True):
    """The score of a file on the selection set, and its drop from the baseline over the same samples."""

    value: float
    drop: float
    """How much worse this is than the baseline, in the unit of the score; negative if it is better."""
    drop_ci95: tuple[float, float] | None
    """Paired interval of the drop of this very score; None if samples cannot be drawn from the set."""
    samples: int
    judged: int | None = None
    """Samples that count, because they have a label; None if all do."""
    direction: ScoreDirection = "higher"
    """Whether a higher or a lower score is better."""
    answers: AnswerChanges | None = None
    """None if no limit is about them."""


class AgainstTrial(Record, frozen=True, kw_only=True):
    """An A/B of a file with that of another trial."""

    trial: int
    """Number of the other trial."""
    comparison: Comparison


class Measured(Record, frozen=True, kw_only=True, tag_field="status", tag="measured"):
    """The outcome of a trial that was made and measured."""

    artifact: Artifact
    measurement: Measurement
    score: Score
    against_baseline: Comparison | None
    """None for the baseline itself."""
    against_float: Comparison | None = None
    """An int8 file against its float counterpart; None if they were not compared."""
    changes_against_float: tuple[NodeChange, ...] = ()
    """If it is slower than its float counterpart: its layers' changes by ONNX Runtime's profile, largest loss first."""
    ranking: tuple[NodeNoise, ...] = ()
    """Of a mixed int8 file: the nodes in the order in which they go back to float."""
    against_parent: AgainstTrial | None = None
    """A sparse or low-rank file against that of the network it was made from, in the same precision."""
    against_full_int8: AgainstTrial | None = None
    """An int8 file with a float prefix against the file that is int8 from the first layer on."""


class Failed(Record, frozen=True, kw_only=True, tag_field="status", tag="failed"):
    """The outcome of a trial that failed; the build goes on."""

    stage: str
    reason: str
    trace: str | None
    kind: FailureKind = "refused"

    @property
    def how(self) -> Literal["failed", "skipped"]:
        """``skipped`` if nothing went wrong: there was nothing to change in this way."""
        return "skipped" if self.reason.endswith("this variant is skipped.") else "failed"


class Trial(Record, frozen=True, kw_only=True):
    """One variant of a candidate, numbered in the order of the build; the baseline is number 0."""

    number: int
    recipe: Recipe
    outcome: Measured | Failed
    seconds: dict[str, float]
    """Stage to the time that it took."""
