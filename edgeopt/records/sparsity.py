"""``SparsityCurve``: a network's loss as more of its weights become zero, before any training."""

from __future__ import annotations

from edgeopt.records.base import Record


class SparsityPoint(Record, frozen=True, kw_only=True):
    """The loss at one share of nonzero weights."""

    nonzero_ratio: float
    """Of the weights that may become zero, 0..1."""
    loss: float
    """The task's own loss, the mean over batches."""


class SparsityCurve(Record, frozen=True, kw_only=True):
    """Loss against the share of nonzero weights (the L0 norm), for each way of choosing the zeros."""

    points: dict[str, tuple[SparsityPoint, ...]]
    """Method to its points, from all weights to few."""
    samples: int
    """Number of evaluation samples that the loss is averaged over."""
