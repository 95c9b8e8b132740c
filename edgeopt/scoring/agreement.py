"""What a score is if there are no labels: how far outputs agree with those of the baseline.

A decision is compared only if the outputs are recognizably decisions. Everything else is compared as numbers: an
embedding has a largest number too, but it means nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError
from edgeopt.records.scoring import Metric, OutputScore, ScoreKind, ScoreWish
from edgeopt.scoring.choose import check_wish, threshold_of
from edgeopt.scoring.compute import decisions
from edgeopt.scoring.facts import ArrayFacts, collect_facts, squeezed
from edgeopt.scoring.fit import Fit, class_axes

_ONE_ANSWER = (
    "'{}' looks like a probability or a logit, but {} for every input, so its values are compared instead of its "
    "answers."
)
_ONE_CLASS = (
    "'{}' names the same class for every input, so agreement shows nothing: give inputs of several classes with "
    "--data, or labels."
)
_FEW_CLASSES = 100
"""8-bit outputs with larger values are pictures or scores rather than class numbers."""


def choose_agreement(
    outputs: Sequence[Sequence[NDArray[Any]]], names: Sequence[str], wish: ScoreWish, *, source: str
) -> ScoreKind:
    """Return how outputs are compared with the baseline's own.

    Class numbers (integers) have to be equal; probabilities and logits of classes, known by their sum or by the
    output's name, have to name the same class; one probability has to be on the same side of 0.5. Anything else is
    compared as numbers, by the relative error of each sample.

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
            part, note = _asked(facts, index, wish, source) if wish.score else _recognized(facts, index, wish)
            if not wish.score and part.layout == "classes" and _is_always_the_same(part, arrays):
                part = Fit("values", "outputs").judge(facts, index, "similarity")
                note = _ONE_ANSWER.format(name, "it names the same class")
            if part.layout == "class numbers" and facts.low == facts.high:
                note = _ONE_CLASS.format(name)
            parts.append(part)
            notes.append(note)
    return ScoreKind(parts=tuple(parts), by_agreement=True, notes=tuple(note for note in notes if note))


def _is_always_the_same(part: OutputScore, arrays: Sequence[NDArray[Any]]) -> bool:
    """Tell whether an output gives one answer everywhere, with which any file that gives it too would agree."""
    return len({int(value) for array in arrays for value in np.unique(decisions(part, array))}) == 1


def _recognized(output: ArrayFacts, index: int, wish: ScoreWish) -> tuple[OutputScore, str]:
    if output.is_integer and output.dtype.itemsize == 1 and output.high > _FEW_CLASSES:
        note = (
            f"'{output.name}' has values up to {output.high:g} in 8 bits: compared by the relative error of its values."
        )
        return Fit("values", "outputs").judge(output, index, "similarity"), note
    if output.is_integer:
        return Fit("class numbers", "outputs").judge(output, index, "accuracy"), ""
    if output.whole and output.low >= 0 and not output.distributions and not squeezed(output.shape) and output.high > 1:
        note = f"every value of '{output.name}' is a whole number: taken for class numbers."
        return Fit("class numbers", "outputs").judge(output, index, "accuracy"), note
    axes = class_axes(output)
    known = next((axis for axis in axes if axis in output.distributions), None)
    if known is None and axes and re.search(r"logit", output.name, re.IGNORECASE):
        known = axes[0]
    if known is not None:
        return Fit("classes", "outputs", known, output.shape[known - 1] or 1).judge(output, index, "accuracy"), ""
    if not squeezed(output.shape) and output.low >= 0 and output.high <= 1:
        if output.low <= 0.5 < output.high:
            return Fit("yes or no", "outputs").judge(output, index, "accuracy", threshold=0.5), ""
        note = _ONE_ANSWER.format(output.name, "it is on one side of 0.5")
        return Fit("values", "outputs").judge(output, index, "similarity"), note
    note = ""
    if axes and not output.nans:
        note = (
            f"'{output.name}' may be logits or an embedding, so it is compared by the relative error of its values; if "
            f"its largest value is the answer, ask for accuracy with {wish.how}."
        )
    return Fit("values", "outputs").judge(output, index, "similarity"), note


def _asked(output: ArrayFacts, index: int, wish: ScoreWish, source: str) -> tuple[OutputScore, str]:
    assert wish.score is not None
    metric: Metric = "accuracy" if wish.score == "multilabel" else wish.score
    if metric in ("mae", "mse", "rmse", "similarity"):
        return Fit("values", "outputs").judge(output, index, metric), ""
    if output.is_integer and wish.score != "multilabel":
        fit = Fit("class numbers", "outputs", classes=int(output.high) + 1)
        return fit.judge(output, index, metric), ""
    axes = class_axes(output)
    if wish.score == "multilabel" or not axes:
        if output.low == output.high:
            raise DataError(
                f"{source}: output {output} is the same for every input; give real inputs with --data FILE."
            )
        count = (output.shape[0] or 1) if len(squeezed(output.shape)) == 1 else 1
        fit = Fit("yes or no", "outputs", classes=count)
        return fit.judge(output, index, metric, threshold=threshold_of(output)), ""
    axis = next((axis for axis in axes if axis in output.distributions), axes[0])
    return Fit("classes", "outputs", axis, output.shape[axis - 1] or 1).judge(output, index, metric), ""
