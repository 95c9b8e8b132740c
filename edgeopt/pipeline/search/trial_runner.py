"""``TrialRunner``: from a candidate to its network, its variants and their trials.

Making (``make``) may run in several threads at once; measuring (``measure``, ``compare``) runs alone.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgeopt.errors import DivergedError, EdgeoptError
from edgeopt.pipeline.artifacts.comparisons import (
    measured_counterpart,
    needs_comparison,
    with_baseline,
    with_float_counterpart,
    with_parent,
)
from edgeopt.pipeline.artifacts.device_parity import device_parity
from edgeopt.pipeline.artifacts.evaluator import Evaluator, timed
from edgeopt.pipeline.artifacts.int8_variants import fake_quant_files, fake_quant_paths, quantize_step, variant_steps
from edgeopt.pipeline.artifacts.large_models import files_at_a_time
from edgeopt.pipeline.artifacts.networks import (
    ExportedFile,
    ExportedNetwork,
    StoredNetwork,
    export_network,
    group_table_of,
)
from edgeopt.pipeline.artifacts.onnx_files import graph_steps, int8_steps, make_artifact
from edgeopt.pipeline.artifacts.trained_networks import train_network
from edgeopt.pipeline.boundary import as_failed
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.search.candidate import (
    Candidate,
    CandidateResult,
    ScoredArtifact,
    Variant,
    as_trained,
    importance_of,
    summary_of,
)
from edgeopt.pipeline.search.time_left import TimeLeft
from edgeopt.pipeline.search.variants.unseen_rows import UnseenRowSteps
from edgeopt.pipeline.torch_process import protocol
from edgeopt.records.budget import Limit
from edgeopt.records.profile import Precision
from edgeopt.records.recipe import GraphStep, Prune, QuantizeAware, Recipe
from edgeopt.records.scoring import ScoreFloor
from edgeopt.records.trial import Failed, Measured, Trial
from edgeopt.report import words
from edgeopt.select.decision import contenders
from edgeopt.select.limits import judge_limits, measured_size, score_floor
from edgeopt.store.trial_list import TrialList

_SAME_FLOOR = 0.1
"""Of the allowed drop: floors that differ by less, as those of two processors, are the same."""
SMALLEST_FIRST: tuple[Precision, ...] = ("int8", "fp16", "fp32")


class VariantMaker(NamedTuple):
    """What makes further files of a candidate."""

    runner: TrialRunner
    candidate: Candidate
    network: StoredNetwork
    exported: ExportedFile
    """The network's float file."""

    @property
    def build(self) -> Build:
        """The build."""
        return self.runner.build

    def make(self, steps: tuple[GraphStep, ...], reasons: tuple[str, ...] = ()) -> Variant:
        """Make and score one file; see ``TrialRunner.make_variant``."""
        return self.runner.make_variant(self.candidate, self.network, self.exported, steps, {}, reasons)


class TrialRunner:
    """Makes, scores, measures and compares the variants of candidates, and writes each trial to the ledger.

    Args:
        build: The build.
        original: The trained model's network, with parallel branches merged.
        exported: Its file.
        evaluator: Measures and scores files.
        build_number: The build's number in the ledger.
        baseline: The trained model's network as it was trained, and its file.
    """

    def __init__(
        self,
        build: Build,
        original: StoredNetwork,
        exported: ExportedFile,
        evaluator: Evaluator,
        build_number: int,
        baseline: ExportedNetwork,
    ) -> None:
        self.build = build
        self.original = original
        self.exported = exported
        self.baseline = baseline
        self.evaluator = evaluator
        self.unseen_rows = UnseenRowSteps(build)
        self.trials = TrialList(build.ledger, build_number)
        self.networks: dict[str | None, StoredNetwork] = {None: original}
        """Networks of measured candidates, by key."""
        self.best: int | None = None
        """The trial that would win if the search ended now."""
        self.time_left = TimeLeft(build)
        self.candidates_at_a_time = 1
        self.spares: list[Variant] = []
        """Files that were made and not measured, because a smaller one of their network is better."""
        self.variants_at_a_time = 1
        """How many files of a candidate are made in parallel if memory allows: worth it if few candidates are."""

    # -- making ------------------------------------------------------------------------------------------------------

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions that the target allows, those of the smallest files first."""
        return tuple(name for name in SMALLEST_FIRST if name in self.build.profile.precisions)

    def make(
        self, candidate: Candidate, parent: StoredNetwork | None = None, label: str | None = None
    ) -> CandidateResult:
        """Make a candidate's network and its files in every allowed precision, and score them; nothing is measured.

        Args:
            candidate: The candidate.
            parent: The network it starts from; looked up by its key if it is not given.
            label: What progress calls it.
        """
        build, seconds = self.build, dict[str, float]()
        diverged = build.keys.of("diverged-training", torch_steps=candidate.steps, parent=candidate.parent)
        if (failed := build.ledger.get(diverged, Failed)) is not None:
            return self._without_network(candidate, failed, seconds)
        try:
            network = timed(seconds, "train", lambda: self._network(candidate, parent, label or summary_of(candidate)))
            candidate, exported = as_trained(candidate, network), self.exported
            if candidate.steps:
                exported = timed(seconds, "export", lambda: export_network(build, network))
        except EdgeoptError as error:
            failed = as_failed(error)
            if isinstance(error, DivergedError):
                build.ledger.put(diverged, failed)
            return self._without_network(candidate, failed, seconds)
        variants: list[Variant] = []
        hopeless = self.is_hopeless(network)
        at_a_time = files_at_a_time(build, exported, self.variants_at_a_time, self.candidates_at_a_time)
        for precision, all_steps in self._steps(candidate, exported):
            if precision == "fp16" and any(variant.keeps_score(build.budget) for variant in variants):
                continue  # float16 is for networks whose int8 variant loses too much
            has_file = any(isinstance(variant.made, ScoredArtifact) for variant in variants)
            if has_file and (hopeless or (candidate.steps and build.is_out_of_time)):
                break  # of a hopeless one, a file shows how far it is from the limit
            wanted = itertools.islice(all_steps, 1) if hopeless else all_steps
            with ThreadPoolExecutor(at_a_time) as pool:
                variants += pool.map(
                    lambda steps: self.make_variant(candidate, network, exported, steps, seconds), wanted
                )
        variants += self.without_unseen_rows(candidate, network, exported, variants)
        return CandidateResult(candidate, network, exported, variants)

    @property
    def floor(self) -> ScoreFloor | None:
        """The score that a network must have; None if nothing limits it, or before the baseline is measured."""
        baseline = self.trials[0].outcome if self.trials else None
        return score_floor(baseline.score, self.build.budget) if isinstance(baseline, Measured) else None

    def is_hopeless(self, network: StoredNetwork) -> bool:
        """Tell whether a trained network is so far below the floor that no file of it can keep the limit."""
        floor = self.floor
        if floor is None or network.torch_score is None or not floor.is_missed_by(network.torch_score):
            return False
        return network.stopped_for is not None or abs(network.torch_score - floor.value) > floor.max_drop

    def network_of(self, candidate: Candidate) -> StoredNetwork | None:
        """Return the network of a candidate that was measured."""
        return self.networks.get(self.build.keys.network(candidate.steps, candidate.parent))

    def stored(self, candidate: Candidate) -> StoredNetwork | None:
        """Return the network of a candidate that was trained before, measured or not."""
        key = self.build.keys.of("network", torch_steps=candidate.steps, parent=candidate.parent)
        return self.build.ledger.get(key, StoredNetwork)

    def may_improve(self, network: StoredNetwork | None) -> bool:
        """Tell whether a network's training was cut off, or ended early for a floor clearly stricter than today's."""
        if network is not None and network.ended_after is not None:
            return True
        stopped, floor = network.stopped_for if network is not None else None, self.floor
        if stopped is None or floor is None:
            return stopped is not None
        return stopped.is_missed_by(floor.value) and abs(stopped.value - floor.value) > _SAME_FLOOR * stopped.max_drop

    def without_unseen_rows(
        self, candidate: Candidate, network: StoredNetwork, exported: ExportedFile, variants: Sequence[Variant]
    ) -> list[Variant]:
        """Return those of a network's variants that keep the score once more, without rows that no sample reads."""
        keeping = {one.recipe.graph_steps: one for one in variants if one.keeps_score(self.build.budget)}
        made = self.unseen_rows.without_unseen_rows(exported, keeping)
        return [self.make_variant(candidate, network, exported, steps, {}) for steps in made]

    def _without_network(self, candidate: Candidate, failed: Failed, seconds: dict[str, float]) -> CandidateResult:
        return CandidateResult(candidate, None, None, [Variant(candidate.recipe((), self.build.seed), failed, seconds)])

    def _steps(
        self, candidate: Candidate, exported: ExportedFile
    ) -> Iterator[tuple[Precision, Iterator[tuple[GraphStep, ...]]]]:
        """Yield the graph steps of each variant, by precision; one trained for int8 has the ranges of its training."""
        aware = next((step for step in candidate.steps if isinstance(step, QuantizeAware)), None)
        for precision in self.precisions:
            if aware is None:
                yield precision, variant_steps(self.build, exported, precision)
            elif precision == "int8":
                trained = msgspec.structs.replace(quantize_step(aware), calibration="trained")
                yield precision, iter([int8_steps(trained, self.build.profile)])
            elif precision == "fp32":
                yield precision, iter([graph_steps(precision, self.build.profile)])

    def make_variant(
        self,
        candidate: Candidate,
        network: StoredNetwork,
        exported: ExportedFile,
        steps: tuple[GraphStep, ...],
        spent: dict[str, float],
        reasons: tuple[str, ...] = (),
    ) -> Variant:
        """Make and score one file.

        Args:
            candidate: The candidate.
            network: Its network.
            exported: Its exported file.
            steps: The graph steps; none leave the file as it was exported.
            spent: Seconds by stage that were spent on the network already.
            reasons: Why these steps were chosen.

        Raises:
            TaskError: the user's ``score`` failed.
            StoppedError: the build is stopping.
        """
        recipe, seconds = candidate.recipe(steps, self.build.seed), dict(spent)
        self.build.torch_pool.check_open()
        try:
            artifact = timed(seconds, "graph", lambda: make_artifact(self.build, network, exported, recipe, reasons))
            notes = dict.fromkeys((*artifact.notes, *candidate.notes, *network.notes))
            artifact = msgspec.structs.replace(artifact, notes=tuple(notes))
            score = timed(seconds, "score", lambda: self.evaluator.score(artifact.sha256))
        except EdgeoptError as error:
            return Variant(recipe, as_failed(error), seconds)
        return Variant(recipe, ScoredArtifact(artifact, score), seconds)

    def _network(self, candidate: Candidate, parent: StoredNetwork | None, label: str) -> StoredNetwork:
        """Return a candidate's network, trained now if necessary."""
        if not candidate.steps:
            return self.original
        build, start = self.build, parent or self.networks[candidate.parent]
        aware = next((step for step in candidate.steps if isinstance(step, QuantizeAware)), None)

        def table_file() -> Path:
            return group_table_of(build, start, importance_of(build))[1]

        def quantized_parent() -> tuple[Path, Path]:
            assert aware is not None
            return fake_quant_files(build, export_network(build, start), quantize_step(aware))

        first: list[tuple[float, int]] = []

        def report(done: protocol.EpochProgress) -> None:
            first[:] = [one for one in first if one[1] < done.epoch]  # the second of two trainings begins anew
            first.append((time.monotonic(), done.epoch))
            seconds, epochs = first[-1][0] - first[0][0], done.epoch - first[0][1]
            left = seconds / epochs * (done.epochs - 1 - done.epoch) if epochs else 0.0
            tail = f", about {words.duration(left)} left" if left else ""
            build.progress("train", f"{label}: epoch {done.epoch + 1} of {done.epochs}, score {done.score:.4f}{tail}")
            self.time_left.note_epoch(label, done.epoch, done.epochs)

        network = train_network(
            build,
            start,
            candidate.steps,
            table_file if any(isinstance(step, Prune) for step in candidate.steps) else None,
            self.original.parameters,
            report,
            quantized_parent if aware is not None else None,
            self.floor,
        )
        if aware is not None:
            _, values = fake_quant_paths(build, export_network(build, start), quantize_step(aware))
            values.unlink(missing_ok=True)
        return network

    # -- measuring ---------------------------------------------------------------------------------------------------

    def measure(self, variant: Variant) -> Trial:
        """Measure a variant, compare it with the baseline if it keeps every limit, and write the trial."""
        number = self.trials.number_for(variant.recipe)
        outcome: Measured | Failed
        seconds = dict(variant.seconds)
        if isinstance(variant.made, Failed):
            outcome = variant.made
            self.build.progress(outcome.how, f"trial {number}: {outcome.stage}: {outcome.reason}")
        else:
            try:
                outcome = timed(seconds, "measure", lambda: self._measured(number, variant))
            except EdgeoptError as error:
                if number == 0:
                    raise
                outcome = as_failed(error)
        trial = Trial(number=number, recipe=variant.recipe, outcome=outcome, seconds=seconds)
        self.trials.write(trial)
        self._show_best()
        return trial

    def _show_best(self) -> None:
        """Say which trial is the best so far, if that has changed."""
        on_target = self.build.device_info.kind == "measured"
        best, *_ = (*contenders(tuple(self.trials), self.build.budget, proven_on_target=on_target), 0)
        outcome = self.trials.by_number(best).outcome
        if best not in (0, self.best) and isinstance(outcome, Measured):
            self.best = best
            size = words.size(measured_size(outcome.artifact, self.build.budget))
            self.build.progress("best so far", f"trial {best}, {size}, score {outcome.score.value:.4f}")

    def _measured(self, number: int, variant: Variant) -> Measured:
        """Return a variant's measurement, with its A/B against the network that it was made of, if there is one.

        Only trials that may win are compared with the baseline, once all are measured: most are not the smallest then.
        """
        assert isinstance(variant.made, ScoredArtifact)
        artifact, score = variant.made
        self.build.progress("measure", f"trial {number}: {artifact.size_bytes / 1e3:.0f} kB, score {score.value:.4f}")
        parity = device_parity(self.build, artifact.sha256, variant.recipe, artifact.weight_types, artifact.parities)
        if parity is not None:
            artifact = msgspec.structs.replace(artifact, parities=(*artifact.parities, parity))
        outcome = Measured(
            artifact=artifact,
            measurement=self.evaluator.measurement(artifact.sha256),
            score=score,
            against_baseline=None,
            ranking=variant.ranking,
        )
        return with_parent(self.evaluator, variant.recipe, outcome, self.trials)

    def needs_comparison(self, number: int) -> bool:
        """Tell whether a trial still has to be compared with the baseline or with its float counterpart."""
        return needs_comparison(self.build, self.trials.by_number(number), self.trials)

    def compare(self, number: int) -> Trial:
        """Compare a trial with the baseline and with its float counterpart, and write it again."""
        trial = self.trials.by_number(number)
        assert isinstance(trial.outcome, Measured)
        outcome = trial.outcome
        if outcome.against_baseline is None:
            outcome = with_baseline(self.evaluator, outcome)
            trial = self.rewrite(trial, outcome)
        counterpart = measured_counterpart(self.build, trial, self.trials)
        if counterpart is not None:
            trial = self.rewrite(trial, with_float_counterpart(self.evaluator, number, outcome, counterpart))
        return trial

    def rewrite(self, trial: Trial, outcome: Measured) -> Trial:
        """Replace a trial's outcome, and return the trial."""
        changed = msgspec.structs.replace(trial, outcome=outcome)
        self.trials.write(changed)
        return changed

    def add_note(self, number: int, note: str) -> None:
        """Add a note to a measured trial, and show it."""
        trial = self.trials.by_number(number)
        assert isinstance(trial.outcome, Measured)
        artifact = trial.outcome.artifact
        artifact = msgspec.structs.replace(artifact, notes=(*artifact.notes, note))
        self.rewrite(trial, msgspec.structs.replace(trial.outcome, artifact=artifact))
        self.build.progress("failed", f"trial {number}: {note}")

    def has_tried(self, recipe: Recipe) -> bool:
        """Tell whether there is a trial of a recipe."""
        return any(trial.recipe == recipe for trial in self.trials)

    def missed_limits(self, outcome: Measured) -> set[Limit]:
        """Return the limits that a measured file misses."""
        return {finding.limit for finding in judge_limits(outcome, self.build.budget) if not finding.kept}
