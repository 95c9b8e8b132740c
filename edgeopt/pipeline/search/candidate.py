"""What the search passes around: candidates, the variants that are made of them, and what came of both.

Also here: the candidates that single rules make (pruned, sparse, low-rank, student, at a lower resolution), each with
the training after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from edgeopt.latency.predictor import Predictor
from edgeopt.pipeline.artifacts.latency_table import LatencyLimit
from edgeopt.pipeline.artifacts.networks import ExportedFile, StoredNetwork, group_table_of
from edgeopt.pipeline.artifacts.onnx_files import can_unpack
from edgeopt.pipeline.artifacts.trained_networks import cut_off
from edgeopt.pipeline.context import Build
from edgeopt.planning.bisection import Point, largest_bad, smallest_good
from edgeopt.planning.width_rules import least_widths, notes_without_effect, protected_branches
from edgeopt.planning.widths import allocate, groups_left_out
from edgeopt.records.base import Record
from edgeopt.records.budget import Budget
from edgeopt.records.groups import GroupTable
from edgeopt.records.latency import Allocation, LatencyTable, NoLatencyTable
from edgeopt.records.low_rank import Factorization
from edgeopt.records.profile import Profile
from edgeopt.records.quantization import NodeNoise
from edgeopt.records.recipe import (
    Distill,
    GraphStep,
    Importance,
    LowerResolution,
    LowRank,
    Prune,
    QuantizeAware,
    Recipe,
    RefinementStep,
    Sparsify,
    Student,
    TorchStep,
)
from edgeopt.records.sparsity import SparsityCurve
from edgeopt.records.trial import Artifact, Failed, Measured, Score, Trial
from edgeopt.report import words
from edgeopt.select.limits import judge_limits, judge_score_limits
from edgeopt.store.keys import Key
from edgeopt.task import Training

WARMUP_RATIO = 0.1
LASSO_EPOCHS_RATIO = 0.25
"""Of the epochs: if a lasso comes before the cut, what it takes from the training after it."""
_MAX_FITTED_SAMPLES = 2048
_MAX_FITTING_MACS = 1e12
"""Of the samples on which a cut network is fitted: about half a minute of one core."""


class Candidate(Record, frozen=True, kw_only=True):
    """A network to make: the steps, and the network they start from."""

    steps: tuple[TorchStep, ...]
    parent: str | None
    """Key of the network that it starts from; None is the original."""
    notes: tuple[str, ...] = ()
    """How its widths were found, for the report."""
    is_plain_cut: bool = False
    """Whether it is a uniform cut at the size of another candidate, which says nothing about that size."""

    def recipe(self, graph_steps: tuple[GraphStep, ...], seed: int) -> Recipe:
        """Return the recipe of one of its variants; without graph steps the file stays as it was exported."""
        return Recipe(torch_steps=self.steps, graph_steps=graph_steps, seed=seed, parent=self.parent)


ORIGINAL = Candidate(steps=(), parent=None)
"""The trained model itself."""


class FinishedSearch(Record, frozen=True, kw_only=True):
    """A search that completed all its rounds: its candidates, in order."""

    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...] = ()
    """What was not tried, and why."""
    sparsity: SparsityCurve | None = None


class SharedCandidates(Record, frozen=True, kw_only=True):
    """The candidates of all finished searches for a task, whatever the target; each after the one it starts from."""

    candidates: tuple[Candidate, ...] = ()
    channel_steps: tuple[int, ...] = ()
    """Of the target that each was made for."""
    points: tuple[Point, ...] = ()
    """The sizes that these searches have tried, and whether they keep the score."""

    def with_those_of(self, profile: Profile, found: Sequence[Candidate], points: Sequence[Point]) -> SharedCandidates:
        """Return these and the candidates of one more search; what notes say of widths is about its target."""
        known = [(one.steps, one.parent) for one in self.candidates]
        note = f"its widths were chosen for the target {profile.name}"
        new = tuple(
            msgspec.structs.replace(one, notes=(note,)) if one.notes and not is_refinement(one) else one
            for one in found
            if (one.steps, one.parent) not in known
        )
        return SharedCandidates(
            candidates=(*self.candidates, *new),
            channel_steps=(*self.channel_steps, *(profile.channel_step for _ in new)),
            points=tuple(dict.fromkeys((*self.points, *points))),
        )

    def suiting(self, build: Build) -> list[Candidate]:
        """Return those that are candidates for a build's target too."""
        pairs = zip(self.candidates, self.channel_steps, strict=True)
        return [candidate for candidate, channel_step in pairs if suits(build, candidate, channel_step)]

    def answers(self, points: Sequence[Point]) -> bool:
        """Tell whether the sizes between which the answer lies are as good for another target: then it is found.

        Args:
            points: All that is known for that target.
        """
        ends = (smallest_good(self.points), largest_bad(self.points))
        tried = {point.ratio for point in points}
        pruned = [point for point in points if point.ratio < 1]
        return (
            bool(pruned)
            and all(point in self.points for point in pruned)
            and all(end is None or end in tried for end in ends)
        )


def finished_search_key(build: Build) -> Key:
    """Return the key of a finished search."""
    profile = build.profile
    return build.keys.of(
        "finished-search", **_training_facts(build), precisions=profile.precisions, channel_step=profile.channel_step,
        target=profile.name, device=build.device_info.uri, size_metric=build.budget.size_metric,
        **({} if profile.operators == "runtime" else {"operators": profile.operators}),
        **({"prefer": "latency"} if build.budget.prefer == "latency" else {}),
    )  # fmt: skip


def shared_candidates_key(build: Build) -> Key:
    """Return the key of the candidates that searches for every target share."""
    return build.keys.of("finished-search", **_training_facts(build), of="all targets")


def _training_facts(build: Build) -> dict[str, object]:
    return {
        "effort": build.effort,
        "distillation": distillation(build),
        "importance": importance_of(build),
        "width_rules": build.width_rules,
    }


def suits(build: Build, candidate: Candidate, channel_step: int) -> bool:
    """Tell whether a candidate is one for this target too.

    Args:
        build: For this target.
        candidate: Made for another target.
        channel_step: Of that one; groups of heads, say, may have widths that are no multiples of it.
    """
    profile = build.profile
    for step in candidate.steps:
        if isinstance(step, QuantizeAware):
            fits = "int8" in profile.precisions and step.activations == profile.activation_type
            fits = fits and (step.weight_bits is None or can_unpack(profile))
        elif isinstance(step, Sparsify):
            fits = build.budget.size_metric == "download"
        else:
            widths = step.widths.values() if isinstance(step, Prune) else ()
            fits = channel_step % profile.channel_step == 0 or all(one % profile.channel_step == 0 for one in widths)
        if not fits:
            return False
    return True


class SizeTarget(NamedTuple):
    """A size to try, before its widths are chosen."""

    ratio: float
    """Parameters over the original's."""
    parent: StoredNetwork


class ScoredArtifact(NamedTuple):
    """A file that was made and scored, but not measured yet."""

    artifact: Artifact
    score: Score


class Variant(NamedTuple):
    """A candidate in one precision or form: its file, or why there is none."""

    recipe: Recipe
    made: ScoredArtifact | Failed
    seconds: dict[str, float]
    ranking: tuple[NodeNoise, ...] = ()
    """The ranking from which a mixed-precision variant's float nodes were taken."""

    def keeps_score(self, budget: Budget) -> bool:
        """Tell whether its file keeps the budget's score limit."""
        return not isinstance(self.made, Failed) and keeps_score(self.made.score, budget)


class CandidateResult(NamedTuple):
    """A candidate's network and variants; no network and no file if the training or the export failed."""

    candidate: Candidate
    """As it was made: if its training was cut off, the steps say so."""
    network: StoredNetwork | None
    exported: ExportedFile | None
    variants: list[Variant]

    @property
    def files(self) -> list[str]:
        """The SHA-256 of each file that was made."""
        return [one.made.artifact.sha256 for one in self.variants if isinstance(one.made, ScoredArtifact)]


class CandidateTrials(NamedTuple):
    """A candidate's network and trials."""

    network: StoredNetwork | None
    trials: list[Trial]
    spares: Sequence[Variant] = ()  # were not measured


def keeps_score(score: Score, budget: Budget) -> bool:
    """Tell whether a score keeps the budget's limit."""
    return all(finding.kept for finding in judge_score_limits(score, budget))


def pruned(build: Build, size: SizeTarget, original: StoredNetwork, limit: LatencyLimit) -> Candidate:
    """Return the candidate with about that share of the original's parameters."""
    importance = importance_of(build)
    groups, _ = group_table_of(build, size.parent, importance)
    target, step = size.ratio * original.parameters, build.profile.channel_step
    least = least_widths(groups, build.width_rules)
    predictor = Predictor(limit.table) if isinstance(limit.table, LatencyTable) else None
    protected = protected_branches(groups, build.width_rules)
    left_out = groups_left_out(group_table_of(build, original, importance)[0], groups)
    found = build.ledger.remember(
        build.keys.of(
            "allocation", groups=groups, target=target, step=step, table=limit.table, limit=limit.max_ratio,
            least=least, protected=sorted(protected), left_out=None if left_out is None else sorted(left_out),
        ),
        Allocation,
        lambda: allocate(
            groups, step, predictor, max_parameters=target, max_latency_ratio=limit.max_ratio,
            least=least, left_out=left_out, protected=protected,
        ),
    )  # fmt: skip
    prune = Prune(importance=importance, widths=found.widths, fitted_samples=samples_to_fit(groups))
    notes = (*allocation_notes(found, limit.table), *notes_without_effect(groups, build.width_rules))
    return Candidate(steps=cut_steps(build, prune), parent=size.parent.key, notes=notes)


def samples_to_fit(groups: GroupTable) -> int:
    """Return on how many samples the layers of a network are fitted after a cut."""
    return max(1, min(_MAX_FITTED_SAMPLES, int(_MAX_FITTING_MACS / max(1, groups.macs({})))))


def cut_steps(build: Build, prune: Prune) -> tuple[TorchStep, ...]:
    """Return a cut and its training; if the task asks for a lasso, a quarter of the training comes before the cut."""
    whole, strength = distillation(build), training_of(build).group_lasso
    before = round(LASSO_EPOCHS_RATIO * whole.epochs)
    if strength <= 0 or not 0 < before < whole.epochs:
        return (prune, whole)
    steps_before = round(LASSO_EPOCHS_RATIO * whole.min_steps)
    shrinking = msgspec.structs.replace(whole, epochs=before, min_steps=steps_before, group_lasso=strength)
    rest = msgspec.structs.replace(whole, epochs=whole.epochs - before, min_steps=whole.min_steps - steps_before)
    return (shrinking, prune, rest)


def allocation_notes(found: Allocation, table: LatencyTable | NoLatencyTable) -> tuple[str, ...]:
    """Say how widths were found."""
    if isinstance(table, NoLatencyTable):
        return (f"widths chosen by counted work, because there is no latency table: {table.reason}", *found.notes)
    if found.latency_ratio is None or found.gap_ratio is None:
        return found.notes
    return (
        f"widths chosen by measured latency: predicted to take {found.latency_ratio:.2f} of the original's time in "
        f"{table.precision}; the importance lost is within {found.gap_ratio:.1%} of the proven minimum",
        *found.notes,
    )


def student(build: Build, name: str) -> Candidate:
    """Return the candidate of one of the task's students, distilled from scratch."""
    return Candidate(steps=(Student(name=name), distillation(build)), parent=None)


def sparse(build: Build, network: StoredNetwork, ratio: float) -> Candidate:
    """Return a network's candidate with a share ``ratio`` of its weights at zero."""
    zeros = Sparsify(method="magnitude", ratio=ratio, scope="global", schedule="cubic")
    return Candidate(steps=(zeros, distillation(build)), parent=network.key)


def factorized(
    build: Build, network: StoredNetwork, layers: dict[str, Factorization], notes: tuple[str, ...]
) -> Candidate:
    """Return a network's candidate with these layers factorized."""
    return Candidate(steps=(LowRank(layers=layers), distillation(build)), parent=network.key, notes=notes)


def at_lower_resolution(build: Build, network: StoredNetwork, size: tuple[int, int]) -> Candidate:
    """Return a network's candidate whose image is shrunk to a height and a width."""
    step = LowerResolution(height=size[0], width=size[1])
    return Candidate(steps=(step, distillation(build)), parent=network.key)


def importance_of(build: Build) -> Importance:
    """Return how the task's channels are scored."""
    return training_of(build).importance


def training_of(build: Build) -> Training:
    """Return how the task's candidates are trained, which is called only if they are."""
    training = build.data.task.training
    assert training is not None
    return training


def distillation(build: Build) -> Distill:
    """Return the training that follows every cut."""
    training = training_of(build)
    return Distill(
        epochs=build.effort.epochs,
        optimizer=training.optimizer,
        learning_rate=training.learning_rate,
        find_rate=training.find_rate,
        weight_decay=training.weight_decay,
        warmup_ratio=WARMUP_RATIO,
        temperature=training.temperature,
        kl_weight=training.kl_weight,
        mse_weight=training.mse_weight,
        hard_weight=training.hard_weight,
        min_steps=build.effort.min_steps,
        ema=training.ema,
        precision=None if training.precision == "auto" else training.precision,
    )


def trained_to_the_end(candidate: Candidate) -> Candidate:
    """Return a candidate whose training does not end early."""
    steps = (
        msgspec.structs.replace(step, may_stop=False) if isinstance(step, Distill) else step for step in candidate.steps
    )
    return msgspec.structs.replace(candidate, steps=tuple(steps))


def as_trained(candidate: Candidate, network: StoredNetwork) -> Candidate:
    """Return the candidate that a network really is: if its training was cut off, the steps say so."""
    if network.ended_after is None:
        return candidate
    return msgspec.structs.replace(candidate, steps=cut_off(candidate.steps, network.ended_after))


def is_refinement(candidate: Candidate) -> bool:
    """Tell whether a candidate was tried on a network that keeps the score: if it does not, that size still does."""
    return candidate.is_plain_cut or any(isinstance(one, RefinementStep | QuantizeAware) for one in candidate.steps)


def is_trained(build: Build, candidate: Candidate) -> bool:
    """Tell whether a candidate's network was made before."""
    key = build.keys.of("network", torch_steps=candidate.steps, parent=candidate.parent)
    return not candidate.steps or build.ledger.get(key, StoredNetwork) is not None


def is_student(recipe: Recipe) -> bool:
    """Tell whether a recipe makes one of the task's students."""
    return any(isinstance(step, Student) for step in recipe.torch_steps)


def slow_sizes(build: Build, networks: Sequence[StoredNetwork], trials: Sequence[Trial]) -> set[float]:
    """Return the shares of the parameters of trained networks that no file of keeps the limit on latency."""
    quick = {
        build.keys.network(trial.recipe.torch_steps, trial.recipe.parent)
        for trial in trials
        if trial.recipe.torch_steps
        and isinstance(trial.outcome, Measured)
        and all(finding.kept for finding in judge_limits(trial.outcome, build.budget) if finding.limit == "latency")
    }
    return {network.ratio for network in networks if network.key is not None and network.key not in quick}


def changes_nothing(candidate: Candidate) -> bool:
    """Tell whether a candidate's cut removes nothing, because every group is at its minimum width."""
    return any(isinstance(step, Prune) and not step.widths for step in candidate.steps)


def summary_of(candidate: Candidate) -> str:
    """Return a candidate in words, for the progress display."""
    steps = [step for step in candidate.steps if not isinstance(step, Distill)]
    return words.steps_text(steps, None) or "original"
