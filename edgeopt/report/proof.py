"""The proof: a budget and a trial go in, each limit next to the value that was found comes out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgeopt.records.budget import Budget, Limit
from edgeopt.records.choice import Miss
from edgeopt.report import words
from edgeopt.report.document import TrialPart
from edgeopt.report.parts import Span
from edgeopt.report.words import Unit
from edgeopt.statistics import end_at


@dataclass(frozen=True)
class ProofRow:
    """One limit and one trial. ``allowed`` is None if the limit is waived."""

    limit: Limit
    label: str
    unit: Unit
    found: float | None
    interval: Span | None
    """95 %; its worse end decides, or that of another confidence."""
    allowed: float | None
    floor: bool
    """True if ``allowed`` is a minimum."""
    miss: Miss | None
    confidence: float = 0.95
    """Of the interval whose worse end decides."""

    @property
    def kept(self) -> bool | None:
        """Whether the limit is kept, which a missing number does not; None if it is waived."""
        return None if self.allowed is None else self.miss is None and self.found is not None

    @property
    def judged(self) -> float | None:
        """The number that decides: the worse end of the interval, or the number itself."""
        if self.interval is None or self.found is None:
            return self.found
        end = self.interval[0 if self.floor else 1]
        if self.unit == "per_s":  # the time of a sample has the interval
            return 1 / end_at(1 / self.found, 1 / end, self.confidence) if self.found and end else end
        return end_at(self.found, end, self.confidence)

    @property
    def found_text(self) -> str:
        """The number, with enough digits to see on which side of the limit it is."""
        if self.found is None or self.allowed is None:
            return words.quantity(self.found, self.unit)
        return words.distinguishable(self.found, self.allowed, self.unit)

    @property
    def judged_text(self) -> str:
        """The number that decides, with enough digits too."""
        if self.judged is None or self.allowed is None:
            return words.quantity(self.judged, self.unit)
        return words.distinguishable(self.judged, self.allowed, self.unit)

    @property
    def interval_text(self) -> str:
        """Both ends, or an empty string."""
        if self.interval is None:
            return ""
        low, high = (words.quantity(end, self.unit) for end in self.interval)
        return f"{low.removesuffix(' ms').removesuffix(' / s')} to {high}"

    @property
    def allowed_text(self) -> str:
        """The limit with its direction, or ``waived``."""
        if self.allowed is None:
            return "waived"
        return f"{'≥' if self.floor else '≤'}{words.NBSP}{words.limit(self.allowed, self.unit)}"


def build_proof(trial: TrialPart, budget: Budget) -> tuple[ProofRow, ...]:
    """Compare a trial with each limit, in one row each, waived limits included; a failed trial has no numbers."""
    rows = [_latency(trial, budget)]
    if budget.min_throughput_per_s is not None:
        rows.append(_throughput(trial, budget))
    rows += [_memory(trial, budget), _size(trial, budget), *_score(trial, budget), *_answers(trial, budget)]
    return tuple(row if row.limit in ("class", "flips") else replace(row, confidence=budget.confidence) for row in rows)


def _miss(trial: TrialPart, limit: Limit, allowed: float | None) -> Miss | None:
    """Find the miss of one limit; a budget can limit the score twice, and ``allowed`` says which limit is meant."""
    return next((miss for miss in trial.misses or () if miss.limit == limit and miss.allowed == allowed), None)


def _latency(trial: TrialPart, budget: Budget) -> ProofRow:
    latency = trial.latency_ms
    return ProofRow(
        limit="latency",
        label=f"Latency, p{budget.latency_percentile}{', estimated' if latency and latency.estimated else ''}",
        unit="ms",
        found=trial.latency_at_limit_ms,
        interval=None if latency is None else latency.limit_ci95,
        allowed=budget.max_latency_ms,
        floor=False,
        miss=_miss(trial, "latency", budget.max_latency_ms),
    )


def _throughput(trial: TrialPart, budget: Budget) -> ProofRow:
    return ProofRow(
        limit="throughput",
        label=f"Throughput, batch {budget.batch_size}",
        unit="per_s",
        found=trial.throughput_per_s,
        interval=trial.throughput_ci95,
        allowed=budget.min_throughput_per_s,
        floor=True,
        miss=_miss(trial, "throughput", budget.min_throughput_per_s),
    )


def _memory(trial: TrialPart, budget: Budget) -> ProofRow:
    return ProofRow(
        limit="memory",
        label="Peak memory",
        unit="bytes",
        found=trial.peak_memory_bytes,
        interval=None,
        allowed=budget.max_peak_memory_bytes,
        floor=False,
        miss=_miss(trial, "memory", budget.max_peak_memory_bytes),
    )


def _size(trial: TrialPart, budget: Budget) -> ProofRow:
    name = "Download (deflated)" if budget.size_metric == "download" else "File size"
    size = budget.deciding_bytes(trial.size_bytes, trial.download_bytes)
    return ProofRow(
        limit="size",
        label=f"{name}{with_runtime(budget)}",
        unit="bytes",
        found=None if size is None else budget.judged_bytes(size),
        interval=None,
        allowed=budget.max_size_bytes,
        floor=False,
        miss=_miss(trial, "size", budget.max_size_bytes),
    )


def with_runtime(budget: Budget) -> str:
    """Say after a size that it has the runtime in it: ``, with the runtime's 2.4 MB``; empty if none is stated."""
    runtime = budget.runtime_size_bytes
    return "" if runtime is None else f", with the runtime's {words.size(runtime)}"


def is_higher_better(trial: TrialPart) -> bool:
    """Tell whether a higher score of the trial would be better."""
    return trial.score_direction == "higher"


def drop_name(trial: TrialPart) -> str:
    """Name how much worse a trial scores than the baseline: ``Score drop``, or ``Error increase``."""
    return "Score drop" if is_higher_better(trial) else "Error increase"


def _score(trial: TrialPart, budget: Budget) -> list[ProofRow]:
    """Return rows for the worst score, the score drop, or both; if both are waived, the drop is shown as waived."""
    rows = []
    if budget.min_score is not None:
        rows.append(
            ProofRow(
                limit="score",
                label="Score" if is_higher_better(trial) else "Score (error)",
                unit="score",
                found=trial.score,
                interval=None,
                allowed=budget.min_score,
                floor=is_higher_better(trial),
                miss=_miss(trial, "score", budget.min_score),
            )
        )
    if budget.max_score_drop is not None or not rows:
        rows.append(
            ProofRow(
                limit="score",
                label=drop_name(trial),
                unit="score",
                found=trial.score_drop,
                interval=trial.score_drop_ci95,
                allowed=budget.max_score_drop,
                floor=False,
                miss=_miss(trial, "score", budget.max_score_drop),
            )
        )
    return rows


def _answers(trial: TrialPart, budget: Budget) -> list[ProofRow]:
    """Return rows for the worst class and for changed answers, if they are limited."""
    answers = trial.answers
    worst = answers.worst_class if answers is not None else None
    drop = None if worst is None else (worst.drop, worst.drop_ci95)
    flips = None if answers is None else (answers.flip_ratio, answers.flip_ratio_ci95)
    limits: tuple[tuple[Limit, str, tuple[float, Span] | None, float | None], ...] = (
        ("class", "Drop of the worst class", drop, budget.max_class_drop),
        ("flips", "Changed answers", flips, budget.max_flip_ratio),
    )
    return [
        ProofRow(
            limit=limit,
            label=label,
            unit="score",
            found=None if found is None else found[0],
            interval=None if found is None else found[1],
            allowed=allowed,
            floor=False,
            miss=_miss(trial, limit, allowed),
        )
        for limit, label, found, allowed in limits
        if allowed is not None
    ]
