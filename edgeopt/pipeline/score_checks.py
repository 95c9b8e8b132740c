"""Whether scores can be trusted, before anything is measured: what the score is, constant answers, enough samples.

In: a build and the baseline's file. Out: what the score is, notes and warnings; or an error if the baseline scores like
a constant answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from edgeopt.errors import TaskError
from edgeopt.pipeline.artifacts.evaluator import SCORING_VERSION, Evaluator
from edgeopt.pipeline.context import Build
from edgeopt.records.scoring import BaselineCheck, ScoreDirection, ScoreKind
from edgeopt.report import words
from edgeopt.scoring.agreement import constant_agreement
from edgeopt.scoring.answers import answer_parts, least_class_samples
from edgeopt.scoring.compute import decisions
from edgeopt.scoring.constant import check_constant
from edgeopt.scoring.drop import worsening
from edgeopt.scoring.enough import expected_margin, samples_needed
from edgeopt.scoring.facts import flat_arrays
from edgeopt.scoring.samples import shift_targets
from edgeopt.tasks.given.onnx_file import OnnxTask

_FEW_SAMPLES = 20
"""Fewer hardly differ from each other, so that an interval over them is far too short."""
_SHIFTS = (1, 2, 3)
"""By how many samples targets are moved to see what chance scores."""


class ScoreRemarks(NamedTuple):
    """What the report says about the score."""

    kind: ScoreKind | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def settle_score(build: Build, evaluator: Evaluator) -> BaselineCheck:
    """Decide what the score is, and compare the baseline with answers given without a network; kept in the ledger.

    Raises:
        DataError, TaskError: outputs and labels fit in no way, or in several.
    """
    data = build.data
    wish = data.score_wish
    asked = None if wish is None else (wish.score, wish.output, wish.ignored)
    key = build.keys.of("score-check", file=evaluator.baseline, scoring=SCORING_VERSION, asked=asked)
    check = build.ledger.remember(key, BaselineCheck, lambda: _check(build, evaluator))
    if isinstance(data.task, OnnxTask):
        data.task.score_kind = check.kind
    return check


def _check(build: Build, evaluator: Evaluator) -> BaselineCheck:
    data = build.data
    batches = evaluator.baseline_outputs(data.eval_file)
    kind = data.settle_score(batches)
    pairs = data.pairs(batches, data.targets or [None] * len(batches))
    if kind is not None and kind.by_agreement:
        constant = constant_agreement(kind, [flat_arrays(found) for found, _ in pairs])
        score = data.score(pairs) if data.targets else 1.0
        return BaselineCheck(kind=kind, score=score, samples=data.samples, constant=constant)
    if kind is None:
        return BaselineCheck(
            kind=None, score=data.score(pairs), samples=data.samples, shuffled=_score_shuffled(build, pairs)
        )
    found = check_constant(kind, pairs)
    return BaselineCheck(
        kind=kind,
        score=found.score,
        samples=found.samples,
        constant=found.constant,
        is_above_noise=found.is_above_noise,
        is_like_constant=found.is_like_constant,
        answers=found.answers,
    )


def _score_shuffled(build: Build, pairs: Sequence[tuple[Any, Any]]) -> tuple[float, ...]:
    """Return scores with the targets of other samples; empty if the targets can't be taken apart, or score() fails."""
    found = []
    for shift in _SHIFTS:
        moved = shift_targets(pairs, build.data.counts, shift)
        try:
            found.append(build.data.score(moved) if moved else None)
        except TaskError:
            return ()  # the score of the right pairs did not fail, so only this check is missing
    return tuple(value for value in found if value is not None)


def check_score(build: Build, evaluator: Evaluator, *, go_on: bool) -> ScoreRemarks:
    """Return what the report has to say about the score, and show it.

    Args:
        build: The build.
        evaluator: Of its files.
        go_on: Build even if the baseline scores like a constant answer.

    Raises:
        TaskError: it does, and ``go_on`` is False; or a limit is about answers, which cannot be judged.
        DataError: see ``settle_score``.
    """
    check = settle_score(build, evaluator)
    if build.budget.limits_answers:
        _check_answers(build, evaluator, check.kind)
    if check.kind is not None:
        build.progress("score", f"the {check.kind.text}; the trained network's is {check.score:.4f}")
    notes = [*(check.kind.notes if check.kind else ()), *_unit_note(build, check), *_wide_limit_note(build, check)]
    notes += _small_set_note(build, evaluator, check)
    warnings = _chance_warning(check, build.data.score_direction)
    if check.is_like_constant and not go_on:
        raise TaskError(f"{build.task}: {warnings[0]} Check these, or build anyway with --yes.")
    for note in notes:
        build.progress("note", note)
    for warning in warnings:
        build.progress("warning", warning)
    return ScoreRemarks(kind=check.kind, notes=tuple(notes), warnings=tuple(warnings))


def _check_answers(build: Build, evaluator: Evaluator, kind: ScoreKind | None) -> None:
    """Check that limits on answers can be judged.

    Raises:
        TaskError: the outputs are no answers, or no class has enough samples.
    """
    answer_parts(kind)
    answers = evaluator.score(evaluator.baseline).answers
    if build.budget.max_class_drop is not None and (answers is None or answers.worst_class is None):
        raise TaskError(
            f"{build.task}: --max-class-drop {build.budget.max_class_drop:g} cannot be judged: it takes "
            f"{least_class_samples(build.budget.max_class_drop)} samples of a class, and of the "
            f"{build.data.samples:,} that select no class has as many. Give more, or waive it with "
            "--max-class-drop none."
        )


def _chance_warning(check: BaselineCheck, direction: ScoreDirection) -> list[str]:
    """Return a sentence if the baseline is no better than answers given without a network."""
    start = f"The trained network scores {check.score:.4f} on {check.samples:,} samples"
    if check.kind is not None and check.constant is not None and not check.is_above_noise:
        if not check.is_like_constant and check.constant == (0.0 if direction == "lower" else 1.0):
            return [f"{start}, but every label is the same: these scores cannot show what an answer is worth."]
        single = " It gives the same answer everywhere." if check.answers == 1 else ""
        if check.is_like_constant:
            return [
                f"{start}, like a constant answer ({check.constant:.4f}): its outputs or labels were probably misread."
                f"{single} The score is the {check.kind.text}."
            ]
        return [
            f"{start}, which the noise of these samples can't distinguish from a constant answer "
            f"({check.constant:.4f}). The score is the {check.kind.text}."
        ]
    best = (max if direction == "higher" else min)(check.shuffled, default=None)
    if check.kind is None and best is not None and worsening(check.score, best, direction) <= 0:
        return [
            f"{start}, and {best:.4f} with the targets of other samples: score() may not see what the network answers."
        ]
    return []


def _wide_limit_note(build: Build, check: BaselineCheck) -> list[str]:
    """Return a sentence if a constant answer would keep the allowed drop, as with labels that are hardly balanced."""
    allowed = build.budget.max_score_drop
    if check.constant is None or allowed is None or not check.is_above_noise:
        return []
    room = worsening(check.score, check.constant, build.data.score_direction)
    if not 0 < room <= allowed:
        return []
    if check.kind is not None and check.kind.by_agreement:
        return [
            f"A file that always gives the mean output would agree to {check.constant:.4f}, and a drop of {allowed:g} "
            "is allowed: a file that has learned nothing could win. Lower --max-drop, give inputs on which the outputs "
            "differ more, or labels."
        ]
    return [
        f"A constant answer scores {check.constant:.4f}, only {room:.4f} worse than the trained network, and a drop of "
        f"{allowed:g} is allowed: a file that has learned nothing could win. Lower --max-drop, or ask for a score that "
        "counts every class alike (f1)."
    ]


def _unit_note(build: Build, check: BaselineCheck) -> list[str]:
    """Return a sentence on what the allowed drop means if the score is an error."""
    allowed = build.budget.max_score_drop
    if allowed is None or build.data.score_direction == "higher":
        return []
    return [
        f"Lower is better: the trained network's error is {check.score:.4g}, and it may become {allowed:g} larger, "
        "in the same unit (--max-drop)."
    ]


def _small_set_note(build: Build, evaluator: Evaluator, check: BaselineCheck) -> list[str]:
    """Return a sentence if the selection set is too small to show the allowed drop."""
    allowed, count = build.budget.max_score_drop, sum(build.data.counts)
    if count < _FEW_SAMPLES:
        return [
            f"{words.plural(count, 'sample')} cannot tell what a file loses on others, however short its interval is. "
            f"Give {_FEW_SAMPLES} at least, better hundreds."
        ]
    if not allowed or (check.kind is not None and _compares_values(check.kind)):
        return []
    found = evaluator.evaluate(evaluator.baseline, build.data.eval_file, build.data.targets)
    scores = found.mean_of
    if scores is None or (check.kind is None and not np.isin(scores, (0.0, 1.0)).all()):
        return []  # scores that aren't right or wrong may vary much, and yet hardly from file to file
    single = check.kind is None or all(_are_single(check.kind, target) for target in build.data.targets)
    confidence = build.budget.confidence
    needed = samples_needed(scores, allowed, confidence, single_answers=single)
    if len(scores) >= needed:
        return []
    margin = expected_margin(scores, allowed, confidence, single_answers=single)
    return [
        f"{len(scores):,} samples cannot show a score drop of {allowed:g} at {100 * confidence:g} %; about {needed:,} "
        f"can. The end of the interval that decides is expected to be {margin:.2g} above the drop that is found."
    ]


def _are_single(kind: ScoreKind, target: Any) -> bool:
    """Tell whether each sample of a batch has one answer."""
    if not kind.by_agreement:
        return bool(np.size(target) == len(target))
    answers = [decisions(part, flat_arrays(target)[part.index]) for part in kind.parts]
    return all(array.size == len(array) for array in answers)


def _compares_values(kind: ScoreKind) -> bool:
    """Tell whether the baseline's own scores say nothing about their spread: each agrees with itself exactly.

    Answers that are right or wrong have the spread of the drop that is allowed.
    """
    return kind.by_agreement and any(part.metric != "accuracy" for part in kind.parts)
