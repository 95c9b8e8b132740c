"""``Budget``: the limits of a build, their names, and which of the files that keep them is preferred."""

from __future__ import annotations

from typing import Literal, TypeVar

from edgeopt.records.base import Record

Limit = Literal["latency", "throughput", "memory", "size", "score", "class", "flips"]
SizeMetric = Literal["file", "download"]
Preference = Literal["size", "latency", "memory"]
DEFAULT_CONFIDENCE = 0.95
_Bytes = TypeVar("_Bytes", int, int | None)


class Budget(Record, frozen=True, kw_only=True):
    """Hard limits on latency, throughput, memory, size and score. ``None`` means that somebody waived a limit by name.

    ``min_score`` and ``max_score_drop`` are two ways to bound the score; if both are given, both hold.
    """

    max_latency_ms: float | None
    latency_percentile: int
    """The percentile of the latencies that has to keep the limit, 1 to 99."""
    batch_size: int
    min_throughput_per_s: float | None
    """Samples a second at ``batch_size``."""
    max_peak_memory_bytes: int | None
    max_size_bytes: int | None
    size_metric: SizeMetric
    """``file``: bytes of the ``.onnx``; ``download``: its bytes after deflate."""
    runtime_size_bytes: int | None = None
    """Of the runtime that an app ships with the file, measured as ``size_metric`` says: the size limit is then about
    both. None: about the file alone."""
    min_score: float | None
    """The worst score that is allowed: a minimum, or a maximum if a lower score is better."""
    max_score_drop: float | None
    """How much worse than the measured baseline, in the unit of the score: 0.01 is one point of accuracy, or an error
    that is 0.01 larger in the unit of the labels."""
    max_class_drop: float | None = None
    """How much less often the answer may be right in any class."""
    max_flip_ratio: float | None = None
    """Share of the baseline's answers that may change."""
    confidence: float = DEFAULT_CONFIDENCE
    """Of the intervals whose worse end has to keep the limits on latency, throughput and the drop of the score."""
    prefer: Preference = "size"
    """What the winner has least of, among the trials that keep every limit; see ``edgeopt.select.preference``."""

    @property
    def limits_answers(self) -> bool:
        """Whether a limit is about single answers, not only about their mean."""
        return self.max_class_drop is not None or self.max_flip_ratio is not None

    def deciding_bytes(self, size_bytes: _Bytes, download_bytes: _Bytes) -> _Bytes:
        """Return the bytes of a file that ``size_metric`` means; the smallest file has the least of them."""
        return download_bytes if self.size_metric == "download" else size_bytes

    def judged_bytes(self, deciding_bytes: int) -> int:
        """Return the bytes that are compared with ``max_size_bytes``: those of a file, and the runtime's if stated."""
        return deciding_bytes + (self.runtime_size_bytes or 0)

    @property
    def max_deciding_bytes(self) -> int | None:
        """The largest file that keeps the size limit; None if the limit is waived."""
        return None if self.max_size_bytes is None else self.max_size_bytes - (self.runtime_size_bytes or 0)
