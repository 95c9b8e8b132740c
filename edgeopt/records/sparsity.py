"""``SparsityCurve``: what a network's loss becomes as more of its weights are zero, before any training."""

from __future__ import annotations

from edgeopt.records.base import Record


class SparsityPoint(Record, frozen=True, kw_only=True):
    """The loss at one share of weights that are not zero."""

    nonzero_ratio: float
    """Of the weights that may become zero, 0..1."""
    loss: float
    """The task's own, the mean over batches."""


class SparsityCurve(Record, frozen=True, kw_only=True):
    """Loss against the share of weights that are not zero (the L0 norm), by how the zeros are chosen."""

    points: dict[str, tuple[SparsityPoint, ...]]
    """Method to its points, from all weights to few."""
    samples: int
    """Evaluation samples that the loss is the mean of."""
