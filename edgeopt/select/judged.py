"""``JudgedTrial``: a measured trial with everything that the decision looks at."""

from __future__ import annotations

from dataclasses import dataclass

from edgeopt.records.budget import Limit
from edgeopt.records.choice import Verdict
from edgeopt.select.limits import LimitFinding
from edgeopt.statistics import Interval


@dataclass(frozen=True)
class JudgedTrial:
    """A measured trial with everything that the decision looks at, computed once."""

    number: int
    size_bytes: int
    latency_ms: float
    """At the budget's percentile."""
    memory_bytes: float
    """Infinite if it is missing."""
    quality: float
    """The score, or the negated score if lower is better; minus infinity if it is not a number."""
    time_ratio: Interval | None
    """Its time over the baseline's by their A/B; None if they were not compared."""
    form: tuple[str, ...] | None
    """How its file computes, on a stand-in: A/Bs there say nothing about files that compute in other ways. None if the
    target itself was measured."""
    findings: tuple[LimitFinding, ...]
    verdict: Verdict
    origins: frozenset[int]
    """Numbers of an int8 trial's float counterpart, and of the trial that a sparse or low-rank one was made from."""
    replaced: int | None
    """Number of the trial that it replaces, because it is faster by more than it is larger."""

    @property
    def keeps_limits(self) -> bool:
        """Whether it keeps every limit."""
        return not self.verdict.misses

    @property
    def missed(self) -> frozenset[Limit]:
        """Names of the limits that it misses."""
        return frozenset(miss.limit for miss in self.verdict.misses)

    @property
    def costs(self) -> tuple[float, float, float, float]:
        """Size, latency, memory and negated quality: less is better in each."""
        return (self.size_bytes, self.latency_ms, self.memory_bytes, -self.quality)
