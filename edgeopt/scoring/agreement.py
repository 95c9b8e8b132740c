"""What a score is if there are no labels: how far outputs agree with those of the baseline.

What an output is follows from its values over the data. A decision is compared only if the output is recognizably one.
Everything else is compared as numbers: an embedding has a largest number too, but it means nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError
from edgeopt.records.scoring import Metric, OutputScore, ScoreKind, ScoreWish
from edgeopt.scoring.boxes import BoxForm, count_boxes, find_box_form
from edgeopt.scoring.choose import check_wish, threshold_of
from edgeopt.scoring.compute import count_answers, decisions, score_of
from edgeopt.scoring.facts import ArrayFacts, collect_facts, squeezed
from edgeopt.scoring.fit import Fit, class_axes
from edgeopt.scoring.sequences import find_blank

_ONE_ANSWER = (
    "'{}' {} for every input, so agreement shows nothing: give inputs for which its answers differ, or labels."
)
_NO_BOXES = "'{}' holds boxes, but detects none on this data, so agreement shows nothing: give inputs with some."
_FEW_CLASSES = 100
"""8-bit outputs with larger values are pictures or scores rather than class numbers."""
_UNIT_TOLERANCE = 5e-3
"""How far the length of a vector may be from 1: float16's rounding of a few hundred numbers."""
_MIN_VECTOR_SIZE = 8
_LOW_PROBABILITY = 0.1
_MAX_UNDECIDED_RATIO = 0.5
"""Of the values in the middle; a picture in 0..1 has more."""
_OTHER_UNIT_RATIO = 10.0
"""Columns that differ by this in size have errors of their own: age and income, or pixels and scores."""
_SMALLEST_UNIT_RATIO = 1e-6
"""Of the largest column: what is smaller is float32's rounding."""
_MAX_COLUMNS = 64

_Batches = Sequence[NDArray[Any]]
_Judged = tuple[OutputScore, str]
"""How an output is judged, and a note."""


def choose_agreement(
    outputs: Sequence[Sequence[NDArray[Any]]], names: Sequence[str], wish: ScoreWish, *, source: str
) -> ScoreKind:
    """Return how outputs are compared with the baseline's own.

    In this order: class numbers (integers) have to be equal; boxes are compared as sets; probabilities of classes,
    known by their sum, and outputs that are called logits have to name the same class, or the same sequence of classes
    if they look like CTC; vectors of length 1 are compared by their angle; single probabilities have to be on the same
    side of 0.5 and near. Anything else is compared as numbers, by the error relative to their size over the data.

    Args:
        outputs: Of the baseline over the whole set: for each batch, its outputs.
        names: Of the outputs.
        wish: What the user said; it decides for all outputs that are judged.
        source: The file, for errors.

    Raises:
        TaskError: the score or the output that the user named does not exist.
        DataError: an output can't be judged in the way that the user named, or holds values that are not finite.
    """
    check_wish(wish, names, source)
    parts, notes = [], []
    for index, name in enumerate(names):
        if wish.output in (None, name):
            arrays = [batch[index] for batch in outputs]
            facts = collect_facts(name, arrays)
            if wish.score:
                part, note = _asked(facts, arrays, index, wish, source)
            else:
                part, note = _recognized(facts, arrays, index, wish)
            parts.append(part)
            notes.append(note)
    return ScoreKind(parts=tuple(parts), by_agreement=True, notes=tuple(note for note in notes if note))


def constant_agreement(kind: ScoreKind, outputs: Sequence[Sequence[NDArray[Any]]]) -> float | None:
    """Return the score of a file that gives the mean of the baseline's outputs for every sample.

    None if samples differ in shape, so that there is no mean.

    Args:
        kind: An agreement.
        outputs: Of the baseline: for each batch, its outputs.
    """
    judged = [part.index for part in kind.parts]
    if len({tuple(batch[at].shape[1:] for at in judged) for batch in outputs}) != 1:
        return None
    total = sum(len(batch[judged[0]]) for batch in outputs)
    means = {at: sum(batch[at].astype(np.float64).sum(0) for batch in outputs) / total for at in judged}
    pairs = []
    for batch in outputs:
        constant = [np.broadcast_to(means.get(at, array), array.shape) for at, array in enumerate(batch)]
        pairs.append((tuple(constant), tuple(batch)))
    return score_of(kind, pairs)


# -- by their looks ----------------------------------------------------------------------------------------------------


def _recognized(output: ArrayFacts, arrays: _Batches, index: int, wish: ScoreWish) -> _Judged:
    numbers = _class_numbers(output, arrays, index)
    if numbers is not None:
        return numbers
    form = find_box_form(arrays)
    if form is not None:
        return _boxes(output, arrays, index, form)
    axes = class_axes(output)
    known = next((axis for axis in axes if axis in output.distributions), None)
    if known is None and axes and re.search(r"logit", output.name, re.IGNORECASE):
        known = axes[0]
    if known is not None:
        return _classes(output, arrays, index, known)
    if _are_unit_vectors(arrays):
        note = f"'{output.name}' holds vectors of length 1, as embeddings are: compared by their angle."
        return Fit("values", "outputs").judge(output, index, "cosine"), note
    if _are_probabilities(output, arrays):
        return _probabilities(output, arrays, index)
    note = ""
    if axes and not output.nans:
        note = (
            f"'{output.name}' may be logits or an embedding, so it is compared by the relative error of its values; if "
            f"its largest value is the answer, ask for accuracy with {wish.how}."
        )
    return _values(output, arrays, index, note)


def _class_numbers(output: ArrayFacts, arrays: _Batches, index: int) -> _Judged | None:
    """Return how class numbers are judged, None for anything else."""
    if output.is_integer and output.dtype.itemsize == 1 and output.high > _FEW_CLASSES:
        note = (
            f"'{output.name}' has values up to {output.high:g} in 8 bits: compared by the relative error of its values."
        )
        return _values(output, arrays, index, note)
    looks = output.whole and output.low >= 0 and not output.distributions and not squeezed(output.shape)
    if not output.is_integer and not (looks and output.high > 1):
        return None
    part, note = Fit("class numbers", "outputs").judge(output, index, "accuracy"), ""
    if not output.is_integer:
        note = f"every value of '{output.name}' is a whole number: taken for class numbers."
    if output.low == output.high:
        note = _ONE_ANSWER.format(output.name, "names the same class")
    return part, note


def _classes(output: ArrayFacts, arrays: _Batches, index: int, axis: int) -> _Judged:
    """Return how scores of classes are judged: by the answers, or the sequence of them."""
    classes = output.shape[axis - 1] or 1
    part = Fit("classes", "outputs", axis, classes).judge(output, index, "accuracy")
    if len(output.shape) == 2 and axis == 2:
        blank = find_blank([decisions(part, array) for array in arrays], classes)
        if blank is not None:
            note = (
                f"'{output.name}' names class {blank} at most steps and others in between, as CTC does: compared by "
                "the edit distance of its sequences. If each step has an answer of its own, as tags of words have, use "
                "--score accuracy."
            )
            return msgspec.structs.replace(part, metric="edit", blank=blank), note
    if count_answers(part, arrays) > 1:
        return part, ""
    note = _ONE_ANSWER.format(output.name, "names the same class")
    if axis in output.distributions and output.low >= 0:
        return msgspec.structs.replace(part, metric="probability"), note
    return _values(output, arrays, index, note)


def _probabilities(output: ArrayFacts, arrays: _Batches, index: int) -> _Judged:
    """Return how probabilities that each answer yes or no are judged; a rare answer counts like the other."""
    part = Fit("yes or no", "outputs").judge(output, index, "probability", threshold=0.5)
    shares = [(array > 0.5).reshape(len(array), -1).mean(1) for array in arrays if array.size]
    yes_ratio = float(np.concatenate(shares).mean())
    if not 0 < yes_ratio < 1:
        return part, _ONE_ANSWER.format(output.name, "is on one side of 0.5")
    return msgspec.structs.replace(part, yes_ratio=yes_ratio), ""


def _boxes(output: ArrayFacts, arrays: _Batches, index: int, form: BoxForm) -> _Judged:
    part = Fit("boxes", "outputs", form.axis).judge(output, index, "boxes")
    part = msgspec.structs.replace(part, has_corners=form.has_corners)
    return part, "" if count_boxes(part, arrays) else _NO_BOXES.format(output.name)


def _are_probabilities(output: ArrayFacts, arrays: _Batches) -> bool:
    """Tell whether numbers in 0..1 are probabilities: one a sample, or several that are clearer than grey values."""
    if output.nans or output.low < 0 or output.high > 1 or output.high == 0:
        return False
    undecided = sum(int(((array > _LOW_PROBABILITY) & (array < 1 - _LOW_PROBABILITY)).sum()) for array in arrays)
    return not squeezed(output.shape) or undecided <= _MAX_UNDECIDED_RATIO * sum(array.size for array in arrays)


def _are_unit_vectors(arrays: _Batches) -> bool:
    return all(
        array.ndim >= 2
        and array.shape[-1] >= _MIN_VECTOR_SIZE
        and bool((np.abs(np.linalg.norm(array.astype(np.float64), axis=-1) - 1) < _UNIT_TOLERANCE).all())
        for array in arrays
        if array.size
    )


def _values(output: ArrayFacts, arrays: _Batches, index: int, note: str) -> _Judged:
    """Return how numbers are judged: relative to their size over the data, each column by itself if units differ."""
    part = Fit("values", "outputs").judge(output, index, "similarity")
    for axis in dict.fromkeys((len(output.shape), 1) if len(output.shape) else ()):
        if not 1 < (output.shape[axis - 1] or 0) <= _MAX_COLUMNS:
            continue
        columns = [np.moveaxis(array.astype(np.float64), axis, 0).reshape(array.shape[axis], -1) for array in arrays]
        sizes = np.sqrt(np.mean(np.concatenate(columns, axis=1) ** 2, axis=1))
        known = sizes[sizes > _SMALLEST_UNIT_RATIO * sizes.max()]
        if np.isfinite(sizes).all() and len(known) and known.max() > _OTHER_UNIT_RATIO * known.min():
            scales = np.maximum(sizes, _SMALLEST_UNIT_RATIO * sizes.max())
            part = msgspec.structs.replace(part, class_axis=axis, scales=tuple(map(float, scales)))
            more = (
                f"columns of '{output.name}' differ in size by {known.max() / known.min():.2g} times: the error of each"
            )
            return part, f"{note} {more} is relative to its own values.".strip()
    return part, note


# -- as the user said --------------------------------------------------------------------------------------------------


def _asked(output: ArrayFacts, arrays: _Batches, index: int, wish: ScoreWish, source: str) -> _Judged:
    assert wish.score is not None
    metric: Metric = "accuracy" if wish.score == "multilabel" else wish.score
    if metric == "similarity":
        return _values(output, arrays, index, "")
    if metric in ("mae", "mse", "rmse", "cosine"):
        return Fit("values", "outputs").judge(output, index, metric), ""
    axes = class_axes(output)
    if metric in ("probability", "edit", "boxes"):
        return _asked_agreement(output, arrays, index, metric, source)
    if output.is_integer and wish.score != "multilabel":
        fit = Fit("class numbers", "outputs", classes=int(output.high) + 1)
        return fit.judge(output, index, metric), ""
    if wish.score == "multilabel" or not axes:
        if output.low == output.high:
            raise DataError(f"{source}: output {output} is the same for every input; give real inputs.")
        count = (output.shape[0] or 1) if len(squeezed(output.shape)) == 1 else 1
        fit = Fit("yes or no", "outputs", classes=count)
        return fit.judge(output, index, metric, threshold=threshold_of(output)), ""
    axis = next((axis for axis in axes if axis in output.distributions), axes[0])
    return Fit("classes", "outputs", axis, output.shape[axis - 1] or 1).judge(output, index, metric), ""


def _asked_agreement(output: ArrayFacts, arrays: _Batches, index: int, metric: Metric, source: str) -> _Judged:
    """Return how outputs are judged by probability, edit distance or boxes.

    Raises:
        DataError: the output can't hold any.
    """
    if metric == "boxes":
        form = find_box_form(arrays)
        if form is None:
            raise DataError(
                f"{source}: output {output} holds no boxes: these are (N, boxes, values) or (N, values, boxes), with "
                "four numbers in pixels and then scores in 0..1. Name another output."
            )
        return _boxes(output, arrays, index, form)
    if metric == "edit":
        if len(output.shape) != 2 or output.is_integer:
            raise DataError(f"{source}: output {output} holds no sequences: these are (N, steps, classes).")
        classes = output.shape[1] or 1
        part = Fit("classes", "outputs", 2, classes).judge(output, index, "edit")
        blank = find_blank([decisions(part, array) for array in arrays], classes) or 0
        return msgspec.structs.replace(part, blank=blank), f"class {blank} is taken for the blank of the sequences."
    if output.low < 0 or output.high > 1:
        raise DataError(
            f"{source}: output {output} holds no probabilities, which are from 0 to 1: ask for accuracy or similarity."
        )
    axis = next((axis for axis in class_axes(output) if axis in output.distributions), None)
    if axis is not None:
        return Fit("classes", "outputs", axis, output.shape[axis - 1] or 1).judge(output, index, metric), ""
    return _probabilities(output, arrays, index)
