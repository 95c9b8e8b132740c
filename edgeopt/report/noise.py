"""Sentences about noise that the terminal and the page share: differences that may be chance, disturbed timings."""

from __future__ import annotations

import math
from collections.abc import Iterable

from edgeopt.records.budget import DEFAULT_CONFIDENCE
from edgeopt.report import sentences, words
from edgeopt.report.document import Document, TrialPart
from edgeopt.report.proof import drop_name, is_higher_better


def noise_notes(document: Document) -> list[str]:
    """Say which differences may be chance, and which timings were disturbed."""
    notes = []
    winner = document.winner
    if winner is not None and winner.number != document.baseline.number and winner.score_drop_ci95 is not None:
        low, high = winner.score_drop_ci95
        if low == high == 0 and winner.score_samples:
            notes.append(_unchanged(winner.score_judged or winner.score_samples, document.budget.max_score_drop))
        elif low <= 0 <= high:
            interval = f"{words.score(low)} to {words.score(high)} (95 %)"
            notes.append(f"The {drop_name(winner).lower()}, {interval}, is not distinguishable from zero.")
    confidence = document.budget.confidence
    if confidence != DEFAULT_CONFIDENCE:
        notes.append(f"Limits are judged by the worse end of {100 * confidence:g} % intervals; those shown are 95 %.")
    near = [t for t in sentences.smaller_trials(document) if t.misses and all(miss.within_noise for miss in t.misses)]
    for trial in near:
        missed = words.listed(
            [sentences.miss_text(miss, document.budget, higher=is_higher_better(trial)) for miss in trial.misses or ()]
        )
        notes.append(f"Trial {trial.number} is smaller and misses {missed}.")
    disturbed = [trial for trial in document.trials if trial.contended_processes]
    if disturbed:
        numbers = words.listed([str(trial.number) for trial in disturbed])
        notes.append(
            f"Other load disturbed the timing of {'trial' if len(disturbed) == 1 else 'trials'} {numbers}: "
            "measure again on a quiet machine before you rely on milliseconds."
        )
    return notes


def _unchanged(samples: int, allowed: float | None) -> str:
    """Say how much samples show whose scores all stayed the same: an interval of their differences has no width.

    If a share p of all samples changes, n samples show none with a chance of (1 - p)^n; at 95 %, that is 5 %.
    """
    share = 1 - 0.05 ** (1 / samples)
    text = (
        f"Each of the {samples:,} samples scores as with the baseline, which shows at 95 % that fewer than "
        f"{words.significant(100 * share, 2)}{words.NBSP}% of other samples change."
    )
    if allowed is None or not 0 < allowed < min(share, 1):
        return text
    needed = math.ceil(math.log(0.05) / math.log(1 - allowed))
    return f"{text} To show less than {allowed:g}, give {needed:,} samples."


def compared_trials(document: Document) -> list[TrialPart]:
    """Return the baseline, and the winner if it is another trial."""
    baseline, winner = document.baseline, document.winner
    return [baseline] if winner is None or winner.number == baseline.number else [baseline, winner]


def timing_notes(trials: Iterable[TrialPart]) -> list[str]:
    """Say for each trial how its timing was noisy, apart from other load."""
    notes = []
    for trial in trials:
        other = [words.noise_text(kind, ratio) for kind, ratio in (trial.noise or {}).items() if kind != "load"]
        if other:
            notes.append(f"Timing of trial {trial.number}: {words.listed(other)}.")
    return notes
