"""In which ways an output can be judged by labels, from their shapes, types and values."""

from __future__ import annotations

from dataclasses import dataclass

from edgeopt.records.scoring import AGREEMENT_METRICS, LabelForm, Layout, Metric, OutputScore, ScoreName
from edgeopt.scoring.facts import ArrayFacts, Sizes, squeezed

IGNORED_LABELS = (255, -100, -1)
"""Labels of positions that do not count, as data sets of masks and tokenizers write them; only where samples have
several labels, and only if they are no class numbers."""


@dataclass(frozen=True)
class Fit:
    """One way to judge an output."""

    layout: Layout
    labels: LabelForm
    class_axis: int = 1
    classes: int = 1
    ignored: int | None = None
    note: str = ""

    def judge(self, output: ArrayFacts, index: int, metric: Metric, *, threshold: float = 0.0) -> OutputScore:
        """Return the score of ``output``, which is the ``index``-th."""
        return OutputScore(
            output=output.name,
            index=index,
            metric=metric,
            layout=self.layout,
            labels=self.labels,
            class_axis=len(output.shape) if metric == "cosine" else self.class_axis,
            classes=self.classes,
            threshold=threshold,
            ignored=self.ignored,
            scales=(output.rms,) if metric == "similarity" else (),
        )


def same_size(one: Sizes, other: Sizes) -> bool:
    """Tell whether two shapes are equal but for sizes of 1; an unknown size equals any."""
    one, other = squeezed(one), squeezed(other)
    return len(one) == len(other) and all(a == b or a is None or b is None for a, b in zip(one, other, strict=True))


def class_axes(output: ArrayFacts) -> list[int]:
    """Return the axes that may hold classes, PyTorch's place first; counted with the batch."""
    axes = [1, len(output.shape)] if len(output.shape) > 1 else [1] if output.shape else []
    return [axis for axis in axes if (output.shape[axis - 1] or 0) > 1]


def without_axis(shape: Sizes, axis: int) -> Sizes:
    """Return a sample's shape without an axis that is counted with the batch."""
    return (*shape[: axis - 1], *shape[axis:])


def find_fits(output: ArrayFacts, labels: ArrayFacts, wish: ScoreName | None) -> list[Fit]:
    """Return the ways in which labels can judge an output, the likeliest first.

    Args:
        output: Of the trained network.
        labels: Of the same set.
        wish: The score that the user asked for; it leaves out the ways that it isn't about.
    """
    if wish in AGREEMENT_METRICS:
        return []
    if wish in ("mae", "mse", "rmse", "similarity", "cosine"):
        return [Fit("values", "values")] if same_size(output.shape, labels.shape) else []
    fits = [] if wish == "multilabel" else _class_fits(output, labels, asked=wish is not None)
    if not fits or wish == "multilabel":
        fits = _decision_fits(output, labels, wish) or fits
    if not fits and wish is None and not labels.nans:
        fits = _value_fits(output, labels)
    return fits


def _class_fits(output: ArrayFacts, labels: ArrayFacts, *, asked: bool) -> list[Fit]:
    fits = []
    for axis in class_axes(output):
        classes = output.shape[axis - 1] or 0
        if labels.shape == output.shape and _is_one_hot(labels, axis, soft=asked):
            fits.append(Fit("classes", "one-hot", axis, classes))
        elif same_size(without_axis(output.shape, axis), labels.shape):
            ignored = ignored_label(labels, classes)
            if _are_class_numbers(labels, classes, ignored):
                fits.append(Fit("classes", "numbers", axis, classes, ignored))
    return fits


def _is_one_hot(labels: ArrayFacts, axis: int, *, soft: bool) -> bool:
    return axis in labels.distributions and labels.low >= 0 and (soft or labels.only(0, 1))


def ignored_label(labels: ArrayFacts, classes: int) -> int | None:
    """Return the value among the labels of positions that cannot be a class and is known to mean "do not count"."""
    if not squeezed(labels.shape) or labels.only(0, 255):  # 0 and 255 may as well be no and yes
        return None
    for value in IGNORED_LABELS:
        if value < 0 and labels.low == value:
            return value
        if value >= classes and labels.high == value:
            return value
    return None


def _are_class_numbers(labels: ArrayFacts, classes: int, ignored: int | None) -> bool:
    low = 0 if ignored is not None and ignored < 0 else labels.low
    high = classes - 1 if ignored is not None and ignored >= classes else labels.high
    return labels.whole and not labels.nans and low >= 0 and high < classes


def _decision_fits(output: ArrayFacts, labels: ArrayFacts, wish: ScoreName | None) -> list[Fit]:
    """Return the ways of outputs that each answer yes or no, and of class numbers that the graph gives itself."""
    if not same_size(output.shape, labels.shape) or labels.nans or not labels.whole:
        return []
    if wish != "multilabel" and (output.is_integer or (output.whole and output.low >= 0 and not output.only(0, 1))):
        note = f"every value of '{output.name}' is a whole number: taken for class numbers."
        classes = int(max(output.high, labels.high)) + 1
        return [
            Fit(
                "class numbers",
                "numbers",
                classes=classes,
                ignored=_ignored_number(output, labels),
                note="" if output.is_integer else note,
            )
        ]
    count = (output.shape[0] or 1) if len(squeezed(output.shape)) == 1 and output.shape else 1
    if labels.only(-1, 1):
        return [Fit("yes or no", "signs", classes=count)]
    ignored = ignored_label(labels, 2)
    if ignored is None and labels.low >= 0 and labels.high <= 1:
        return [Fit("yes or no", "numbers", classes=count)]
    if ignored is not None and labels.values <= {0.0, 1.0, float(ignored)} and labels.values:
        return [Fit("yes or no", "numbers", classes=count, ignored=ignored)]
    return []


def _ignored_number(output: ArrayFacts, labels: ArrayFacts) -> int | None:
    """Return the ignored label of class numbers: one that the graph itself never gives."""
    return ignored_label(labels, int(output.high) + 1)


def _value_fits(output: ArrayFacts, labels: ArrayFacts) -> list[Fit]:
    """Return the fit of real numbers; whole labels of an integer type may be anything, so they have to be asked for."""
    if labels.is_integer or output.is_integer or not same_size(output.shape, labels.shape):
        return []
    if labels.distributions and labels.low >= 0:  # perhaps probabilities of classes
        return []
    note = "labels are real numbers: judged by the mean absolute error, lower is better."
    return [Fit("values", "values", note=note)]
