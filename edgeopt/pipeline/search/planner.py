"""What to try next: cut networks of given sizes, and what may save bytes or time at the smallest good size.

Nothing is trained here; a candidate that cannot be planned leaves a note.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgeopt.errors import EdgeoptError
from edgeopt.pipeline.artifacts.latency_table import LatencyLimit, latency_limit
from edgeopt.pipeline.artifacts.networks import StoredNetwork, export_network, group_table_of
from edgeopt.pipeline.boundary import as_failed
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.search.candidate import Candidate, SizeTarget, importance_of, pruned
from edgeopt.pipeline.search.low_rank import low_rank_candidates
from edgeopt.pipeline.search.refinements import lower_resolutions, sparse_candidates, sparsity_curve, uniform_cut
from edgeopt.pipeline.search.sizes import KnownSizes
from edgeopt.pipeline.search.training_cores import in_parallel
from edgeopt.pipeline.search.trial_runner import TrialRunner
from edgeopt.pipeline.search.variants.accuracy_recovery import training_for_few_bits
from edgeopt.planning.bisection import Point
from edgeopt.records.latency import NoLatencyTable
from edgeopt.records.sparsity import SparsityCurve


class Planner:
    """Plans the candidates of one search.

    Args:
        build: The build.
        runner: Holds networks and trials.
        sizes: What is known about sizes.
    """

    def __init__(self, build: Build, runner: TrialRunner, sizes: KnownSizes) -> None:
        self.build = build
        self.runner = runner
        self.sizes = sizes
        self.notes: list[str] = []
        """What was not tried, and why; kept with a finished search."""
        self.sparsity: SparsityCurve | None = None
        self.limit: LatencyLimit | None = None
        """What is known about latency, once widths were chosen."""
        self.refinements = (self.uniform, self.low_rank, self.lower_resolutions, self.few_bits, self.sparse)
        """What gives further candidates at the smallest size that keeps the score, in the order in which they count."""

    @property
    def most_refinements(self) -> int:
        """How many of the refinements may give candidates: zeros are for the download, smaller images rare."""
        effort = self.build.effort
        asked = (effort.rounds > 1, effort.low_rank, effort.few_bits, self.build.budget.size_metric == "download")
        return sum(asked)

    def plans(self, ratios: Sequence[float], points: Sequence[Point]) -> list[tuple[Candidate, float]]:
        """Return the pruned candidates of these ratios; nothing trains while the latency table is measured."""
        precision = self.sizes.shipping_precision or self.runner.precisions[0]
        original = next((trial for trial in self.sizes.originals if trial.recipe.precision == precision), None)
        with self.build.clock.stage("plan candidates"):
            groups, _ = group_table_of(self.build, self.runner.original, importance_of(self.build))
        with self.build.clock.stage("latency table"):
            self.limit = limit = latency_limit(self.build, groups, self.runner.exported, precision, original)
        if isinstance(limit.table, NoLatencyTable):
            self.note(f"Widths were chosen by counted work, not by measured times: {limit.table.reason}", "search")
        sizes = [SizeTarget(ratio, self.sizes.parent(ratio, points)) for ratio in ratios]
        with self.build.clock.stage("plan candidates"):
            found = in_parallel(self.build, lambda size: self.plan(size, limit), sizes)
        return [(candidate, ratio) for candidate, ratio in zip(found, ratios, strict=True) if candidate is not None]

    def plan(self, size: SizeTarget, limit: LatencyLimit) -> Candidate | None:
        """Return the pruned candidate of a size; None if its parent's channels cannot be scored."""
        what = f"A network with {size.ratio:.1%} of the parameters"
        return self.or_note(what, lambda: pruned(self.build, size, self.runner.original, limit))

    def or_note(self, what: str, make: Callable[[], Candidate | None]) -> Candidate | None:
        """Return a candidate; if it cannot be made, None, and a note says why."""
        try:
            return make()
        except EdgeoptError as error:
            note = f"{what} was not tried: {as_failed(error).reason}"
            self.notes.append(note)
            self.build.progress("failed", note)
            return None

    def uniform(self, network: StoredNetwork) -> list[Candidate]:
        """Return the uniform cut of a network's size, if it is worth it and can be made."""
        limit = self.limit if self.build.effort.rounds > 1 else None
        cut = self.or_note("A uniform cut", lambda: uniform_cut(self.build, network, self.runner.original, limit))
        return [] if cut is None else [cut]

    def low_rank(self, network: StoredNetwork) -> list[Candidate]:
        """Return a network's candidates with factorized layers."""
        if not self.build.effort.low_rank:
            return []
        with self.build.clock.stage("low rank"):
            precision = self.sizes.shipping_precision or self.runner.precisions[0]
            candidates, reason = low_rank_candidates(self.build, network, precision)
        self.note(reason, "low-rank")
        return candidates

    def lower_resolutions(self, network: StoredNetwork) -> list[Candidate]:
        """Return a network's candidates with a smaller image inside."""
        candidates, reason = lower_resolutions(self.build, network, self.runner.trials)
        self.note(reason, "search")
        return candidates

    def few_bits(self, network: StoredNetwork) -> list[Candidate]:
        """Return the candidate that trains a network for few bits, if it is worth it and can be made."""

        def make() -> Candidate | None:
            exported = export_network(self.build, network) if network.key else self.runner.exported
            return training_for_few_bits(self.build, network, exported, self.runner.trials)

        candidate = self.or_note("Training for int8 with weights in few bits", make)
        return [] if candidate is None else [candidate]

    def sparse(self, network: StoredNetwork) -> list[Candidate]:
        """Return a network's candidates with zeros, and keep how its loss depends on them."""
        candidates = sparse_candidates(self.build, network)
        if candidates:
            curve, reason = sparsity_curve(self.build, network)
            self.sparsity = curve or self.sparsity
            self.note(reason, "sparsify")
        return candidates

    def note(self, text: str, stage: str) -> None:
        """Keep a sentence for the report, once, and show it."""
        if text and text not in self.notes:
            self.notes.append(text)
            self.build.progress(stage, text)
