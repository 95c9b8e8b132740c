"""``Choice``: the decision, and everything it is based on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from edgeopt.records.base import Record
from edgeopt.records.budget import Budget, Limit
from edgeopt.records.codec import digest
from edgeopt.records.measurement import DeviceInfo
from edgeopt.records.profile import GraphLevel, OrtPlatform
from edgeopt.records.scoring import ScoreDirection, ScoreKind
from edgeopt.records.sparsity import SparsityCurve
from edgeopt.records.trial import Failed, Measured, Trial


class Miss(Record, frozen=True, kw_only=True):
    """A limit that a trial misses."""

    limit: Limit
    found: float | None
    """In the unit of ``Budget``; None if the metric is missing, which counts as a miss."""
    allowed: float
    within_noise: bool
    """The point estimate keeps the limit, but its interval does not."""


class Verdict(Record, frozen=True, kw_only=True):
    """One trial held against the limits."""

    trial: int
    """Its number."""
    misses: tuple[Miss, ...]
    """Empty if it keeps every limit."""
    pays: bool
    """False if an A/B bars it from winning, because it is slower; see ``edgeopt.select.limits.pays``."""


class NearMiss(Record, frozen=True, kw_only=True):
    """A trial that is smaller than the winner and misses a single limit."""

    trial: int
    """Its number."""
    size_bytes: int
    """Of the file, or of the download if the limit is on that."""
    relief: str
    """What would let it win: ``a score drop limit of 0.0124 (instead of 0.01)``."""


class Infeasible(Record, frozen=True, kw_only=True):
    """Why nothing keeps the limits."""

    binding: tuple[Limit, ...]
    """The limits that the nearest trial misses."""
    nearest: int | None
    """Number of the trial that misses by the least; None if no trial was measured."""
    advice: str
    """Limits that would be enough: ``A size limit of 6.1 MB (instead of 2 MB) would be enough for trial 1.``"""


class TestScores(Record, frozen=True, kw_only=True):
    """Scores on the test set, which is looked at once, after the choice."""

    baseline_score: float
    winner_score: float
    drop_ci95: tuple[float, float] | None
    samples: int
    direction: ScoreDirection = "higher"


class ExpectedDrop(Record, frozen=True, kw_only=True):
    """What the winner is expected to lose on other data: its drop, and what it owes to the samples that chose it."""

    drop: float
    drop_ci95: tuple[float, float]
    files: int
    """Among which the choice was made."""


class FailedTrainings(Record, frozen=True, kw_only=True):
    """The trainings of a build that gave no network."""

    failed: int
    total: int
    diverged: int
    """Of the failed ones, those whose values became not finite."""
    reasons: dict[str, tuple[int, ...]]
    """Stage and reason, to the numbers of the trials that failed for it."""

    @property
    def is_error(self) -> bool:
        """Whether no training succeeded, and not only because all diverged."""
        return self.failed == self.total and self.diverged < self.total


def count_failed_trainings(trials: Sequence[Trial]) -> FailedTrainings | None:
    """Return which trainings failed among the trials of a build; None if none did.

    A training is a set of torch steps from one network. It failed if it gave no file in any form: its only trial then
    failed without graph steps. One that was not finished in time has not failed.
    """
    trained = (trial for trial in trials if trial.recipe.torch_steps)
    trainings = {digest((trial.recipe.torch_steps, trial.recipe.parent)): trial for trial in trained}
    failures = [
        (trial.number, trial.outcome)
        for trial in trainings.values()
        if isinstance(trial.outcome, Failed) and trial.outcome.kind != "unfinished" and not trial.recipe.graph_steps
    ]
    if not failures:
        return None
    reasons: dict[str, tuple[int, ...]] = {}
    for number, failure in failures:
        text = f"{failure.stage}: {failure.reason}"
        reasons[text] = (*reasons.get(text, ()), number)
    return FailedTrainings(
        failed=len(failures),
        total=len(trainings),
        diverged=sum(failure.kind == "diverged" for _, failure in failures),
        reasons=reasons,
    )


class OrtFile(Record, frozen=True, kw_only=True):
    """The winner in ONNX Runtime's own format, which a reduced runtime reads."""

    file: str
    """Path in the bundle, as the next one."""
    operators_file: str
    """Operators and types that the runtime has to have."""
    size_bytes: int
    download_bytes: int
    """After deflate."""
    level: GraphLevel
    """How far the graph was optimized when the file was made; it is not optimized again when it is loaded."""
    target_platform: OrtPlatform
    weights: Literal["unpacked", "stored"]
    """``unpacked``: constants were computed when the file was made. ``stored``: they are as dense as in the ``.onnx``,
    and each run computes them again."""
    onnxruntime: str
    """The version that made the file: a runtime has to be that one or a later one."""


class Choice(Record, frozen=True, kw_only=True):
    """The result of a build."""

    task: str
    target: str
    device: DeviceInfo
    proven_on_target: bool
    budget: Budget
    trials: tuple[Trial, ...]
    """Number 0 is the baseline."""
    verdicts: tuple[Verdict, ...]
    """One for each measured trial, in order."""
    winner: int | None
    binding: tuple[Limit, ...]
    """The limits that keep the file from being smaller; without a winner, those that the nearest trial misses."""
    pareto_front: tuple[int, ...]
    """Trials that no other beats on all of size, latency, memory and score."""
    infeasible: Infeasible | None
    test: TestScores | None
    seconds: dict[str, float]
    sparsity: SparsityCurve | None = None
    """Of the network that zeros were tried on, which is done only if the budget is about the download."""
    notes: tuple[str, ...] = ()
    """Things that the search did not try, and why."""
    warnings: tuple[str, ...] = ()
    """Reasons why the scores may mean nothing, such as a baseline that scores like a constant answer."""
    score_kind: ScoreKind | None = None
    """What the score is; None if the task scores itself."""
    teacher: str | None = None
    """The ``.onnx`` file that taught the trained networks; None if the original network did."""
    given_sha256: str | None = None
    """Of the given ``.onnx`` as it was read; None for a PyTorch task."""
    failed_trainings: FailedTrainings | None = None
    """None if no training failed."""
    near_misses: tuple[NearMiss, ...] = ()
    """The nearest first."""
    expected: ExpectedDrop | None = None
    """None if the drop is not limited, the baseline won, or the score cannot be computed for draws of samples."""
    ended_early: str | None = None
    """Why the search ended before all its rounds: something failed that no single trial is to blame for."""
    ort: OrtFile | None = None
    """None if it was not asked for, or could not be made; a note then says why."""

    @property
    def is_error(self) -> bool:
        """Whether nothing could be trained for a technical reason: the winner, if any, is the original."""
        trained = any(trial.recipe.torch_steps and isinstance(trial.outcome, Measured) for trial in self.trials)
        all_failed = self.failed_trainings is not None and self.failed_trainings.is_error
        return all_failed or (self.ended_early is not None and not trained)

    def trial(self, number: int) -> Trial:
        """Return the trial with that number."""
        return next(trial for trial in self.trials if trial.number == number)

    def measured(self, number: int) -> Measured:
        """Return what came of a trial that was measured, such as the winner."""
        outcome = self.trial(number).outcome
        assert isinstance(outcome, Measured)
        return outcome
