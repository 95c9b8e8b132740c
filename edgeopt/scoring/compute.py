"""The score of outputs against labels, by a ``ScoreKind``: one value a sample, or sums that a score is made of.

Samples are on axis 0 of every array. Outputs are arrays, or tuples of arrays if the network has several.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError, StepError
from edgeopt.records.scoring import OutputScore, ScoreKind
from edgeopt.scoring.boxes import shared_boxes
from edgeopt.scoring.facts import flat_arrays, unwrapped
from edgeopt.scoring.sequences import sequence_scores

_Floats = NDArray[np.float64]
Pairs = Iterable[tuple[Any, Any]]
"""Outputs and labels, one pair for each batch."""

NO_ANSWER = -1
"""The decision where an output is NaN: wrong whatever the label is."""
_NONE_COUNTS = "no label counts: every one is the ignored value {}."
IGNORED = -2
"""The number of a label that does not count."""


def decisions(part: OutputScore, output: NDArray[Any]) -> NDArray[np.int64]:
    """Return the answers of an output as class numbers, or 1 for yes and 0 for no; the class axis is gone."""
    if part.layout == "classes":
        found = np.argmax(output, axis=part.class_axis)
        lost = np.isnan(output).any(axis=part.class_axis) if output.dtype.kind == "f" else None
    elif part.layout == "yes or no":
        found, lost = output > part.threshold, np.isnan(output) if output.dtype.kind == "f" else None
    else:
        lost = np.isnan(output) if output.dtype.kind == "f" else None
        found = np.rint(np.nan_to_num(output)) if output.dtype.kind == "f" else output
    answers = found.astype(np.int64)
    return answers if lost is None else np.where(lost, NO_ANSWER, answers)


def count_answers(part: OutputScore, outputs: Sequence[NDArray[Any]]) -> int:
    """Return how many different answers an output gives over batches."""
    return len({int(value) for output in outputs for value in np.unique(decisions(part, output))})


def label_numbers(part: OutputScore, labels: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return labels as class numbers (or 1 and 0, or ``IGNORED``), in the shape of the decisions.

    Raises:
        DataError: their number of values does not fit.
    """
    if part.labels == "outputs":
        numbers = decisions(part, labels)
    elif part.labels == "one-hot":
        numbers = np.argmax(labels, axis=part.class_axis).astype(np.int64)
    elif part.labels == "signs":
        numbers = (labels > 0).astype(np.int64)
    else:
        numbers = np.rint(labels).astype(np.int64)
    if part.ignored is not None and part.labels in ("numbers", "signs"):
        numbers = np.where(labels == part.ignored, IGNORED, numbers)
    return _in_shape(part, numbers, shape)


def _in_shape(part: OutputScore, labels: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if labels.size != np.prod(shape) or labels.shape[:1] != shape[:1]:
        raise DataError(
            f"labels of shape {labels.shape} do not fit the answers of output '{part.output}' of shape {shape}: every "
            "sample needs its label."
        )
    return labels.reshape(shape)


def part_values(part: OutputScore, output: NDArray[Any], labels: Any) -> _Floats:
    """Return the value of each sample whose mean is the metric (for ``rmse``: the mean squared error).

    Samples of which no position counts are left out.

    Raises:
        DataError: the labels' number of values does not fit.
        StepError: an output that is judged as a real number is not finite.
    """
    labels = np.asarray(labels)
    if part.layout == "boxes":
        return shared_boxes(part, output, labels)
    if part.layout == "values":
        return _value_scores(part, output, labels)
    if part.metric == "probability":
        return _probability_scores(part, output, labels)
    if part.metric == "edit":
        return sequence_scores(decisions(part, output), decisions(part, labels), part.blank)
    answers = decisions(part, output)
    truth = label_numbers(part, labels, answers.shape)
    right = (answers == truth).reshape(len(answers), -1)
    counts = (truth != IGNORED).reshape(right.shape)
    total = counts.sum(1)
    return np.asarray((right & counts).sum(1)[total > 0] / total[total > 0], dtype=np.float64)


def _value_scores(part: OutputScore, output: NDArray[Any], labels: NDArray[Any]) -> _Floats:
    found = output.reshape(len(output), -1).astype(np.float64)
    truth = _in_shape(part, labels, output.shape).reshape(found.shape).astype(np.float64)
    if not np.isfinite(found).all():
        raise StepError("score", f"output '{part.output}' holds values that are not finite (NaN or infinity).")
    counts = np.ones(truth.shape) if part.ignored is None else (truth != part.ignored).astype(np.float64)
    found, truth, any_counts = found * counts, truth * counts, counts.any(1)
    if part.metric == "similarity":
        shape = [1] * output.ndim
        shape[part.class_axis if len(part.scales) > 1 else 0] = len(part.scales)
        sizes = np.maximum(np.broadcast_to(np.reshape(part.scales, shape), output.shape), 1e-12).reshape(found.shape)
        relative = np.sqrt(_mean_where(((found - truth) / sizes) ** 2, counts))
        return np.asarray(np.clip(1 - relative, 0, None), dtype=np.float64)
    if part.metric == "cosine":
        return _cosines(found.reshape(output.shape), truth.reshape(output.shape))[any_counts]
    error = np.abs(found - truth)
    return _mean_where(error if part.metric == "mae" else error**2, counts)


def _mean_where(errors: _Floats, counts: _Floats) -> _Floats:
    """Return the mean of each sample over the values that count; samples without one are left out."""
    total = counts.sum(1)
    return np.asarray(errors.sum(1)[total > 0] / total[total > 0], dtype=np.float64)


def _cosines(found: _Floats, truth: _Floats) -> _Floats:
    """Return the mean cosine of a sample's vectors, which are on the last axis; that of a zero vector is 0."""
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(truth, axis=-1)
    cosines = (found * truth).sum(-1) / np.maximum(lengths, 1e-30)
    return np.asarray(cosines.reshape(len(found), -1).mean(1).clip(0, 1), dtype=np.float64)


def _probability_scores(part: OutputScore, output: NDArray[Any], labels: NDArray[Any]) -> _Floats:
    """Return for each sample the share of equal answers, each less the distance of its probabilities.

    The distance of two distributions over classes is half the sum of the differences (total variation).
    """
    answers, truth = decisions(part, output), decisions(part, labels)
    distance = np.abs(np.nan_to_num(output.astype(np.float64), nan=2.0) - labels)
    if part.layout == "classes":
        distance = distance.sum(part.class_axis) / 2
    near = (answers == truth) * (1 - distance.clip(0, 1))
    if part.yes_ratio:
        near *= np.where(truth == 1, 0.5 / part.yes_ratio, 0.5 / (1 - part.yes_ratio))
    return np.asarray(near.reshape(len(near), -1).mean(1), dtype=np.float64)


def part_counts(part: OutputScore, output: NDArray[Any], labels: Any) -> _Floats:
    """Return for each sample and class: answers that are right, answers, and labels. Shape (samples, 3 * classes).

    With ``yes or no``, a class is one of the outputs of a sample, and only yes counts.
    """
    answers = decisions(part, output)
    truth = label_numbers(part, np.asarray(labels), answers.shape)
    samples = len(answers)
    if part.layout == "yes or no":
        mine, theirs = (array.reshape(samples, part.classes, -1) for array in (answers == 1, truth == 1))
        counted = (truth != IGNORED).reshape(mine.shape)
        both = (mine & theirs & counted, mine & counted, theirs & counted)
        return np.concatenate([array.sum(2) for array in both], axis=1).astype(np.float64)
    mine, theirs = answers.reshape(samples, -1), truth.reshape(samples, -1)
    sample = np.broadcast_to(np.arange(samples)[:, None], theirs.shape)
    counted = (theirs != IGNORED) & (theirs >= 0) & (theirs < part.classes)
    answered = counted & (mine >= 0) & (mine < part.classes)
    counts = []
    for which, numbers in ((counted & (mine == theirs), theirs), (answered, mine), (counted, theirs)):
        flat = sample[which] * part.classes + numbers[which]
        counts.append(np.bincount(flat, minlength=samples * part.classes).reshape(samples, part.classes))
    return np.concatenate(counts, axis=1).astype(np.float64)


def output_of(outputs: Any, part: OutputScore) -> NDArray[Any]:
    """Return the output that is judged, of outputs of any nesting."""
    return flat_arrays(outputs)[part.index]


def labels_of(labels: Any, part: OutputScore) -> Any:
    """Return the labels of the output that is judged."""
    return flat_arrays(labels)[part.index] if part.labels == "outputs" else unwrapped(labels)


def sample_values(kind: ScoreKind, pairs: Pairs) -> _Floats:
    """Return one score per sample, whose mean is the score; only for kinds that are a mean.

    Raises:
        DataError, StepError: as ``part_values``.
    """
    pairs = list(pairs)
    parts = [_balanced(part, [labels_of(labels, part) for _, labels in pairs]) for part in kind.parts]
    scores = []
    for outputs, labels in pairs:
        values = [part_values(part, output_of(outputs, part), labels_of(labels, part)) for part in parts]
        scores.append(np.mean(values, axis=0))
    return np.concatenate(scores)


def _balanced(part: OutputScore, labels: Sequence[Any]) -> OutputScore:
    """Return a part whose two answers count alike over this set, so that equal outputs score 1 on any set."""
    if not part.yes_ratio:
        return part
    answers = [decisions(part, np.asarray(batch)) == 1 for batch in labels]
    yes_ratio = sum(int(batch.sum()) for batch in answers) / max(1, sum(batch.size for batch in answers))
    return msgspec.structs.replace(part, yes_ratio=yes_ratio if 0 < yes_ratio < 1 else 0.0)


def sample_sums(kind: ScoreKind, pairs: Pairs) -> _Floats:
    """Return the numbers of each sample whose sums the score is computed from. Shape (samples, numbers).

    Raises:
        DataError, StepError: as ``part_values``.
    """
    rows = []
    for outputs, labels in pairs:
        columns = []
        for part in kind.parts:
            output, truth = output_of(outputs, part), labels_of(labels, part)
            if part.metric in ("f1", "miou"):
                columns.append(part_counts(part, output, truth))
            else:
                values = part_values(part, output, truth)
                columns.append(np.stack([values, np.ones_like(values)], axis=1))
        rows.append(np.concatenate(columns, axis=1))
    return np.concatenate(rows)


def score_from_sums(kind: ScoreKind, sums: _Floats) -> float:
    """Return the score from the sums of ``sample_sums`` over a set."""
    scores, begin = [], 0
    for part in kind.parts:
        width = 3 * part.classes if part.metric in ("f1", "miou") else 2
        scores.append(_score_of_part(part, sums[begin : begin + width]))
        begin += width
    return float(np.mean(scores))


def _score_of_part(part: OutputScore, sums: _Floats) -> float:
    if part.metric not in ("f1", "miou"):
        mean = float(sums[0] / max(sums[1], 1))
        return float(np.sqrt(mean)) if part.metric == "rmse" else mean
    right, answered, labelled = sums.reshape(3, part.classes)
    above = right if part.metric == "miou" else 2 * right
    below = answered + labelled - right if part.metric == "miou" else answered + labelled
    return float((above[below > 0] / below[below > 0]).mean()) if (below > 0).any() else 0.0


def score_of(kind: ScoreKind, pairs: Pairs) -> float:
    """Return the score of outputs against labels.

    Raises:
        DataError, StepError: as ``part_values``.
    """
    if kind.is_summed:
        sums = sample_sums(kind, pairs)
        if kind.parts[0].ignored is None or (sums.size and sums.any()):
            return score_from_sums(kind, sums.sum(0))
        raise DataError(_NONE_COUNTS.format(kind.parts[0].ignored))
    values = sample_values(kind, pairs)
    if not values.size:
        raise DataError(_NONE_COUNTS.format(kind.parts[0].ignored))
    return float(values.mean())
