"""What is tried on the smallest network that keeps the score: factorized layers, and zeros if the download counts.

Pruning comes first, because a narrower network is smaller and faster on every device. Factorization and zeros start
from its result, and are compared with it.
"""

from __future__ import annotations

from edgeopt.errors import StepError
from edgeopt.pipeline.artifacts.networks import StoredNetwork, reference
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.search.candidate import Candidate, sparse
from edgeopt.pipeline.torch_process import protocol
from edgeopt.records.sparsity import SparsityCurve


def sparse_candidates(build: Build, network: StoredNetwork) -> list[Candidate]:
    """Return a network's candidates with zeros; none if the limits do not count the download."""
    if build.budget.size_metric != "download":
        return []
    return [sparse(build, network, ratio) for ratio in build.effort.sparsities]


def sparsity_curve(build: Build, network: StoredNetwork) -> tuple[SparsityCurve | None, str]:
    """Return a network's loss against its share of zeros, from the ledger or found now; or None and why not."""

    def make() -> SparsityCurve:
        build.progress("sparsify", "finding the loss at several shares of zeros")
        return build.torch_pool.do(protocol.CurveJob(network=reference(build, network)), protocol.CurveDone).curve

    try:
        key = build.keys.of("sparsity-curve", network=network.key)
        return build.ledger.remember(key, SparsityCurve, make), ""
    except StepError as error:
        return None, f"The loss at several shares of zeros could not be found: {error.reason}"
