"""Sentences about the score that the terminal and the page share."""

from __future__ import annotations

from edgeopt.report import words
from edgeopt.report.document import Document
from edgeopt.report.proof import drop_name, is_higher_better

_PARITY_INPUTS = "the inputs on which files are compared with their network"


def score_meaning(document: Document) -> str | None:
    """Say what the score is, if edgeopt decided it."""
    kind = document.score_kind
    if kind is None:
        return None
    lower = "" if kind.direction == "higher" else "; lower is better"
    return f"The score is the {kind.text}{lower}."


def missing_interval(document: Document) -> str | None:
    """Say that the winner's drop has no interval; None if it has one, or if the baseline won."""
    winner = document.winner
    if winner is None or winner.number == document.baseline.number or winner.score_drop_ci95 is not None:
        return None
    return (
        f"The {drop_name(winner).lower()} has no interval, because the score cannot be computed for drawn samples: "
        "the limit is compared with the drop itself, whatever its noise."
    )


def unjudged_outputs(document: Document) -> str | None:
    """Say how far the winner's outputs are off that the score does not judge; None if it judges all."""
    winner, kind = document.winner, document.score_kind
    errors = winner.parities[-1].by_output if winner is not None and winner.parities else None
    if kind is None or errors is None:
        return None
    judged = {part.output for part in kind.parts}
    parts = [f"'{name}' is off by {words.percent(error)}" for name, error in errors.items() if name not in judged]
    if not parts:
        return None
    return f"Not judged by the score: {words.listed(parts)} of its largest value, on {_PARITY_INPUTS}."


def worst_class(document: Document) -> str | None:
    """Name the class that the winner loses most in, if a limit is about that."""
    winner = document.winner
    worst = winner.answers.worst_class if winner is not None and winner.answers is not None else None
    if winner is None or worst is None or document.budget.max_class_drop is None:
        return None
    low, high = (words.score(end) for end in worst.drop_ci95)
    few = ""
    if worst.unjudged_classes:
        one = worst.unjudged_classes == 1
        few = f" {worst.unjudged_classes} {'class has' if one else 'classes have'} too few samples to be judged."
    where = f"class {worst.number}"
    if worst.label is not None:
        where = f"the {'yes' if worst.number else 'no'} answers of label {worst.label}"
    where += f" of output '{worst.output}'" if worst.output else ""
    return (
        f"Trial {winner.number} loses most in {where}, on {words.plural(worst.samples, 'sample')}: "
        f"{words.score(worst.drop)} (95 %: {low} to {high}).{few}"
    )


def expected_drop(document: Document) -> str | None:
    """Say what the winner is expected to lose on other data; None if that is not known."""
    expected, winner = document.expected, document.winner
    if expected is None or winner is None or winner.score_drop is None:
        return None
    low, high = expected.drop_ci95
    change = "a drop" if is_higher_better(winner) else "an increase"
    return (
        f"On other data {change} of {words.score(expected.drop)} is expected (95 %: {words.score(low)} to "
        f"{words.score(high)}): {words.score(winner.score_drop)} on the samples that chose it, and what it owes to "
        f"them, chosen among {expected.files} files."
    )


def test_scores(document: Document) -> str | None:
    """Give the scores on the test set, which decided nothing."""
    test = document.test
    if test is None:
        return None
    higher = test.direction == "higher"
    drop = test.baseline_score - test.winner_score if higher else test.winner_score - test.baseline_score
    span = test.drop_ci95
    interval = "" if span is None else f", 95 %: {words.score(span[0])} to {words.score(span[1])}"
    return (
        f"On {test.samples:,} test samples, used once at the end: baseline {words.score(test.baseline_score)}, "
        f"winner {words.score(test.winner_score)} ({'drop' if higher else 'increase'} "
        f"{words.score(drop)}{interval})."
    )
