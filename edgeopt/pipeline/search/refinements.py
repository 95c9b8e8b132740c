"""What follows the bisection: variants of the smallest network that keeps the score, and how they compare with it.

Pruning comes first, for a narrower network is smaller and faster on every device. What low rank and zeros add is tried
on its result, and measured against it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edgeopt.errors import EdgeoptError, StepError
from edgeopt.pipeline.artifacts.networks import reference
from edgeopt.pipeline.boundary import as_failed
from edgeopt.pipeline.search.candidate import precision_of, sparse
from edgeopt.pipeline.search.low_rank import low_rank_candidates
from edgeopt.pipeline.torch_process import protocol
from edgeopt.records.codec import digest, network_key
from edgeopt.records.recipe import LowRank, Recipe, Sparsify
from edgeopt.records.sparsity import SparsityCurve
from edgeopt.records.trial import AgainstTrial, Measured, Trial

if TYPE_CHECKING:
    from edgeopt.pipeline.artifacts.networks import StoredNetwork
    from edgeopt.pipeline.search.driver import Search


def try_variants(search: Search, ratio: float | None) -> None:
    """Train what low rank and zeros make of the network of that size, where the rules say that it may pay.

    Args:
        search: The search.
        ratio: Of the smallest network that keeps the score; None where none does.
    """
    build = search.build
    network = next((found for found in search.networks.values() if found.ratio == ratio), None)
    if network is None or build.out_of_time:
        return
    if build.effort.low_rank:
        try_low_rank(search, network)
    if build.budget.size_metric == "download":
        try:
            search.sparsity = sparsity_curve(search, network)
        except StepError as error:
            search.notes.append(f"The loss at several shares of zeros could not be found: {error.reason}")
        search.run_round([sparse(build, network, ratio) for ratio in build.effort.sparsities])


def try_low_rank(search: Search, network: StoredNetwork) -> None:
    """Train a network's candidates of low rank, or note why there are none."""
    build = search.build
    with build.clock.stage("low rank"):
        candidates, said = low_rank_candidates(build, network, search.track or search.precisions[0])
    if said and said not in search.notes:
        search.notes.append(said)
        build.progress("low-rank", said)
    if candidates and not build.out_of_time:
        search.run_round(candidates)


def sparsity_curve(search: Search, network: StoredNetwork) -> SparsityCurve:
    """Return a network's loss against its zeros: from the ledger, or found now."""
    build = search.build
    key = digest(("curve", build.fingerprint, network.key, build.versions))
    found = build.ledger.get("curve", key, SparsityCurve)
    if found is None:
        build.progress("sparsify", "the loss at several shares of zeros")
        found = build.trainers.do(protocol.CurveJob(network=reference(build, network)), protocol.CurveDone).curve
        build.ledger.put("curve", key, found)
    return found


def parent_of(search: Search, recipe: Recipe) -> Trial | None:
    """Return the trial of the network that a sparse or low-rank one was made of, in the same precision."""
    if not any(isinstance(step, LowRank | Sparsify) for step in recipe.torch_steps):
        return None
    build = search.build
    for trial in search.trials:
        other = trial.recipe
        key = (
            network_key(build.fingerprint, other.torch_steps, other.seed, other.parent, build.versions)
            if other.torch_steps
            else None
        )
        same = key == recipe.parent and other.graph_steps and precision_of(other) == precision_of(recipe)
        if same and isinstance(trial.outcome, Measured):
            return trial
    return None


def against_parent(search: Search, recipe: Recipe, outcome: Measured) -> Measured:
    """Return the outcome with its A/B against the network it was made of: what a variant buys, and what it does not.

    Where that cannot be had, a note says so: the file and its measurement are good without.

    Raises:
        WorkspaceError, DeviceLostError: nothing can go on; the same command repeats the trial.
    """
    parent = parent_of(search, recipe)
    if parent is None or not isinstance(parent.outcome, Measured):
        return outcome
    search.build.progress("compare", f"with trial {parent.number}, which it was made of")
    try:
        comparison = search.scale.comparison(outcome.artifact.sha256, parent.outcome.artifact.sha256)
    except EdgeoptError as error:
        note = (
            f"not compared with trial {parent.number}, which it was made of ({as_failed(error).reason}): the same "
            "command tries again"
        )
        search.build.progress("compare", note)
        artifact = msgspec.structs.replace(outcome.artifact, notes=(*outcome.artifact.notes, note))
        return msgspec.structs.replace(outcome, artifact=artifact)
    return msgspec.structs.replace(outcome, against_parent=AgainstTrial(trial=parent.number, comparison=comparison))
