"""The smaller parts of ``choice.json``: latencies, comparisons, layers that changed, nodes that int8 disturbs."""

from __future__ import annotations

from typing import Literal

import msgspec

Span = tuple[float, float]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a document; unlike a record, it skips fields that a later version added."""


class Latency(Part, frozen=True, kw_only=True):
    """Wall time of one run, over all processes, in ms."""

    p50: float
    p90: float
    p99: float
    limit: float
    """At the budget's percentile."""
    limit_ci95: Span
    estimated: bool = False
    """Predicted for a target that was not there to measure; see ``Document.estimate``."""


class LatencyComparison(Part, frozen=True, kw_only=True):
    """The result of an interleaved A/B."""

    latency_ratio: float
    """This file's time over the other's: below 1 is faster."""
    ci95: Span
    verdict: Literal["faster", "slower", "no difference"]


class LayerChange(Part, frozen=True, kw_only=True):
    """Layers of one kind in float32 and in int8, by ONNX Runtime's profile."""

    operator: str
    shape: tuple[int, ...]
    """Of their outputs."""
    nodes: tuple[int, int]
    """How many, in float32 and in int8."""
    float_ms: float
    ms: float


class NodeSensitivity(Part, frozen=True, kw_only=True):
    """A node in the ranking of a mixed-precision trial, whose first nodes stay in float."""

    node: str
    snr_db: float
    """Signal to noise at the outputs if only this node is in int8."""
    cost_ratio: float
    """Its share of the weights' bytes and of the multiply-accumulates (mean of the two)."""
    stays_float: bool
