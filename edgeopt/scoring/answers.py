"""What a mean hides: answers that change, and the class that loses most, with intervals over samples.

In: a ``ScoreKind`` whose outputs are answers, and outputs of the baseline and of a file on the same samples. A sample
with several answers (pixels, positions, labels) is drawn as a whole.
"""

from __future__ import annotations

import math
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
"""A class in fewer samples is not judged, whatever the limit: one changed answer would be 5 points."""
_ANSWERS = ("classes", "yes or no", "class numbers")
_REPEATS, _DRAWN_AT_A_TIME = 2000, 100
_MAX_VALUES = 50_000_000
"""Of the table of classes by samples."""
_TAIL = 0.025
_Floats = NDArray[np.float64]
_Integers = NDArray[np.int64]


def answer_parts(kind: ScoreKind | None) -> list[OutputScore]:
    """Return the outputs that give answers.

    Raises:
        TaskError: there is none, or the task scores itself.
    """
    parts = kind.parts if kind is not None else ()
    found = [part for part in parts if part.layout in _ANSWERS and part.metric != "edit"]
    if found:
        return found
    reason = "the task scores itself" if kind is None else f"the score is the {kind.text}"
    raise TaskError(
        f"limits on classes and on changed answers need outputs that are classes, or yes and no, but {reason}. Waive "
        "them (--max-class-drop none, --max-flips none), or name a score of classes (score='accuracy' in "
        "edgeopt.classification(...), --score accuracy with an .onnx)."
    )


def least_class_samples(max_class_drop: float | None) -> int:
    """Return in how many samples, of one answer each, a class has to be so that it can be judged by a limit.

    With fewer, the exact interval of Clopper and Pearson passes the limit even if none of its answers changes.
    """
    if max_class_drop is None or not 0 < max_class_drop < 1:
        return MIN_CLASS_SAMPLES
    return max(MIN_CLASS_SAMPLES, math.ceil(math.log(_TAIL) / math.log1p(-max_class_drop)))


def compare_answers(
    kind: ScoreKind | None, before: Sequence[Pair], after: Sequence[Pair], max_class_drop: float | None = None
) -> AnswerChanges:
    """Return how many answers of a file differ from the baseline's, and which class loses most.

    If several outputs give answers, the one that changes most counts, and so does the class of all that loses most.

    Args:
        kind: What the score is.
        before: Outputs of the baseline with the labels, in batches.
        after: Outputs of the file with the labels, in the same batches.
        max_class_drop: The limit by which classes are judged; those with too few samples for it are only counted.

    Raises:
        TaskError: the outputs give no answers.
    """
    parts = answer_parts(kind)
    found = [_compare_part(part, before, after, max_class_drop) for part in parts]
    flips = max((one for one, _ in found), key=lambda one: (one.flip_ratio_ci95[1], one.flip_ratio))
    classes = [
        msgspec.structs.replace(one.worst_class, output=part.output if len(parts) > 1 else "")
        for part, (one, _) in zip(parts, found, strict=True)
        if one.worst_class is not None
    ]
    worst = max(classes, key=lambda one: (one.drop_ci95[1], one.drop), default=None)
    if worst is not None:
        worst = msgspec.structs.replace(worst, unjudged_classes=sum(few for _, few in found))
    return msgspec.structs.replace(flips, worst_class=worst)


def unchanged(answers: AnswerChanges) -> AnswerChanges:
    """Return the changes of the baseline itself, which are none whatever the samples."""
    worst = answers.worst_class
    return msgspec.structs.replace(
        answers,
        flip_ratio_ci95=(0.0, 0.0),
        worst_class=None if worst is None else msgspec.structs.replace(worst, drop_ci95=(0.0, 0.0)),
    )


def _compare_part(
    part: OutputScore, before: Sequence[Pair], after: Sequence[Pair], max_class_drop: float | None
) -> tuple[AnswerChanges, int]:
    """Return the changes of one output, and how many of its classes have too few samples to be judged."""
    changed, classes, lost = [], list[_Integers](), list[_Integers]()
    labels = 1
    for old, new, truth, count in _answers(part, before, after):
        counted = truth != IGNORED
        total = counted.sum(1)
        changed.append(((old != new) & counted).sum(1)[total > 0] / total[total > 0])
        right = (old == truth).astype(np.int64) - (new == truth)
        labels = count
        classes.append(np.where(counted, truth + 2 * np.arange(count) if count > 1 else truth, IGNORED))
        lost.append(np.where(counted, right, 0))
    ratios = np.concatenate(changed)
    worst, few = _worst_class(classes, lost, max_class_drop)
    if worst is not None and labels > 1:
        worst = msgspec.structs.replace(worst, number=worst.number % 2, label=worst.number // 2)
    changes = AnswerChanges(
        flip_ratio=float(ratios.mean()) if ratios.size else 0.0,
        flip_ratio_ci95=_ratio_interval(ratios),
        worst_class=worst,
    )
    return changes, few


def _answers(
    part: OutputScore, before: Sequence[Pair], after: Sequence[Pair]
) -> Iterator[tuple[_Integers, _Integers, _Integers, int]]:
    """Yield answers of both files and labels of each batch, as (samples, answers), and how many labels a sample has.

    Several labels are several outputs of yes and no for a sample; the pixels of a map are answers of one kind.
    """
    for (old, target), (new, _) in zip(before, after, strict=True):
        was, answers = (decisions(part, output_of(outputs, part)) for outputs in (old, new))
        truth = label_numbers(part, np.asarray(labels_of(target, part)), was.shape)
        labels = was.shape[1] if part.layout == "yes or no" and was.ndim == 2 else 1
        yield was.reshape(len(was), -1), answers.reshape(len(was), -1), truth.reshape(len(was), -1), labels


def _ratio_interval(ratios: _Floats) -> tuple[float, float]:
    """Return the 95 % interval of a mean share; exact for single answers.

    A bootstrap of samples of which none has changed would have no width, however few they are.
    """
    if not ratios.size:
        return 0.0, 1.0
    if np.isin(ratios, (0.0, 1.0)).all():
        found = exact_share_interval(int(ratios.sum()), len(ratios))
    else:
        found = mean_interval(ratios)
    return found.low, found.high


def _worst_class(
    classes: Sequence[_Integers], lost: Sequence[_Integers], max_class_drop: float | None
) -> tuple[ClassDrop | None, int]:
    """Return the class whose interval reaches the largest drop, or None, and how many classes could not be judged.

    A class that surely loses more than the limit is judged in ``MIN_CLASS_SAMPLES`` too: few samples may show that.

    Args:
        classes: Labels of each batch, as (samples, answers).
        lost: 1 where only the baseline was right, -1 where only the file was, else 0.
        max_class_drop: The limit, or None.
    """
    numbers = np.unique(np.concatenate([batch.ravel() for batch in classes]))
    numbers = numbers[numbers != IGNORED]
    samples = sum(map(len, classes))
    judged, few = list[ClassDrop](), 0
    step = max(1, _MAX_VALUES // max(1, samples))
    for start in range(0, len(numbers), step):
        some = numbers[start : start + step]
        totals = np.concatenate([_count(batch, np.ones_like(batch), some) for batch in classes])
        losses = np.concatenate([_count(batch, loss, some) for batch, loss in zip(classes, lost, strict=True)])
        single = np.asarray(totals.max(axis=0, initial=0) <= 1)
        needed = np.where(single, least_class_samples(max_class_drop), MIN_CLASS_SAMPLES)
        counts = (totals > 0).sum(0)
        enough = np.flatnonzero(counts >= MIN_CLASS_SAMPLES)
        few += len(some) - len(enough)
        drawn = _draw(losses[:, enough], totals[:, enough])
        for column, at in enumerate(enough):
            low, high = np.quantile(drawn[:, column], [_TAIL, 1 - _TAIL])
            if counts[at] < needed[at] and (max_class_drop is None or low <= max_class_drop):
                few += 1
                continue
            if single[at]:
                high = max(high, _exact_high(losses[:, at], int(totals[:, at].sum())))
            judged.append(
                ClassDrop(
                    number=int(some[at]),
                    drop=float(losses[:, at].sum() / totals[:, at].sum()),
                    drop_ci95=(float(low), float(high)),
                    samples=int((totals[:, at] > 0).sum()),
                )
            )
    return max(judged, key=lambda one: (one.drop_ci95[1], one.drop), default=None), few


def _exact_high(losses: _Floats, samples: int) -> float:
    """Return the upper end of a class's drop: of the exact interval of the answers lost, less the share of those won.

    A bootstrap of samples of which none has changed would have no width, however few they are.
    """
    return exact_share_interval(int((losses > 0).sum()), samples).high - float((losses < 0).sum()) / samples


def _draw(losses: _Floats, totals: _Floats) -> _Floats:
    """Return the drop of each class over draws of the samples, as (draws, classes)."""
    random, samples = np.random.default_rng(0), len(losses)
    drawn = []
    for _ in range(0, _REPEATS, _DRAWN_AT_A_TIME):
        weights = random.multinomial(samples, np.full(samples, 1 / samples), _DRAWN_AT_A_TIME).astype(np.float64)
        drawn.append((weights @ losses) / np.maximum(weights @ totals, 1))
    return np.concatenate(drawn)


def _count(classes: _Integers, values: _Integers, numbers: _Integers) -> _Floats:
    """Return the sum of the values of each sample by class, as (samples, numbers)."""
    place = np.searchsorted(numbers, classes).clip(max=len(numbers) - 1)
    known = numbers[place] == classes
    sample = np.broadcast_to(np.arange(len(classes))[:, None], classes.shape)
    flat = sample[known] * len(numbers) + place[known]
    sums = np.bincount(flat, weights=values[known], minlength=len(classes) * len(numbers))
    return sums.reshape(len(classes), len(numbers)).astype(np.float64)
