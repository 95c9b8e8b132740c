"""The trials of a running build, in the order of measurement, with numbers that stay the same in later builds."""

from __future__ import annotations

from edgeopt.records.codec import digest
from edgeopt.records.recipe import Recipe
from edgeopt.records.trial import Failed, Trial
from edgeopt.store.ledger import Ledger


class TrialList(list[Trial]):
    """The trials of one build; the first is the baseline, number 0.

    Args:
        ledger: Gets each trial as it is written.
        build: The build's number in the ledger.
    """

    def __init__(self, ledger: Ledger, build: int) -> None:
        super().__init__()
        self.ledger = ledger
        self.build = build

    def number_for(self, recipe: Recipe) -> int:
        """Return the number that a recipe has in every build of this task in the workspace."""
        if not self:
            return 0
        times_tried = sum(trial.recipe == recipe for trial in self)
        return self.ledger.number_of(self.build, digest([recipe, times_tried]))

    def by_number(self, number: int) -> Trial:
        """Return a trial by its number, which is not its place."""
        return next(trial for trial in self if trial.number == number)

    @property
    def has_unfinished_trainings(self) -> bool:
        """Whether a training crashed or was not finished: the same command goes on, so the search has not finished."""
        return any(
            isinstance(trial.outcome, Failed) and trial.outcome.kind in ("crashed", "unfinished")
            for trial in self
            if trial.recipe.torch_steps and not trial.recipe.graph_steps
        )

    def write(self, trial: Trial) -> None:
        """Add a trial, or replace that of its number, here and in the ledger."""
        place = next((index for index, one in enumerate(self) if one.number == trial.number), len(self))
        self[place : place + 1] = [trial]
        self.ledger.add_trial(self.build, trial)
