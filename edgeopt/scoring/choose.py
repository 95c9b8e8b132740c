"""Decide what a score is: from the trained network's outputs, the labels, and what the user asked for.

What the shapes leave open is decided by the values, if they are clear; otherwise the user is asked by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError, TaskError, did_you_mean
from edgeopt.records.scoring import AGREEMENT_METRICS, SCORE_NAMES, Metric, OutputScore, ScoreKind, ScoreWish
from edgeopt.scoring.compute import part_values
from edgeopt.scoring.facts import ArrayFacts, check_labels, collect_facts
from edgeopt.scoring.fit import Fit, class_axes, find_fits, same_size, without_axis

_CLEAR_LEAD = 4.0
"""Standard errors by which one reading of the outputs has to score higher than the others to be taken."""
_MAX_SORTED = 1_000_000
"""Outputs of which the best threshold is looked for: of more, such as pixels, evenly chosen ones are enough."""


@dataclass(frozen=True)
class _Reading:
    """One way to judge one output."""

    output: ArrayFacts
    fit: Fit
    part: OutputScore


def check_wish(wish: ScoreWish, names: Sequence[str], source: str) -> None:
    """Check that the score and the output that the user named exist.

    Raises:
        TaskError: they do not.
    """
    if wish.score is not None and wish.score not in SCORE_NAMES:
        raise TaskError(
            f"{source}: there is no score '{wish.score}'{did_you_mean(wish.score, SCORE_NAMES)}. There are "
            f"{', '.join(SCORE_NAMES)}."
        )
    if wish.output is not None and wish.output not in names:
        raise TaskError(
            f"{source}: there is no output '{wish.output}'{did_you_mean(wish.output, names)} to score. The outputs are "
            f"{', '.join(names)}."
        )


def choose_score(
    outputs: Sequence[Sequence[NDArray[Any]]],
    names: Sequence[str],
    labels: Sequence[Any],
    wish: ScoreWish,
    *,
    source: str,
) -> ScoreKind:
    """Return what the score of outputs against labels is.

    Args:
        outputs: Of the trained network over the set, or its first batches: for each batch, its outputs.
        names: Of the outputs.
        labels: Of the whole set, in the same batches.
        wish: What the user said.
        source: Where the labels come from, for errors.

    Raises:
        DataError: the labels fit no output, are out of range, or hold NaN.
        TaskError: several readings are possible and the values do not decide; the error lists them.
    """
    check_wish(wish, names, source)
    arrays = [check_labels(batch, source) for batch in labels]
    asked = [at for at, name in enumerate(names) if wish.output in (None, name)]
    by_sample = [at for at in asked if _has_row_for_each_sample([batch[at] for batch in outputs], arrays)]
    if not by_sample:
        raise DataError(_other_count([(names[at], [batch[at] for batch in outputs]) for at in asked], arrays, source))
    label_facts = collect_facts("labels", _without_ignored(arrays, wish.ignored))
    judged = [(at, collect_facts(names[at], [batch[at] for batch in outputs])) for at in by_sample]
    if label_facts.nans or np.isinf((label_facts.low, label_facts.high)).any():
        found = f"{label_facts.nans:,} of the labels are NaN" if label_facts.nans else "some labels are infinite"
        raise DataError(
            f"{source}: {found} (shape {_shape(label_facts)}). Leave these samples out, or write a number that no "
            f"label has in place of such values, and name it with {wish.ignoring}."
        )
    readings = [
        _Reading(fact, fit, _part(fact, at, fit, wish))
        for at, fact in judged
        for fit in _stated(find_fits(fact, label_facts, wish.score), wish.ignored)
    ]
    if not readings:
        raise DataError(_nothing_fits([fact for _, fact in judged], label_facts, wish, source))
    columns = [[batch[at] for batch in outputs] for at in range(len(names))]
    chosen, note = _decide(readings, columns, arrays[: len(outputs)], label_facts, wish, source)
    ignored = "" if chosen.part.ignored is None else f"labels of {chosen.part.ignored} don't count."
    other = _other_threshold_note(chosen.part, columns[chosen.part.index], arrays)
    notes = [chosen.fit.note, note, _threshold_note(chosen), other, ignored]
    return ScoreKind(parts=(chosen.part,), by_agreement=False, notes=tuple(text for text in notes if text))


def _without_ignored(labels: Sequence[NDArray[Any]], ignored: int | None) -> Sequence[NDArray[Any]]:
    """Return labels with another one of them in place of those that the user does not count."""
    if ignored is None:
        return labels
    kept = next((batch[batch != ignored] for batch in labels if (batch != ignored).any()), None)
    return labels if kept is None else [np.where(batch == ignored, kept[0], batch) for batch in labels]


def _stated(fits: Sequence[Fit], ignored: int | None) -> list[Fit]:
    return [fit if ignored is None else replace(fit, ignored=ignored) for fit in fits]


def _has_row_for_each_sample(output: Sequence[NDArray[Any]], labels: Sequence[NDArray[Any]]) -> bool:
    """Tell whether an output has its samples on axis 0; a learned temperature, say, has none."""
    given = zip(output, labels, strict=False)
    return len(labels) >= len(output) and all(batch.ndim > 0 and len(batch) == len(label) for batch, label in given)


def _other_count(
    outputs: Sequence[tuple[str, Sequence[NDArray[Any]]]], labels: Sequence[NDArray[Any]], source: str
) -> str:
    """Say that no output has a row for each row of labels; each output is a name and its batches."""
    rows, first = sum(map(len, labels)), outputs[0][1]
    if len(outputs) == 1 and all(batch.ndim for batch in first):
        found = f"{rows:,} labels for {sum(map(len, first)):,} outputs"
    else:
        shapes = ", ".join(f"'{name}' {batches[0].shape}" for name, batches in outputs)
        found = f"no output has a row for each of the {len(labels[0]):,} labels of the first batch ({shapes})"
    return (
        f"{source}: {found}. Every sample needs one row of labels, in the order and the batches of the inputs; the "
        "samples are on the first axis of both."
    )


def _part(output: ArrayFacts, index: int, fit: Fit, wish: ScoreWish) -> OutputScore:
    metric: Metric = "accuracy"
    if wish.score is not None and wish.score != "multilabel":
        metric = wish.score
    elif fit.layout == "values":
        metric = "mae"
    return fit.judge(output, index, metric, threshold=threshold_of(output))


def threshold_of(output: ArrayFacts) -> float:
    """Return the number above which an output means yes: 0.5 for probabilities, 0 for logits, by the values."""
    return 0.5 if output.low >= 0 and output.high <= 1 else 0.0


def _threshold_note(reading: _Reading) -> str:
    if reading.part.layout != "yes or no":
        return ""
    output = reading.output
    what = "probabilities" if reading.part.threshold else "logits"
    return (
        f"'{output.name}' has values {output.low:.3g} to {output.high:.3g}: taken for {what}, above "
        f"{reading.part.threshold:g} is a yes."
    )


def _other_threshold_note(part: OutputScore, output: Sequence[NDArray[Any]], labels: Sequence[NDArray[Any]]) -> str:
    """Say it if another threshold is clearly right more often, as for cosines and distances taken for logits."""
    if part.layout != "yes or no" or part.classes > 1:
        return ""
    step = sum(batch.size for batch in output) // _MAX_SORTED | 1  # odd, so that pixels of all columns are among them
    pairs = [(np.ravel(batch)[::step], np.ravel(truth)[::step]) for batch, truth in zip(output, labels, strict=False)]
    values, truth = (np.concatenate([pair[side] for pair in pairs]).astype(np.float64) for side in (0, 1))
    counts = np.isfinite(values) & (truth != part.ignored if part.ignored is not None else True)
    order = np.argsort(values[counts], kind="stable")
    values, yes = values[counts][order], truth[counts][order] > 0
    if not len(values) or yes.all() or not yes.any():
        return ""
    right = np.cumsum(~yes) + yes.sum() - np.cumsum(yes)  # if the values up to this one are no, and those above are yes
    right[:-1][values[:-1] == values[1:]] = 0
    best, now = int(right.argmax()), int(((values > part.threshold) == yes).sum())
    threshold = float(values[best : best + 2].mean())
    changed = int(((values > part.threshold) != (values > threshold)).sum())
    if right[best] - now <= _CLEAR_LEAD * np.sqrt(changed):
        return ""
    return (
        f"'{part.output}' is right for {now / len(values):.4f} of the labels above {part.threshold:g}, and for "
        f"{right[best] / len(values):.4f} above {threshold:.3g}. If the app decides there, as for a cosine or a "
        f"distance, subtract {threshold - part.threshold:.3g} in forward(), because edgeopt judges what is above "
        f"{part.threshold:g}."
    )


# -- several readings --------------------------------------------------------------------------------------------------


def _decide(
    readings: list[_Reading],
    columns: Sequence[Sequence[NDArray[Any]]],
    labels: Sequence[NDArray[Any]],
    label_facts: ArrayFacts,
    wish: ScoreWish,
    source: str,
) -> tuple[_Reading, str]:
    """Return the one reading, or the one that scores clearly higher than the others; with a note if there were others.

    Outputs that give the same answers for every sample (logits and their softmax) count as one.
    """
    decisive = [reading for reading in readings if reading.part.layout != "values"]
    readings = decisive or readings
    if len(readings) == 1:
        return readings[0], ""
    scored = [
        (
            reading,
            np.concatenate(
                [part_values(reading.part, o, t) for o, t in zip(columns[reading.part.index], labels, strict=True)]
            ),
        )
        for reading in readings
    ]
    sign = 1.0 if decisive else -1.0
    scored.sort(key=lambda item: -sign * float(item[1].mean()))  # stable: the first of equals stays first
    best, values = scored[0]
    for other, theirs in scored[1:]:
        if np.array_equal(values, theirs):
            continue
        lead = sign * (values - theirs)
        is_clear = lead.mean() > _CLEAR_LEAD * lead.std() / np.sqrt(len(lead))
        if not is_clear or not _is_unlikely(other, theirs, best, values, label_facts):
            raise TaskError(_ambiguous([best, other], label_facts, wish, source))
    others = list(dict.fromkeys(reading.output.name for reading, _ in scored[1:]))
    if all(name == best.output.name for name in others):
        return (
            best,
            f"axis {best.part.class_axis} of '{best.output.name}' holds the classes: the labels agree with it most.",
        )
    named = ", ".join(map(repr, others))
    return best, f"judged by output '{best.output.name}'; {named} would fit the labels too, but scores no higher."


def _is_unlikely(
    other: _Reading, theirs: NDArray[np.float64], best: _Reading, values: NDArray[np.float64], labels: ArrayFacts
) -> bool:
    """Tell whether a reading is not the right one: an embedding next to logits, say, rather than a second classifier.

    It has twice the error of the best one, and it is the same output along another axis, or has another number of
    classes than the labels, or is hardly better than any single answer.
    """
    if best.part.layout == "values":
        return bool(values.mean() <= 0.5 * theirs.mean())
    if 1 - values.mean() > 0.5 * (1 - theirs.mean()):
        return False
    known = labels.high + 1
    is_other_count = best.fit.classes == known and other.fit.classes != known
    chance = 1 / max(2, other.fit.classes)
    return other.output.name == best.output.name or is_other_count or bool(theirs.mean() < 1.5 * chance)


# -- errors ------------------------------------------------------------------------------------------------------------


def _shape(facts: ArrayFacts) -> str:
    return str(facts).partition("of shape ")[2].partition(")")[0] + ")"


def _ambiguous(readings: Sequence[_Reading], labels: ArrayFacts, wish: ScoreWish, source: str) -> str:
    outputs = list(dict.fromkeys(str(reading.output) for reading in readings))
    if len(outputs) > 1:
        listed, ask = " and ".join(outputs), "Name the output that the labels are about"
    else:
        listed, ask = f"{outputs[0]}, along more than one axis", "Move its classes to axis 1, or name a score"
    return f"{source}: {labels} fit {listed}, and neither agrees with them clearly better. {ask} with {wish.how}."


def _nothing_fits(outputs: Sequence[ArrayFacts], labels: ArrayFacts, wish: ScoreWish, source: str) -> str:
    asked = f" by {wish.score}" if wish.score else ""
    listed = "; ".join(map(str, outputs))
    return f"{source}: {labels} can't judge{asked} the outputs {listed}. {_advice(outputs, labels, wish)}"


def _advice(outputs: Sequence[ArrayFacts], labels: ArrayFacts, wish: ScoreWish) -> str:
    if wish.score in AGREEMENT_METRICS:
        return f"{wish.score} compares outputs with the trained network's own: ask for it without labels."
    if wish.is_error or wish.score in ("similarity", "cosine"):
        return f"For {wish.score} the labels have the shape of the output: one number for each of its numbers."
    if labels.distributions and labels.low >= 0 and any(labels.shape == output.shape for output in outputs):
        return (
            "Rows of labels add up to 1: if they are probabilities of classes, ask for accuracy (of the largest); if "
            f"they are numbers to estimate, for mae; with {wish.how}."
        )
    if len(labels.values) == 1 and labels.only(255, -1, -100):
        return f"Every label is {labels.low:g}, which marks what does not count, so there is nothing to score."
    if labels.only(0, 255):
        return (
            "The labels are 0 and 255: if 255 means yes, divide them by 255; if it doesn't count, name it as ignored."
        )
    for output in outputs:
        for axis in class_axes(output):
            classes = output.shape[axis - 1] or 0
            if not same_size(without_axis(output.shape, axis), labels.shape):
                continue
            if not labels.whole:
                return (
                    f"'{output.name}' has {classes} classes, so its labels are whole numbers from 0 to {classes - 1}."
                )
            start = " If yours begin at 1, subtract 1." if labels.low >= 1 else ""
            if labels.low < 0 or labels.high == 255:
                start = f" If one of these does not count, name it as ignored with {wish.ignoring}; if several do not, "
                start += "give them one number."
            return (
                f"'{output.name}' has {classes} classes, so its labels go from 0 to {classes - 1}, but they hold "
                f"{labels.low:g} to {labels.high:g}.{start}"
            )
        if labels.whole and find_fits(output, labels, "mae"):
            return (
                f"One number a sample can't name more than two classes. If '{output.name}' estimates a number, ask for "
                f"its error (mae, mse or rmse) with {wish.how}; if it is a logit or a probability, give labels 0 and 1."
            )
    return (
        "Labels are class numbers (N,) or (N, 1) or one-hot rows for outputs (N, classes), 0 and 1 for one logit or "
        "probability, one class number for each position of a map, or numbers in the shape of the output. Name the "
        f"output or the score with {wish.how}."
    )
