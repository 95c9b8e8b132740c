"""Whether a score is better than the best constant answer would get: if not, outputs or labels were probably misread.

The best constant answer is found from the labels: the class, or yes or no for each output, that most samples have; for
real numbers the mean or the median. For F1 and mIoU, which a constant answer serves badly, the labels of other samples
are tried as well (chance).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeopt.records.scoring import OutputScore, ScoreKind
from edgeopt.scoring.compute import (
    IGNORED,
    Pairs,
    count_answers,
    decisions,
    label_numbers,
    output_of,
    sample_sums,
    sample_values,
    score_from_sums,
)
from edgeopt.scoring.drop import mean_drop_interval, sums_drop_interval
from edgeopt.scoring.facts import unwrapped

_SMALL_GAIN_RATIO = 0.1
"""Of what there is to gain over the constant answer: less than this, and not significant, is no better than it."""


@dataclass(frozen=True)
class ConstantCheck:
    """A score next to that of the best constant answer."""

    score: float
    constant: float
    samples: int
    is_above_noise: bool
    """Whether the score is better by more than the noise of the samples (95 %, paired)."""
    is_like_constant: bool
    """Whether it is not, and hardly better at all: something is wrong, not just few samples. False if the constant
    answer is perfect, because every label is the same: such a set shows nothing."""
    answers: int
    """Different answers that the network gives; 0 if they are no decisions."""


def check_constant(kind: ScoreKind, pairs: Sequence[tuple[Any, Any]]) -> ConstantCheck:
    """Compare the score of a network with that of the best constant answer.

    Args:
        kind: The score, with labels (not an agreement).
        pairs: Outputs of the network and labels.
    """
    (part,) = kind.parts
    outputs = [output_of(output, part) for output, _ in pairs]
    labels = [np.asarray(unwrapped(target)) for _, target in pairs]
    constant = _constant_outputs(part, outputs, labels)
    given = list(zip(outputs, labels, strict=True))
    single = ScoreKind(parts=(_alone(part),), by_agreement=False)
    if kind.is_summed:
        mine = sample_sums(single, given)
        rivals = [_constant_sums(single, constant), *_chance_sums(single, outputs, labels)]
        theirs = (max if kind.direction == "higher" else min)(
            rivals, key=lambda sums: score_from_sums(single, sums.sum(0))
        )
        score, best = (score_from_sums(single, sums.sum(0)) for sums in (mine, theirs))
        gain = sums_drop_interval(mine, theirs, lambda sums: score_from_sums(single, sums), kind.direction)
    else:
        mine, theirs = sample_values(single, given), _constant_values(single, constant)
        score, best = float(mine.mean()), float(theirs.mean())
        gain = mean_drop_interval(mine, theirs, kind.direction)
    room = (1 - best) if kind.direction == "higher" else best
    is_above = gain.low > 0
    return ConstantCheck(
        score=score,
        constant=best,
        samples=len(mine),
        is_above_noise=is_above,
        is_like_constant=room > 0 and not is_above and gain.value <= _SMALL_GAIN_RATIO * room,
        answers=0 if part.layout == "values" else count_answers(part, outputs),
    )


def _alone(part: OutputScore) -> OutputScore:
    return msgspec.structs.replace(part, index=0)


def _constant_outputs(
    part: OutputScore, outputs: Sequence[NDArray[Any]], labels: Sequence[NDArray[Any]]
) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Return pairs of the best constant answers and labels, both in the form of answers."""
    if part.layout == "values":
        truth = [label.reshape(len(label), -1).astype(np.float64) for label in labels]
        constant = _best_values(part, truth)
        return [(np.broadcast_to(constant, one.shape), one) for one in truth]
    answers = [
        label_numbers(part, label, decisions(part, output).shape) for output, label in zip(outputs, labels, strict=True)
    ]
    if part.layout == "yes or no" and part.metric == "f1":
        return [(np.ones_like(a), a) for a in answers]  # a constant no has an F1 of 0
    if part.layout == "yes or no" and len({a.shape[1:] for a in answers}) == 1 and part.classes > 1:
        counted = np.concatenate(answers).reshape(sum(map(len, answers)), -1)
        shares = (counted == 1).sum(0) > 0.5 * (counted != IGNORED).sum(0)
        return [(np.broadcast_to(shares.reshape(a.shape[1:]), a.shape).astype(np.int64), a) for a in answers]
    flat = np.concatenate([a.reshape(-1) for a in answers])
    values, counts = np.unique(flat[flat != IGNORED], return_counts=True)
    best = values[counts.argmax()] if values.size else 0
    return [(np.full(a.shape, best, np.int64), a) for a in answers]


def _best_values(part: OutputScore, truth: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the constant of least error: one for each value of a sample, or for all if samples differ in shape."""
    alike = len({one.shape[1] for one in truth}) == 1
    values = np.concatenate(truth) if alike else np.concatenate([one.reshape(-1) for one in truth])
    if part.ignored is not None:
        values = np.where(values == part.ignored, np.nan, values)
        if np.isnan(values).all(0).any():  # a place that never counts: one number for all
            values = values.reshape(-1)[~np.isnan(values.reshape(-1))]
    middle = np.nanmedian if part.metric == "mae" else np.nanmean
    return np.asarray(middle(values, axis=0) if values.size else 0.0, dtype=np.float64)


def _as_answers(kind: ScoreKind) -> ScoreKind:
    """Return the kind that judges answers instead of outputs, by the same metric."""
    (part,) = kind.parts
    if part.layout == "values":
        return kind
    layout, threshold = ("yes or no", 0.5) if part.layout == "yes or no" else ("class numbers", 0.0)
    changed = msgspec.structs.replace(part, layout=layout, labels="numbers", threshold=threshold, ignored=IGNORED)
    return msgspec.structs.replace(kind, parts=(changed,))


def _constant_values(kind: ScoreKind, pairs: Pairs) -> NDArray[np.float64]:
    return sample_values(_as_answers(kind), pairs)


def _constant_sums(kind: ScoreKind, pairs: Pairs) -> NDArray[np.float64]:
    return sample_sums(_as_answers(kind), pairs)


def _chance_sums(
    kind: ScoreKind, outputs: Sequence[NDArray[Any]], labels: Sequence[NDArray[Any]]
) -> list[NDArray[np.float64]]:
    """Return the sums for the labels of other samples, if all samples' labels have the same shape."""
    if len({label.shape[1:] for label in labels}) != 1 or sum(map(len, labels)) < 2:
        return []
    moved = np.concatenate(labels)
    moved = np.roll(moved, len(moved) // 2, axis=0)
    ends = np.cumsum([len(label) for label in labels])[:-1]
    return [sample_sums(kind, list(zip(outputs, np.split(moved, ends), strict=True)))]
