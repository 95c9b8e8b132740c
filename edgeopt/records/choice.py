"""``Choice``: the decision, and all that it rests on."""

from __future__ import annotations

from edgeopt.records.base import Record
from edgeopt.records.budget import Budget, Limit
from edgeopt.records.measurement import DeviceInfo
from edgeopt.records.sparsity import SparsityCurve
from edgeopt.records.trial import Trial


class Miss(Record, frozen=True, kw_only=True):
    """A limit that a trial does not keep."""

    limit: Limit
    found: float | None
    """In the unit of ``Budget``; None where the metric is missing, which is a miss."""
    allowed: float
    within_noise: bool
    """The point estimate keeps the limit, its interval does not."""


class Verdict(Record, frozen=True, kw_only=True):
    """One trial judged against the budget."""

    trial: int
    """Its number."""
    misses: tuple[Miss, ...]
    """Empty where it keeps every limit."""
    pays: bool
    """False where the A/B finds it slower than the baseline, in a way that counts on this device."""


class Infeasible(Record, frozen=True, kw_only=True):
    """Why nothing keeps the budget."""

    binding: tuple[Limit, ...]
    """The limits that the nearest trial misses."""
    nearest: int | None
    """Number of the trial that misses by least; None where none was measured."""
    advice: str
    """What would be enough, such as ``28 ms needs 6.1 MB, or 0.004 of score``."""


class TestScores(Record, frozen=True, kw_only=True):
    """Scores on the test batches, which are looked at once, after the choice."""

    baseline_score: float
    winner_score: float
    drop_ci95: tuple[float, float] | None
    samples: int


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
    """One for each trial that was measured, in order."""
    winner: int | None
    binding: tuple[Limit, ...]
    """The limits that keep the file from being smaller; where nothing keeps the budget, what the nearest misses."""
    front: tuple[int, ...]
    """Trials that no other beats on size, latency, memory and score at once."""
    infeasible: Infeasible | None
    test: TestScores | None
    seconds: dict[str, float]
    sparsity: SparsityCurve | None = None
    """Of the network that zeros were tried on, where downloads count."""
    notes: tuple[str, ...] = ()
    """What the search did not try, and why."""
    teacher: str | None = None
    """The ``.onnx`` file that taught what was trained; None where the original network did."""

    def trial(self, number: int) -> Trial:
        """Return the trial of that number."""
        return next(trial for trial in self.trials if trial.number == number)
