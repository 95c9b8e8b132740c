"""Whether the trained network itself would gain from more training: its candidates say so by scoring above it.

A candidate learns from the trained network, is usually smaller, and has few epochs. If one scores clearly higher, the
trained network was not trained to its end.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgeopt.records.recipe import Distill
from edgeopt.records.trial import Measured, Trial

_CLEAR_INTERVALS = 2.0
"""Half-widths of the 95 % interval by which a gain has to exceed zero: several candidates are looked at."""


def undertrained_note(trials: Iterable[Trial]) -> str | None:
    """Return a sentence about the trial that gains most over the baseline's score, or None if none clearly does."""
    best: tuple[float, str] | None = None
    for trial in trials:
        steps = [step for step in trial.recipe.torch_steps if isinstance(step, Distill)]
        epochs = sum(step.epochs if step.ended_after is None else step.ended_after for step in steps)
        if not isinstance(trial.outcome, Measured) or epochs == 0:
            continue
        score = trial.outcome.score
        if score.drop_ci95 is None or score.drop >= 0:
            continue
        half_width = (score.drop_ci95[1] - score.drop_ci95[0]) / 2
        if score.drop + _CLEAR_INTERVALS * half_width < 0 and (best is None or score.drop < best[0]):
            more = " or more" if any(step.min_steps and step.ended_after is None for step in steps) else ""
            sentence = (
                f"The trained network is undertrained: trial {trial.number} scores {-score.drop:.4f} better than it "
                f"after {epochs}{more} epochs with it as the teacher. Train it longer before you compress it: every "
                "candidate gains from a better teacher."
            )
            best = score.drop, sentence
    return best[1] if best else None
