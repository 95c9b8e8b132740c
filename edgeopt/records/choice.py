"""``Choice``: the decision, and everything it is based on."""

from __future__ import annotations

from edgeopt.records.base import Record
from edgeopt.records.budget import Budget, Limit
from edgeopt.records.measurement import DeviceInfo
from edgeopt.records.scoring import ScoreDirection, ScoreKind
from edgeopt.records.sparsity import SparsityCurve
from edgeopt.records.trial import Trial


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

    def trial(self, number: int) -> Trial:
        """Return the trial with that number."""
        return next(trial for trial in self.trials if trial.number == number)
