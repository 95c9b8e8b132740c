"""The search: the baseline, its quantized and plain forms, then rounds of pruned and distilled candidates.

Candidates of a round are made side by side; when all their files are there, these are measured one by one. Everything
is looked up by its key first, so a build that goes on, or one with other limits, does only what is new.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from edgeopt.errors import DivergedError, EdgeoptError
from edgeopt.pipeline.artifacts.device_parity import device_parity
from edgeopt.pipeline.artifacts.evaluator import Evaluator, timed
from edgeopt.pipeline.artifacts.int8_variants import variant_steps
from edgeopt.pipeline.artifacts.networks import (
    ExportedFile,
    StoredNetwork,
    export_network,
    group_table_of,
    train_network,
)
from edgeopt.pipeline.artifacts.onnx_files import make_artifact
from edgeopt.pipeline.boundary import as_failed
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.forms import Form, Harvest, Made, Result, score_keeps
from edgeopt.pipeline.goal import latency_goal
from edgeopt.pipeline.search.accuracy_recovery import lossy_forms
from edgeopt.pipeline.search.candidate import (
    Candidate,
    FinishedSearch,
    SizeTarget,
    changes_nothing,
    distillation,
    importance_of,
    is_original,
    precision_of,
    pruned,
    student,
    summary_of,
)
from edgeopt.pipeline.search.float_fallbacks import against_float, try_heirs
from edgeopt.pipeline.search.refinements import against_parent, try_variants
from edgeopt.pipeline.torch_process import protocol
from edgeopt.planning.bisection import Point, next_ratios, parent_ratio
from edgeopt.records.budget import Limit
from edgeopt.records.codec import digest
from edgeopt.records.profile import Precision
from edgeopt.records.recipe import GraphStep, Prune, Recipe, Student
from edgeopt.records.sparsity import SparsityCurve
from edgeopt.records.trial import Failed, Measured, Trial
from edgeopt.select.limits import findings, float_counterpart, measured_size

A = TypeVar("A")
B = TypeVar("B")

SMALLEST_FIRST: tuple[Precision, ...] = ("int8", "fp16", "fp32")


@dataclass
class Search:
    """The state of one build's search."""

    build: Build
    original: StoredNetwork
    exported: ExportedFile
    scale: Evaluator
    number: int
    """The build's number in the ledger."""
    trials: list[Trial] = field(default_factory=list)
    networks: dict[str | None, StoredNetwork] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was not tried, and why."""
    sparsity: SparsityCurve | None = None
    smallest: float = math.inf
    """Size of the smallest file so far that keeps every limit."""

    def __post_init__(self) -> None:
        self.networks[None] = self.original

    # -- making ------------------------------------------------------------------------------------------------------

    def recipe(self, candidate: Candidate, steps: tuple[GraphStep, ...]) -> Recipe:
        """Return the recipe of a candidate with these graph steps; none leave it as it was exported."""
        return Recipe(torch_steps=candidate.steps, graph_steps=steps, seed=self.build.seed, parent=candidate.parent)

    def make(self, candidate: Candidate) -> Harvest:
        """Make a candidate's network and its files in every allowed precision, and score them; nothing is timed."""
        build, seconds = self.build, dict[str, float]()
        key = digest(("diverged", build.fingerprint, candidate, build.seed, build.versions))
        diverged = build.ledger.get("diverged", key, Failed)
        if diverged is not None:
            return Harvest(None, [Form(self.recipe(candidate, ()), diverged, seconds)])
        try:
            network = timed(seconds, "train", lambda: self.network(candidate))
            exported = (
                timed(seconds, "export", lambda: export_network(build, network)) if candidate.steps else self.exported
            )
        except EdgeoptError as error:
            failed = as_failed(error)
            if isinstance(error, DivergedError):
                build.ledger.put("diverged", key, failed)
            return Harvest(None, [Form(self.recipe(candidate, ()), failed, seconds)])
        forms: list[Form] = []
        for precision in self.precisions:
            if precision == "fp16" and any(self.keeps_floor(form) for form in forms):
                continue
            recipes = variant_steps(build, exported, precision)
            forms += [self.form(candidate, network, exported, steps, seconds) for steps in recipes]
        forms += lossy_forms(self, candidate, network, exported, forms)
        return Harvest(network, forms)

    def keeps_floor(self, form: Form) -> bool:
        """Tell whether a file keeps the score's floor: float16 is for networks whose int8 form does not."""
        return not isinstance(form.made, Failed) and score_keeps(form.made.score, self.build.budget)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What the profile allows, smallest files first."""
        return tuple(name for name in SMALLEST_FIRST if name in self.build.profile.precisions)

    def form(
        self,
        candidate: Candidate,
        network: StoredNetwork,
        exported: ExportedFile,
        steps: tuple[GraphStep, ...],
        spent: dict[str, float],
        reasons: tuple[str, ...] = (),
    ) -> Form:
        """Make and score one file."""
        recipe, seconds = self.recipe(candidate, steps), dict(spent)
        try:
            artifact = timed(seconds, "graph", lambda: make_artifact(self.build, network, exported, recipe, reasons))
            artifact = msgspec.structs.replace(artifact, notes=(*artifact.notes, *candidate.notes))
            score = timed(seconds, "score", lambda: self.scale.score(artifact.sha256))
        except EdgeoptError as error:
            return Form(recipe, as_failed(error), seconds)
        return Form(recipe, Made(artifact, score), seconds)

    def network(self, candidate: Candidate) -> StoredNetwork:
        """Return a candidate's network, trained now if need be."""
        if not candidate.steps:
            return self.original
        parent = self.networks[candidate.parent]
        pruned = any(isinstance(step, Prune) for step in candidate.steps)
        file = (lambda: group_table_of(self.build, parent, importance_of(self.build))[1]) if pruned else None
        label = summary_of(candidate)

        def report(done: protocol.EpochProgress) -> None:
            self.build.progress("train", f"{label}: epoch {done.epoch + 1} of {done.epochs}, score {done.score:.4f}")

        return train_network(self.build, parent, candidate.steps, file, self.original.parameters, report)

    # -- measuring ---------------------------------------------------------------------------------------------------

    def measure(self, form: Form) -> Trial:
        """Measure a file, compare it with the baseline where it keeps every limit, and write the trial."""
        number = len(self.trials)
        outcome: Measured | Failed
        seconds = dict(form.seconds)
        if isinstance(form.made, Failed):
            outcome = form.made
            self.build.progress("failed", f"trial {number}: {outcome.stage}: {outcome.reason}")
        else:
            try:
                outcome = timed(seconds, "measure", lambda: against_parent(self, form.recipe, self.weigh(number, form)))
            except EdgeoptError as error:
                if number == 0:
                    raise
                outcome = as_failed(error)
        trial = Trial(number=number, recipe=form.recipe, outcome=outcome, seconds=seconds)
        self.trials.append(trial)
        self.build.ledger.add_trial(self.number, trial)
        return trial

    def weigh(self, number: int, form: Form) -> Measured:
        """Return a file's measurement, with the A/B against the baseline where it may become the winner.

        One that cannot be had is tried again when the winner is chosen.
        """
        assert isinstance(form.made, Made)
        artifact, score = form.made
        self.build.progress("measure", f"trial {number}: {artifact.size_bytes / 1e3:.0f} kB, score {score.value:.4f}")
        agrees = device_parity(self.build, artifact.sha256, form.recipe)
        if agrees is not None:
            artifact = msgspec.structs.replace(artifact, parities=(*artifact.parities, agrees))
        measured = Measured(
            artifact=artifact,
            measurement=self.scale.measurement(artifact.sha256),
            score=score,
            against_baseline=None,
            ranking=form.ranking,
        )
        size = measured_size(artifact, self.build.budget)
        if number == 0 or self.missed(measured) or size >= self.smallest:
            return measured
        self.smallest = size
        try:
            return self.compared(measured)
        except EdgeoptError as error:
            self.build.progress("compare", f"trial {number} was not compared: {as_failed(error).reason}")
            return measured

    def compared(self, outcome: Measured) -> Measured:
        """Return a measured file with its A/B against the baseline."""
        self.build.progress("compare", f"{outcome.artifact.size_bytes / 1e3:.0f} kB with the baseline")
        comparison = self.scale.comparison(outcome.artifact.sha256)
        return msgspec.structs.replace(outcome, against_baseline=comparison)

    def uncompared(self, number: int) -> bool:
        """Tell whether a trial still has to be compared with the baseline, or with its float twin.

        On a stand-in the latter would decide nothing.
        """
        trial = self.trials[number]
        assert isinstance(trial.outcome, Measured)
        twin = float_counterpart(trial, self.trials) if self.build.device.kind == "measured" else None
        return trial.outcome.against_baseline is None or (twin is not None and trial.outcome.against_float is None)

    def compare(self, number: int) -> None:
        """Compare a trial with the baseline and its float twin, write it again, and measure what follows from that."""
        trial = self.trials[number]
        assert isinstance(trial.outcome, Measured)
        outcome = trial.outcome if trial.outcome.against_baseline else self.compared(trial.outcome)
        twin = float_counterpart(trial, self.trials) if self.build.device.kind == "measured" else None
        if twin is not None and isinstance(twin.outcome, Measured):
            outcome = against_float(self, number, outcome, twin.outcome.artifact.sha256)
        self.rewrite(trial, outcome)
        try_heirs(self, self.trials[number])

    def rewrite(self, trial: Trial, outcome: Measured) -> Measured:
        """Put an outcome in the place of a trial's, and return it."""
        self.trials[trial.number] = msgspec.structs.replace(trial, outcome=outcome)
        self.build.ledger.add_trial(self.number, self.trials[trial.number])
        return outcome

    def tried(self, recipe: Recipe) -> bool:
        """Tell whether there is a trial of a recipe."""
        return any(trial.recipe == recipe for trial in self.trials)

    def missed(self, measured: Measured) -> set[Limit]:
        """Return the names of the limits that a file misses."""
        return {finding.limit for finding in findings(measured, self.build.budget) if not finding.kept}

    def keeps_score(self, trial: Trial) -> bool:
        """Tell whether a trial keeps the score's floor."""
        return isinstance(trial.outcome, Measured) and score_keeps(trial.outcome.score, self.build.budget)

    # -- rounds ------------------------------------------------------------------------------------------------------

    def run_round(self, candidates: Sequence[Candidate]) -> list[Result]:
        """Make candidates side by side, then measure them; return what came of each, in order."""
        with self.build.clock.stage("train and make files"):
            harvests = self.side_by_side(self.make, candidates)
        results = []
        with self.build.clock.stage("measure"):
            for candidate, harvest in zip(candidates, harvests, strict=True):
                self.candidates.append(candidate)
                if harvest.network is not None:
                    self.networks[harvest.network.key] = harvest.network
                results.append(Result(harvest.network, [self.measure(form) for form in harvest.forms]))
        return results

    def side_by_side(self, function: Callable[[A], B], items: Sequence[A]) -> list[B]:
        """Call ``function`` on each item, as many at once as there are torch workers."""
        with ThreadPoolExecutor(self.build.trainers.count) as pool:
            try:
                return list(pool.map(function, items))
            except BaseException:
                self.build.trainers.close()  # so that no thread waits for a training that nobody wants any more
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def measure_original(self) -> None:
        """Measure the baseline as it was exported, then the original in every allowed precision."""
        nothing = Candidate(steps=(), parent=None)
        with self.build.clock.stage("baseline"):
            form = self.form(nothing, self.original, self.exported, (), {})
            if isinstance(form.made, Failed):
                raise EdgeoptError(f"the baseline failed at {form.made.stage}: {form.made.reason}")
            self.measure(form)
        self.run_round([nothing])

    def run(self, training: bool, more: bool) -> None:
        """Go through the whole search, or through the one that this workspace has finished before.

        Args:
            training: Whether the task can be trained.
            more: Go on from a finished search, towards this build's limits.
        """
        self.measure_original()
        if not training:
            return
        build = self.build
        key = digest(("search", build.fingerprint, build.effort, distillation(build), importance_of(build), build.seed,
                      build.profile.precisions, build.versions, build.profile.channel_step))  # fmt: skip
        known = build.ledger.get("search", key, FinishedSearch)
        points = [Point(1.0, self.ships(self.trials[1:]))]
        if known is not None:
            build.progress("search", f"{len(known.candidates)} candidates of a finished search are taken up")
            for candidate in known.candidates:
                points += self.points(self.run_round([candidate]), [1.0])
            self.notes += known.notes
            self.sparsity = known.sparsity
        if known is not None and not more:
            return
        self.bisect(points)
        if not build.out_of_time:
            build.ledger.put(
                "search",
                key,
                FinishedSearch(candidates=tuple(self.candidates[1:]), notes=tuple(self.notes), sparsity=self.sparsity),
            )

    def bisect(self, points: list[Point]) -> None:
        """Run the rounds, and the students and sparse variants that belong to them."""
        build = self.build
        for index in range(build.effort.rounds):
            if build.out_of_time:
                build.progress("search", "the time limit is reached; no further round begins")
                return
            ratios = next_ratios(points, build.effort.candidates)
            plans = self.plans(ratios, points) if ratios else []
            if index == 0:
                plans += [(student(build, name), 1.0) for name in build.data.task.students]
            new: list[tuple[Candidate, float]] = []
            for candidate, ratio in plans:
                known = (*self.candidates, *(other for other, _ in new))
                again = any((one.steps, one.parent) == (candidate.steps, candidate.parent) for one in known)
                if not again and not changes_nothing(candidate):
                    new.append((candidate, ratio))
            if not new:
                break
            if index == 0:
                self.settle_workers()
            build.progress("search", "parameters to try: " + ", ".join(f"{ratio:.1%}" for _, ratio in new))
            results = self.run_round([candidate for candidate, _ in new])
            points += self.points(results, [ratio for _, ratio in new])
        try_variants(self, min((point.ratio for point in points if point.good), default=None))

    def settle_workers(self) -> None:
        """Find out how many trainings go side by side, unless the user said it."""
        build = self.build
        if build.fixed_workers or build.trainers.count == 1:
            return
        with build.clock.stage("train and make files"):
            gain = build.trainers.settle()
        count = build.trainers.count
        words = f"{count} side by side, {gain:.1f} times the steps of one" if count > 1 else "one at a time is as fast"
        build.progress("workers", words)

    def plans(self, ratios: Sequence[float], points: Sequence[Point]) -> list[tuple[Candidate, float]]:
        """Return the pruned candidates of these ratios; nothing trains while the latency table is measured."""
        precision = self.track or self.precisions[0]
        original = next((trial for trial in self.originals if precision_of(trial.recipe) == precision), None)
        groups, _ = group_table_of(self.build, self.original, importance_of(self.build))
        with self.build.clock.stage("latency table"):
            goal = latency_goal(self.build, groups, self.exported, precision, original)
        wishes = [SizeTarget(ratio, self.parent(ratio, points)) for ratio in ratios]
        found = self.side_by_side(lambda wish: pruned(self.build, wish, self.original, goal), wishes)
        return list(zip(found, ratios, strict=True))

    def points(self, results: Sequence[Result], ratios: Sequence[float]) -> list[Point]:
        """Return what a round says about sizes; a candidate that failed is bad at the ratio it was meant for.

        A student that is not good says nothing about pruned networks of its size.
        """
        points = [
            Point(asked if result.network is None else result.network.ratio, self.ships(result.trials))
            for result, asked in zip(results, ratios, strict=True)
        ]
        return [
            point
            for point, result in zip(points, results, strict=True)
            if point.good or not any(isinstance(step, Student) for step in result.trials[0].recipe.torch_steps)
        ]

    def ships(self, trials: Sequence[Trial]) -> bool:
        """Tell whether the form that would ship (the smallest that the original kept the score in) keeps the score."""
        return any(precision_of(trial.recipe) == self.track and self.keeps_score(trial) for trial in trials)

    @property
    def originals(self) -> list[Trial]:
        """Trials of the original in the profile's precisions, also where it was trained for int8."""
        return [trial for trial in self.trials[1:] if is_original(trial.recipe)]

    @property
    def track(self) -> Precision | None:
        """The precision that would ship: that of the smallest files in which the original keeps the score."""
        kept = {precision_of(trial.recipe) for trial in self.originals if self.keeps_score(trial)}
        return next((name for name in self.precisions if name in kept), None)

    def parent(self, ratio: float, points: Sequence[Point]) -> StoredNetwork:
        """Return the network that a candidate of that ratio starts from: the nearest larger good one."""
        wanted = parent_ratio(points, ratio)
        return next(network for network in self.networks.values() if network.ratio == wanted)
