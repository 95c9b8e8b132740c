"""What failed in a build, in sentences that the terminal and the page share."""

from __future__ import annotations

from edgeopt.records.choice import FailedTrainings
from edgeopt.records.codec import digest
from edgeopt.records.recipe import Distill
from edgeopt.report import words
from edgeopt.report.document import Document


def failure_notes(document: Document) -> list[str]:
    """Say how many trainings failed and why, and why the search ended early, if it did."""
    notes = []
    failed = document.failed_trainings
    if failed is not None:
        reasons = "; ".join(_reason_text(reason, numbers) for reason, numbers in failed.reasons.items())
        again = "" if failed.diverged == failed.failed else " Run the same command to try again."
        notes.append(f"{share_of_failed(failed)}: {reasons}.{again}")
    unfinished = sum(trial.failure == "unfinished" for trial in document.trials)
    if unfinished:
        notes.append(
            f"{words.plural(unfinished, 'training')} not finished when the time was over. The same command with more "
            f"time goes on from {'its' if unfinished == 1 else 'their'} last epoch."
        )
    if cut_off := _count_cut_off(document):
        its, network = ("its", "network") if cut_off == 1 else ("their", "networks")
        notes.append(
            f"{words.plural(cut_off, 'training')} cut off when the time was over, and {its} {network} tried as trained "
            f"so far. The same command with more time goes on from {its} last epoch."
        )
    if document.ended_early is not None:
        reason = document.ended_early.removesuffix(".")
        notes.append(f"The search ended early: {reason}. Run the same command to go on.")
    return notes


def _count_cut_off(document: Document) -> int:
    """Return how many trainings were cut off, but gave a network."""
    return len(
        {
            digest((trial.recipe.torch_steps, trial.recipe.parent))
            for trial in document.trials
            if any(isinstance(step, Distill) and step.ended_after is not None for step in trial.recipe.torch_steps)
        }
    )


def _reason_text(reason: str, numbers: tuple[int, ...]) -> str:
    trials = f"trial{'' if len(numbers) == 1 else 's'} {words.listed([str(number) for number in numbers])}"
    return f"{trials}: {reason.removesuffix('.')}"


def share_of_failed(failed: FailedTrainings) -> str:
    """Return ``2 of 4 trainings failed``."""
    return f"{failed.failed} of {words.plural(failed.total, 'training')} failed"
