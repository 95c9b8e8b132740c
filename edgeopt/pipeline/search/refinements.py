"""What is tried at the size of the smallest network that keeps the score: a uniform cut, smaller images, and zeros.

Widths chosen by importance may keep more work than a uniform cut of the same size, because the channels that matter
most may be in the layers that take longest. So the uniform cut is tried too, if it is predicted to be quicker: no plain
cut is then both as small and quicker than the winner. A smaller image inside the network saves time alone, so it is
tried if time is asked for. Zeros are for the download. Factorized layers are in ``edgeopt.pipeline.search.low_rank``.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeopt.errors import StepError
from edgeopt.latency.predictor import Predictor
from edgeopt.pipeline.artifacts.latency_table import LatencyLimit
from edgeopt.pipeline.artifacts.networks import StoredNetwork, group_table_of, reference
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.search.candidate import (
    Candidate,
    at_lower_resolution,
    cut_steps,
    importance_of,
    samples_to_fit,
    sparse,
)
from edgeopt.pipeline.torch_process import protocol
from edgeopt.planning.width_rules import least_widths
from edgeopt.planning.widths import groups_left_out, uniform_widths_of_size
from edgeopt.records.groups import GroupTable
from edgeopt.records.latency import LatencyTable
from edgeopt.records.recipe import Prune
from edgeopt.records.sparsity import SparsityCurve
from edgeopt.records.trial import Measured, Trial
from edgeopt.select.limits import judge_limits
from edgeopt.task import CheckedTask

MAX_TIME_RATIO = 0.97
"""Of the network's predicted time: what a uniform cut may take at most to be worth a training."""


def uniform_cut(
    build: Build, network: StoredNetwork, original: StoredNetwork, limit: LatencyLimit | None
) -> Candidate | None:
    """Return the uniform cut of the original with as many parameters as a network; None if it isn't quicker.

    Args:
        build: The build.
        network: A pruned network that keeps the score.
        original: The trained network.
        limit: Has the times of its layers; None if no widths were chosen, or no further training is wanted.
    """
    if limit is None or network.key is None:
        return None
    table, _ = group_table_of(build, original, importance_of(build))
    found, _ = group_table_of(build, network, importance_of(build))
    left_out = groups_left_out(table, found)
    if left_out is None:
        return None  # a student, or a network whose groups another step has changed
    full, widths = table.widths(), dict.fromkeys(left_out, 0) | found.widths()
    least = least_widths(table, build.width_rules)
    uniform = uniform_widths_of_size(table, network.parameters, build.profile.channel_step, least)
    if uniform == widths or _time(table, limit, uniform) > MAX_TIME_RATIO * _time(table, limit, widths):
        return None
    cut = {name: width for name, width in uniform.items() if width < full[name]}
    note = f"the same share of every group's channels, with no more parameters than {network.parameters:,}"
    steps = cut_steps(build, Prune(importance=importance_of(build), widths=cut, fitted_samples=samples_to_fit(table)))
    return Candidate(steps=steps, parent=None, notes=(note,), is_plain_cut=True)


def _time(table: GroupTable, limit: LatencyLimit, widths: dict[str, int]) -> float:
    """Return the predicted time of a network; without a latency table, its multiply-accumulates."""
    if isinstance(limit.table, LatencyTable):
        return Predictor(limit.table).ns(widths)
    return float(table.macs(widths))


def lower_resolutions(build: Build, network: StoredNetwork, trials: Sequence[Trial]) -> tuple[list[Candidate], str]:
    """Return a network's candidates with a smaller image inside, and a sentence on what is missing.

    They are as large as it is, and quicker. So there are none unless the task names sizes, the quickest file is
    preferred, or none of the network's files is quick enough.

    Args:
        build: The build.
        network: The smallest network that keeps the score.
        trials: Of the build.
    """
    task, budget = build.data.task, build.budget
    given = task.input_sizes if isinstance(task, CheckedTask) else None
    is_asked_for = bool(given) or budget.prefer == "latency" or not _is_quick_enough(build, network, trials)
    if given == () or not is_asked_for or build.effort.rounds == 1:
        return [], ""

    def make() -> protocol.InputSizesDone:
        job = protocol.InputSizesJob(network=reference(build, network))
        return build.torch_pool.do(job, protocol.InputSizesDone)

    key = build.keys.of("input-sizes", network=network.key, given=given)
    try:
        found = build.ledger.remember(key, protocol.InputSizesDone, make)
    except StepError as error:
        return [], f"Smaller images inside the network were not tried: {error.reason}"
    reason = f"Some smaller images inside the network were not tried: {found.reason}." if found.reason else ""
    return [at_lower_resolution(build, network, size) for size in found.sizes], reason


def _is_quick_enough(build: Build, network: StoredNetwork, trials: Sequence[Trial]) -> bool:
    """Tell whether a file of a network keeps the limits on the score, on latency and on throughput."""
    limits = ("score", "latency", "throughput")
    return any(
        all(one.kept for one in judge_limits(trial.outcome, build.budget) if one.limit in limits)
        for trial in trials
        if build.keys.network_of(trial.recipe) == network.key and isinstance(trial.outcome, Measured)
    )


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
