"""What a mean hides: answers that change, and the class that loses most, with intervals over samples.

In: a ``ScoreKind`` whose outputs are answers, and outputs of the baseline and of a file on the same samples. A sample
with several answers (pixels, positions, labels) is drawn as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import TaskError
from edgeopt.records.scoring import OutputScore, ScoreKind
from edgeopt.records.trial import AnswerChanges, ClassDrop
from edgeopt.scoring.compute import IGNORED, decisions, label_numbers, labels_of, output_of
from edgeopt.scoring.samples import Pair
from edgeopt.statistics import exact_share_interval, mean_interval

MIN_CLASS_SAMPLES = 20
"""A class in fewer samples is not judged: one changed answer would be 5 points."""
_ANSWERS = ("classes", "yes or no", "class numbers")
_REPEATS = 2000
_MAX_VALUES = 50_000_000
"""Of the table of classes by samples."""
_TAIL = 0.025
_Floats = NDArray[np.float64]
_Integers = NDArray[np.int64]


def answer_part(kind: ScoreKind | None) -> OutputScore:
    """Return the first output that gives answers.

    Raises:
        TaskError: there is none, or the task scores itself.
    """
    part = next((part for part in kind.parts if part.layout in _ANSWERS), None) if kind is not None else None
    if part is not None:
        return part
    found = "the task scores itself" if kind is None else f"the score is the {kind.text}"
    raise TaskError(
        f"limits on classes and on changed answers need outputs that are classes, or yes and no, but {found}. Waive "
        "them (--max-class-drop none, --max-flips none), or name a score of classes (score='accuracy' in "
        "edgeopt.classification(...), --score accuracy with an .onnx)."
    )


def compare_answers(kind: ScoreKind | None, before: Sequence[Pair], after: Sequence[Pair]) -> AnswerChanges:
    """Return how many answers of a file differ from the baseline's, and which class loses most.

    Args:
        kind: What the score is.
        before: Outputs of the baseline with the labels, in batches.
        after: Outputs of the file with the labels, in the same batches.

    Raises:
        TaskError: the outputs give no answers.
    """
    part = answer_part(kind)
    changed, classes, lost = [], list[_Integers](), list[_Integers]()
    for old, new, truth in _answers(part, before, after):
        changed.append((old != new).mean(1))
        classes.append(truth)
        lost.append((old == truth).astype(np.int64) - (new == truth))
    ratios = np.concatenate(changed)
    return AnswerChanges(
        flip_ratio=float(ratios.mean()),
        flip_ratio_ci95=_ratio_interval(ratios),
        worst_class=_worst_class(classes, lost),
    )


def _answers(
    part: OutputScore, before: Sequence[Pair], after: Sequence[Pair]
) -> Iterator[tuple[_Integers, _Integers, _Integers]]:
    """Yield answers of both files and labels of each batch, as (samples, answers)."""
    for (old, target), (new, _) in zip(before, after, strict=True):
        was, answers = (decisions(part, output_of(outputs, part)) for outputs in (old, new))
        truth = label_numbers(part, np.asarray(labels_of(target, part)), was.shape)
        yield was.reshape(len(was), -1), answers.reshape(len(was), -1), truth.reshape(len(was), -1)


def _ratio_interval(ratios: _Floats) -> tuple[float, float]:
    """Return the 95 % interval of a mean share; exact for single answers.

    A bootstrap of samples of which none has changed would have no width, however few they are.
    """
    if np.isin(ratios, (0.0, 1.0)).all() and len(ratios) > 1:
        found = exact_share_interval(int(ratios.sum()), len(ratios))
    else:
        found = mean_interval(ratios)
    return found.low, found.high


def _worst_class(classes: Sequence[_Integers], lost: Sequence[_Integers]) -> ClassDrop | None:
    """Return the class whose interval reaches the largest drop; None if no class has enough samples.

    Args:
        classes: Labels of each batch, as (samples, answers).
        lost: 1 where only the baseline was right, -1 where only the file was, else 0.
    """
    numbers = np.unique(np.concatenate([batch.ravel() for batch in classes]))
    numbers = numbers[numbers != IGNORED]
    samples = sum(map(len, classes))
    judged, few = list[ClassDrop](), 0
    step = max(1, _MAX_VALUES // max(1, samples))
    weights = np.random.default_rng(0).multinomial(samples, np.full(samples, 1 / samples), _REPEATS).astype(np.float64)
    for start in range(0, len(numbers), step):
        some = numbers[start : start + step]
        totals = np.concatenate([_count(batch, np.ones_like(batch), some) for batch in classes])
        losses = np.concatenate([_count(batch, loss, some) for batch, loss in zip(classes, lost, strict=True)])
        enough = np.flatnonzero((totals > 0).sum(0) >= MIN_CLASS_SAMPLES)
        few += len(some) - len(enough)
        drawn = (weights @ losses[:, enough]) / np.maximum(weights @ totals[:, enough], 1)
        for column, at in enumerate(enough):
            low, high = np.quantile(drawn[:, column], [_TAIL, 1 - _TAIL])
            judged.append(
                ClassDrop(
                    number=int(some[at]),
                    drop=float(losses[:, at].sum() / totals[:, at].sum()),
                    drop_ci95=(float(low), float(high)),
                    samples=int((totals[:, at] > 0).sum()),
                )
            )
    if not judged:
        return None
    worst = max(judged, key=lambda one: (one.drop_ci95[1], one.drop))
    return msgspec.structs.replace(worst, unjudged_classes=few)


def _count(classes: _Integers, values: _Integers, numbers: _Integers) -> _Floats:
    """Return the sum of the values of each sample by class, as (samples, numbers)."""
    place = np.searchsorted(numbers, classes).clip(max=len(numbers) - 1)
    known = numbers[place] == classes
    sample = np.broadcast_to(np.arange(len(classes))[:, None], classes.shape)
    flat = sample[known] * len(numbers) + place[known]
    sums = np.bincount(flat, weights=values[known], minlength=len(classes) * len(numbers))
    return sums.reshape(len(classes), len(numbers)).astype(np.float64)
