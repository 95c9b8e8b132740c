"""The order of a search: the baseline and its variants, rounds of pruned candidates, refinements, then comparisons.

Candidates of a round are made in parallel; when all their files exist, these are measured one by one. Everything is
looked up by its key first, so a build that continues, or one with other limits, does only what is new.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from edgeopt.errors import EdgeoptError
from edgeopt.pipeline.artifacts.shared_stages import forget_stages, without_old_stages
from edgeopt.pipeline.boundary import as_failed, run_step
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.search.candidate import (
    ORIGINAL,
    Candidate,
    CandidateResult,
    CandidateTrials,
    FinishedSearch,
    SharedCandidates,
    Variant,
    changes_nothing,
    finished_search_key,
    is_refinement,
    is_trained,
    shared_candidates_key,
    slow_sizes,
    student,
    summary_of,
    trained_to_the_end,
)
from edgeopt.pipeline.search.contenders import compare_contenders, measure_variants
from edgeopt.pipeline.search.planner import Planner
from edgeopt.pipeline.search.sizes import KnownSizes
from edgeopt.pipeline.search.training_cores import Job, in_parallel, nothing, tune_training
from edgeopt.pipeline.search.trial_runner import TrialRunner, VariantMaker
from edgeopt.pipeline.search.variants.accuracy_recovery import (
    further_variants,
    training_for_int8,
)
from edgeopt.planning.bisection import Point, next_ratios, smallest_good
from edgeopt.planning.widths import UNREACHED_NOTE
from edgeopt.records.latency import NoLatencyTable
from edgeopt.records.trial import Failed

Further = Literal["if needed", "always", "never"]
"""When a finished search goes on: if no trial keeps the limits, always, or never."""

_logger = logging.getLogger(__name__)


class Search:
    """One build's search; the only place that runs candidates.

    Args:
        build: The build.
        runner: Makes and measures them.
    """

    def __init__(self, build: Build, runner: TrialRunner) -> None:
        self.build = build
        self.runner = runner
        self.sizes = KnownSizes(build, runner)
        self.candidates: list[Candidate] = []
        self.planner = Planner(build, runner, self.sizes)
        self.own_notes: list[str] = []
        """What is only true of this build."""
        self.further: Further = "if needed"
        self.ended_early: str | None = None
        """Why the search ended before all its rounds."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not tried and why, for the report."""
        return (*self.planner.notes, *self.own_notes)

    def run(self, training: bool, further: Further = "if needed") -> None:
        """Run the whole search, or the one that this workspace has finished before; then the comparisons that decide.

        Args:
            training: Whether the task can be trained.
            further: When a finished search goes on, towards this build's limits.
        """
        self.further = further
        with without_old_stages(self.build):
            if training:
                with self.build.clock.stage("trial trainings"):
                    tune_training(self.build, may_try=further != "never")
            self.measure_original(training and further != "never")
            if training:
                self.go_on_if_it_fails(self.search)
            may_add = self.ended_early is None and not self.build.is_stopped
            self.go_on_if_it_fails(lambda: compare_contenders(self.runner, may_add=may_add))
        if count := len(self.runner.spares):
            files = f"{count} larger files were" if count > 1 else "A larger file was"
            self.own_notes.append(
                f"{files} not measured: a smaller one of the same network keeps every limit (--quick)."
            )

    def go_on_if_it_fails(self, part: Callable[[], None]) -> None:
        """Run a part of the search. If it fails, the build ends with the trials that there are.

        Raises:
            TaskError, ConfigError, WorkspaceError, DeviceLostError, StoppedError: see ``as_failed``.
        """
        try:
            run_step("search", part)
        except EdgeoptError as error:
            failed = as_failed(error)
            self.ended_early = f"{failed.stage}: {failed.reason}"
            self.build.progress("failed", self.ended_early)
            _logger.debug("the search ended early: %s\n%s", self.ended_early, failed.trace)

    def measure_original(self, training: bool = False) -> None:
        """Measure the baseline as it was exported, then the original in every allowed precision.

        Before a training its channels are scored, while its files are made.
        """
        runner = self.runner
        with self.build.clock.stage("baseline"):
            variant = runner.make_variant(ORIGINAL, *runner.baseline, (), {})
            if isinstance(variant.made, Failed):
                raise EdgeoptError(f"the baseline failed at {variant.made.stage}: {variant.made.reason}")
            runner.measure(variant)
        self.run_round([ORIGINAL], self.sizes.score_channels if training else nothing)

    def search(self) -> None:
        """Reuse the candidates of finished searches, or find them now and write them down."""
        build = self.build
        key, shared_key = finished_search_key(build), shared_candidates_key(build)
        finished, shared = build.ledger.get(key, FinishedSearch), build.ledger.get(shared_key, SharedCandidates)
        points = [Point(1.0, self.sizes.ships(self.runner.trials[1:]))]
        if finished is not None:
            build.progress("search", f"reusing {len(finished.candidates)} candidates from a finished search")
            points += self.reuse(finished.candidates)
            self.planner.notes += finished.notes
            self.planner.sparsity = finished.sparsity
        elif shared is not None:
            suiting = shared.suiting(build)
            build.progress("search", f"reusing {len(suiting)} candidates from searches for other targets")
            points += self.reuse(suiting)
        if not self.goes_on(finished):
            return
        if (unfinished := self.unfinished()) and build.may_train:
            build.progress("search", "trainings that ended early for a stricter limit on the score go on")
            points += self.sizes.points(self.run_round(unfinished), [1.0] * len(unfinished))
        if finished is not None:
            points += self.under_new_limits(points)
        reuses = finished is None and self.further != "always" and self.sizes.winner is not None
        others = shared if reuses else None  # searches for other targets
        begun = int(others is not None and any(point.good and point.ratio < 1 for point in points))
        if others is not None and (others.answers(points) or begun == build.effort.rounds):
            points += self.under_new_limits(points, below=self.sizes.winning_ratio)
            self.refine(points)
        else:
            self.bisect(points, begun)
        if build.may_train and not self.runner.trials.has_unfinished_trainings:
            candidates, notes = tuple(self.candidates[1:]), tuple(self.planner.notes)
            build.ledger.put(key, FinishedSearch(candidates=candidates, notes=notes, sparsity=self.planner.sparsity))
            shared = (shared or SharedCandidates()).with_those_of(build.profile, candidates, points)
            build.ledger.put(shared_key, shared)

    def reuse(self, candidates: Sequence[Candidate]) -> list[Point]:
        """Make candidates of a finished search, which are trained already, and return what they say about sizes."""
        points: list[Point] = []
        for candidate in candidates:
            if self.build.is_stopped:
                break
            if candidate.parent in self.runner.networks and self.may_make(candidate):
                found = self.sizes.points(self.run_round([candidate]), [1.0])
                points += [point for point in found if point.good or not is_refinement(candidate)]
        return points

    def may_make(self, candidate: Candidate) -> bool:
        """Tell whether a candidate may be made: with ``--no-train`` only if it was trained before."""
        return self.further != "never" or is_trained(self.build, candidate)

    def goes_on(self, finished: FinishedSearch | None) -> bool:
        """Tell whether candidates are trained now, and say why if that is not what one would expect."""
        has_winner = self.sizes.winner is not None
        if self.further == "never" and finished is None and len(self.candidates) == 1:
            self.own_notes.append("Nothing was trained (--no-train), and no search of this workspace has finished.")
        elif self.further == "never" and not has_winner:
            self.own_notes.append("Nothing was trained for these limits; without --no-train the search goes on.")
        elif self.further == "if needed" and finished is not None and not has_winner:
            note = "No trial of the finished search keeps these limits, so it goes on (--no-train only decides)."
            self.own_notes.append(note)
            self.build.progress("search", note)
        is_needed = finished is None or not has_winner or bool(self.unfinished())
        return self.further == "always" or (self.further == "if needed" and is_needed)

    def unfinished(self) -> list[Candidate]:
        """Return the candidates below the winner that a stricter limit ended early, to be trained to their ends."""
        found = [
            trained_to_the_end(candidate)
            for candidate in self.candidates
            if (network := self.runner.network_of(candidate)) is not None
            and self.runner.may_improve(network)
            and network.ratio < self.sizes.winning_ratio
        ]
        return [candidate for candidate in found if not self.is_known(candidate)]

    def under_new_limits(self, points: Sequence[Point], below: float = math.inf) -> list[Point]:
        """Cut networks of known sizes once more: a limit on latency that was not there before asks for other widths.

        Args:
            points: Sizes that were tried.
            below: Only networks smaller than that share of the parameters.
        """
        build, good = self.build, {point.ratio for point in points if point.good and point.ratio < below}
        known = sorted(good & slow_sizes(build, list(self.runner.networks.values()), self.runner.trials))
        at_most = max(build.effort.candidates, build.torch_pool.count) if build.may_train else 0
        plans = self.planner.plans(known[:at_most], points) if known[:at_most] else []
        limit = self.planner.limit
        if limit is None or limit.max_ratio is None or isinstance(limit.table, NoLatencyTable):
            return []
        new = self.new_candidates([one for one in plans if not any(UNREACHED_NOTE in note for note in one[0].notes)])
        results = self.run_round([candidate for candidate, _ in new]) if new else []
        return self.sizes.points(results, [ratio for _, ratio in new])

    def run_round(self, candidates: Sequence[Candidate], meanwhile: Job = nothing) -> list[CandidateTrials]:
        """Make candidates in parallel, and do ``meanwhile``; then measure them; return what came of each, in order."""
        runner = self.runner
        runner.candidates_at_a_time = max(1, min(len(candidates), self.build.torch_pool.count))
        runner.variants_at_a_time = max(1, self.build.torch_pool.cores // max(1, len(candidates)))
        runner.time_left.begin_round()
        with self.build.clock.stage("train and make files"):
            results = in_parallel(self.build, self.make, candidates, meanwhile)
        found = []
        assert self.build.torch_pool.is_idle, "nothing is timed while something trains"
        with self.build.clock.stage("measure"):
            runner.evaluator.measure_side_by_side([sha for result in results for sha in result.files])
            for candidate, result in zip(candidates, results, strict=True):
                self.candidates.append(candidate)
                if result.network is not None:
                    runner.networks[result.network.key] = result.network
                    if is_refinement(candidate):
                        self.sizes.refined.add(result.network.key)
                found.append(CandidateTrials(result.network, *measure_variants(runner, result.variants)))
        runner.time_left.end_round(is_first=candidates[0] is ORIGINAL)
        forget_stages(self.build)
        return found

    def make(self, candidate: Candidate) -> CandidateResult:
        """Make and score a candidate's variants, and what is tried if int8 costs too much of the score."""
        result = self.runner.make(candidate)
        if result.network is None or result.exported is None or self.runner.is_hopeless(result.network):
            return result
        candidate = result.candidate
        maker = VariantMaker(self.runner, candidate, result.network, result.exported)
        variants = [*result.variants, *further_variants(maker, result.variants)]
        try:
            child = training_for_int8(self.build, candidate, result.network, result.exported, variants)
        except EdgeoptError as error:
            failed = Candidate(steps=(), parent=result.network.key).recipe((), self.build.seed)
            return result._replace(variants=[*variants, Variant(failed, as_failed(error), {})])
        if child is not None and self.may_make(self.whole(child)):
            child = self.whole(child)
        if child is None or not self.may_make(child):
            return result._replace(variants=variants)
        label = f"{summary_of(candidate)}, for int8"
        return result._replace(variants=variants + self.runner.make(child, result.network, label).variants)

    def bisect(self, points: list[Point], begun: int = 0) -> None:
        """Run the rounds, then the refinements of the smallest network that keeps the score.

        Args:
            points: The sizes that were tried.
            begun: Rounds that others have done: sizes for another target are a first round for this one too.
        """
        build = self.build
        for index in range(begun, build.effort.rounds):
            if not build.may_train:
                build.progress("search", "the time limit or `edgeopt stop` ended trainings; no further round begins")
                return
            ratios = next_ratios(points, max(build.effort.candidates, build.torch_pool.count))
            plans = self.planner.plans(ratios, points) if ratios else []
            if index == 0:
                plans = self.sizes.within_reach(plans, partial(self.planner.plans, points=points))
                plans += [(student(build, name), 1.0) for name in build.data.task.students]
            new = self.new_candidates(plans)
            if not new:
                break
            sizes, rounds = ", ".join(f"{ratio:.1%}" for _, ratio in new), build.effort.rounds
            build.progress("search", f"round {index + 1} of at most {rounds}, parameters to try: {sizes}")
            self.runner.time_left.to_follow = rounds - index - 1 + self.planner.most_refinements
            results = self.run_round([candidate for candidate, _ in new])
            points += self.sizes.points(results, [ratio for _, ratio in new])
        self.refine(points)

    def new_candidates(self, plans: Sequence[tuple[Candidate, float]]) -> list[tuple[Candidate, float]]:
        """Return the planned candidates that cut something and were not tried before."""
        new: list[tuple[Candidate, float]] = []
        for plan, ratio in plans:
            candidate = self.whole(plan)
            if not self.is_known(candidate, [other for other, _ in new]) and not changes_nothing(candidate):
                new.append((candidate, ratio))
        return new

    def whole(self, candidate: Candidate) -> Candidate:
        """Return a candidate, trained to its end if its training ended early for a limit stricter than today's."""
        return trained_to_the_end(candidate) if self.runner.may_improve(self.runner.stored(candidate)) else candidate

    def is_known(self, candidate: Candidate, others: Sequence[Candidate] = ()) -> bool:
        """Tell whether a candidate was tried before, in this search or in the one that it continues."""
        known = (*self.candidates, *others)
        return any((one.steps, one.parent) == (candidate.steps, candidate.parent) for one in known)

    def refine(self, points: list[Point]) -> None:
        """Try at the smallest size that keeps the score what saves bytes or time there, each after the one before."""
        build, ratio = self.build, smallest_good(points)
        network = None if ratio is None else self.sizes.network(ratio)
        if network is None:
            return
        for index, plan in enumerate(self.planner.refinements):
            if not build.may_train:
                return
            self.runner.time_left.to_follow = max(0, self.planner.most_refinements - index - 1)
            candidates = [one for one in map(self.whole, plan(network)) if not self.is_known(one)]
            if candidates and build.may_train:
                found = self.sizes.points(self.run_round(candidates), [1.0] * len(candidates))
                points += [point for point in found if point.good]  # the others say nothing about their sizes
