"""``ScoreKind``: which outputs are judged, how they become answers, and which number says how good the answers are."""

from __future__ import annotations

from typing import Literal, get_args

from edgeopt.records.base import Record

ScoreDirection = Literal["higher", "lower"]
"""Whether a higher score is better, as for an accuracy, or a lower one, as for an error."""

Metric = Literal["accuracy", "f1", "miou", "mae", "mse", "rmse", "similarity", "cosine", "probability", "edit", "boxes"]
"""The number that the answers are judged by.

- ``accuracy``: share of right answers. A sample with several answers (positions, labels) counts with their mean.
- ``f1``: F1 over the whole set, the mean over classes or labels; of the positive class if there is only one output.
- ``miou``: intersection over union, over the whole set, the mean over the classes that occur; of the positive class if
  there is only one output.
- ``mae``, ``mse``, ``rmse``: mean absolute, mean squared and root mean squared error, in the unit of the labels (of
  ``mse``: its square); lower is better.
- ``similarity``: one less the error of a sample (root mean square) relative to the size of the values over the data, at
  least 0.
- ``cosine``: the cosine of the angle between two vectors, at least 0.
- ``probability``: 0 if the answers differ, otherwise one less the distance of the probabilities.
- ``edit``: one less the edit distance of two sequences of answers, relative to the longer one.
- ``boxes``: share of detected boxes that both have: the same class, and an intersection over union of at least 0.5.
"""

ScoreName = Literal[
    "accuracy", "multilabel", "f1", "miou", "mae", "mse", "rmse", "similarity", "cosine", "probability", "edit", "boxes"
]
"""What a user may ask for: a metric, or ``multilabel``, the accuracy of outputs that each answer yes or no."""

SCORE_NAMES: tuple[ScoreName, ...] = get_args(ScoreName)
ERROR_METRICS: frozenset[Metric] = frozenset({"mae", "mse", "rmse"})
AGREEMENT_METRICS: frozenset[Metric] = frozenset({"probability", "edit", "boxes"})
"""Those that compare outputs with the trained network's own, and never with labels."""
SUMMED_METRICS: frozenset[Metric] = frozenset({"f1", "miou", "rmse"})
"""Those that are no mean over samples, but a function of sums over samples."""

Layout = Literal["classes", "yes or no", "class numbers", "values", "boxes"]
"""How an output answers.

- ``classes``: the largest along ``class_axis`` is the answer.
- ``yes or no``: each number above ``threshold`` is a yes: one logit or sigmoid a sample, or one for each label.
- ``class numbers``: the numbers are the answers, as ArgMax gives them.
- ``values``: the numbers are compared as they are.
- ``boxes``: along ``class_axis`` are four numbers of a box in pixels, then scores of its classes in 0..1; or its score
  and the number of its class.
"""

LabelForm = Literal["numbers", "one-hot", "signs", "values", "outputs"]
"""``numbers`` of classes (or 0 and 1), ``one-hot`` along the class axis, ``signs`` -1 and 1, ``values``, or ``outputs``
of the baseline, which are read like the output that is judged."""


class ScoreFloor(Record, frozen=True, kw_only=True):
    """The score that a file must have, or its network is of no use."""

    value: float
    max_drop: float
    """How far it is from the baseline's score."""
    direction: ScoreDirection

    def is_missed_by(self, score: float) -> bool:
        """Tell whether a score is worse."""
        return score < self.value if self.direction == "higher" else score > self.value


class ScoreWish(Record, frozen=True):
    """What the user said about the score; None leaves it to the data."""

    score: ScoreName | None = None
    output: str | None = None
    ignored: int | None = None
    """A label that does not count."""
    how: str = "--score KIND and --score-output NAME"
    """How to say it, for errors."""
    ignoring: str = "--ignore-label N"
    """How to say which label does not count."""

    @property
    def is_error(self) -> bool:
        """Whether the user asked for an error in the unit of the labels."""
        return self.score in ERROR_METRICS


class OutputScore(Record, frozen=True, kw_only=True):
    """How one output is judged."""

    output: str
    """Its name."""
    index: int
    """Its place among the outputs."""
    metric: Metric
    layout: Layout
    labels: LabelForm
    class_axis: int = 1
    """Of the output with its batch axis: that of the classes, of a vector for ``cosine``, of ``scales``, of a box."""
    classes: int = 1
    """For ``f1`` and ``miou``: number of classes, or of labels if the layout is ``yes or no``."""
    threshold: float = 0.0
    ignored: int | None = None
    """A label that does not count."""
    scales: tuple[float, ...] = ()
    """For ``similarity``: the root mean square of the baseline's values over the data, which errors are relative to;
    one for each channel along ``class_axis`` if their sizes differ, as with columns in several units."""
    yes_ratio: float = 0.0
    """For ``probability`` of yes and no: the baseline's share of yes over the data. If it is not 0, both answers count
    alike on any set, so that a rare one is not lost among the others; with 0 every position counts alike."""
    has_corners: bool = False
    """For ``boxes``: whether the four numbers are left, top, right and bottom instead of centre, width and height."""
    blank: int = 0
    """For ``edit``: the class that separates the answers of a sequence and is none itself."""


class ScoreKind(Record, frozen=True, kw_only=True):
    """What a score is. Several outputs are judged only without labels; then the score is the mean of theirs."""

    parts: tuple[OutputScore, ...]
    by_agreement: bool
    """True if the labels are the baseline's own outputs."""
    notes: tuple[str, ...] = ()
    """What was taken for granted, for the report."""

    @property
    def direction(self) -> ScoreDirection:
        """Whether higher or lower is better."""
        return "lower" if self.parts[0].metric in ERROR_METRICS else "higher"

    @property
    def text(self) -> str:
        """The score in words: ``accuracy (the largest of 10 values of 'logits')``."""
        parts = [f"{_PART_WORDS[part.layout]} of '{part.output}'".format(part) for part in self.parts]
        if self.by_agreement:
            measures = [f"{words}: {_METRIC_WORDS[part.metric]}" for part, words in zip(self.parts, parts, strict=True)]
            return f"agreement with the given model's outputs ({'; '.join(measures)})"
        part = self.parts[0]
        if part.metric == "miou" and part.layout == "yes or no" and part.classes == 1:
            return f"intersection over union of the yes answers ({parts[0]})"
        return f"{_METRIC_WORDS[part.metric]} ({parts[0]})"

    @property
    def is_summed(self) -> bool:
        """Whether the score is a function of sums over samples instead of a mean over samples."""
        return any(part.metric in SUMMED_METRICS for part in self.parts)


class BaselineCheck(Record, frozen=True, kw_only=True):
    """The baseline's score next to scores without any network: if it is no better, something was misread."""

    kind: ScoreKind | None
    """None if the task scores itself."""
    score: float
    samples: int
    constant: float | None = None
    """Score of the best constant answer; None without labels, and for a task that scores itself."""
    is_above_noise: bool = True
    """Whether the score is better than that by more than the noise of the samples."""
    is_like_constant: bool = False
    """Whether it is hardly better at all."""
    answers: int = 0
    """Different answers that the network gives; 0 if they are no decisions."""
    shuffled: tuple[float, ...] = ()
    """Of a task that scores itself: scores with the targets of other samples."""


_PART_WORDS: dict[Layout, str] = {
    "classes": "the largest value",
    "yes or no": "above {0.threshold:g} is a yes, values",
    "class numbers": "class numbers",
    "values": "values",
    "boxes": "boxes",
}
_METRIC_WORDS: dict[Metric, str] = {
    "accuracy": "accuracy",
    "f1": "F1",
    "miou": "mean intersection over union",
    "mae": "mean absolute error",
    "mse": "mean squared error",
    "rmse": "root mean squared error",
    "similarity": "one less the error relative to the size of the values over the data",
    "cosine": "cosine of the angle",
    "probability": "the same answer, less the distance of the probabilities",
    "edit": "one less the edit distance of the sequences",
    "boxes": "share of boxes that both detect",
}
