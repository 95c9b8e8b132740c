"""What can be made of a network: pruned, sparse and student candidates, each with the training that follows."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from edgeopt.latency.predictor import Predictor
from edgeopt.pipeline.artifacts.networks import StoredNetwork, group_table_of
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.goal import LatencyGoal
from edgeopt.planning.widths import allocate
from edgeopt.records.base import Record
from edgeopt.records.codec import digest
from edgeopt.records.latency import Allocation, LatencyTable, NoLatencyTable
from edgeopt.records.low_rank import Factorization
from edgeopt.records.profile import Precision
from edgeopt.records.recipe import (
    Distill,
    Float16,
    Importance,
    LowRank,
    Prune,
    QuantizeAware,
    QuantizeStep,
    Recipe,
    Sparsify,
    Student,
    TorchStep,
)
from edgeopt.records.sparsity import SparsityCurve
from edgeopt.task import CheckedTask

WARMUP_RATIO = 0.1
LASSO_SHARE = 0.25
"""Of the epochs: where a lasso comes before the cut, what it takes from the training after it."""


class Candidate(Record, frozen=True, kw_only=True):
    """What to make of which network."""

    steps: tuple[TorchStep, ...]
    parent: str | None
    """Key of the network that it starts from; None is the original."""
    notes: tuple[str, ...] = ()
    """How its widths were found, for the report."""


class FinishedSearch(Record, frozen=True, kw_only=True):
    """A search that went through all its rounds: its candidates, in order."""

    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...] = ()
    """What was not tried, and why."""
    sparsity: SparsityCurve | None = None


class SizeTarget(NamedTuple):
    """A size to try, before its widths are decided."""

    ratio: float
    parent: StoredNetwork


def precision_of(recipe: Recipe) -> Precision:
    """Return the precision that a recipe's graph steps lead to."""
    if any(isinstance(step, QuantizeStep) for step in recipe.graph_steps):
        return "int8"
    return "fp16" if any(isinstance(step, Float16) for step in recipe.graph_steps) else "fp32"


def is_original(recipe: Recipe) -> bool:
    """Tell whether a recipe's network has the trained model's own structure and starts from its weights."""
    aware = any(isinstance(step, QuantizeAware) for step in recipe.torch_steps)
    return recipe.parent is None and (aware or not recipe.torch_steps)


def pruned(build: Build, wish: SizeTarget, original: StoredNetwork, goal: LatencyGoal) -> Candidate:
    """Return the candidate with (about) so many of the original's parameters."""
    importance = importance_of(build)
    groups, _ = group_table_of(build, wish.parent, importance)
    target, step = wish.ratio * original.parameters, build.profile.channel_step
    key = digest(("allocation", groups, target, step, goal.table, goal.max_ratio, build.versions))
    found = build.ledger.get("allocation", key, Allocation)
    if found is None:
        predictor = Predictor(goal.table) if isinstance(goal.table, LatencyTable) else None
        found = allocate(groups, step, predictor, max_parameters=target, max_latency_ratio=goal.max_ratio)
        build.ledger.put("allocation", key, found)
    prune = Prune(importance=importance, widths=found.widths)
    return Candidate(steps=cut_steps(build, prune), parent=wish.parent.key, notes=allocation_notes(found, goal.table))


def cut_steps(build: Build, prune: Prune) -> tuple[TorchStep, ...]:
    """Return a cut with its training, of which a quarter comes before, under a lasso, where the task asks for it."""
    assert isinstance(build.data.task, CheckedTask)
    whole, strength = distillation(build), build.data.task.training.group_lasso
    before = round(LASSO_SHARE * whole.epochs)
    if strength <= 0 or not 0 < before < whole.epochs:
        return (prune, whole)
    shrinking = msgspec.structs.replace(whole, epochs=before, group_lasso=strength)
    return (shrinking, prune, msgspec.structs.replace(whole, epochs=whole.epochs - before))


def allocation_notes(found: Allocation, table: LatencyTable | NoLatencyTable) -> tuple[str, ...]:
    """Say how widths were found."""
    if isinstance(table, NoLatencyTable):
        return (f"widths by counted work, there is no latency table: {table.reason}", *found.notes)
    if found.latency_ratio is None or found.gap_ratio is None:
        return found.notes
    return (
        f"widths by measured latency: {found.latency_ratio:.2f} of the original's in {table.precision} is predicted; "
        f"the search for the least importance lost ended within {found.gap_ratio:.1%} of the proven bound",
        *found.notes,
    )


def student(build: Build, name: str) -> Candidate:
    """Return the candidate of one of the task's students, distilled from scratch."""
    return Candidate(steps=(Student(name=name), distillation(build)), parent=None)


def sparse(build: Build, network: StoredNetwork, ratio: float) -> Candidate:
    """Return a network's candidate with a share ``ratio`` of its weights at zero."""
    step = Sparsify(method="magnitude", ratio=ratio, scope="global", schedule="cubic")
    return Candidate(steps=(step, distillation(build)), parent=network.key)


def low_rank(
    build: Build, network: StoredNetwork, layers: dict[str, Factorization], notes: tuple[str, ...]
) -> Candidate:
    """Return a network's candidate with these layers as two."""
    return Candidate(steps=(LowRank(layers=layers), distillation(build)), parent=network.key, notes=notes)


def importance_of(build: Build) -> Importance:
    """Return how the task's channels are scored."""
    assert isinstance(build.data.task, CheckedTask)
    return build.data.task.training.importance


def distillation(build: Build) -> Distill:
    """Return the training that follows every cut."""
    task = build.data.task
    assert isinstance(task, CheckedTask)
    training = task.training
    return Distill(
        epochs=build.effort.epochs,
        optimizer=training.optimizer,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        warmup_ratio=WARMUP_RATIO,
        temperature=training.temperature,
        kl_weight=training.kl_weight,
        mse_weight=training.mse_weight,
        hard_weight=training.hard_weight,
    )


def changes_nothing(candidate: Candidate) -> bool:
    """Tell whether a candidate's cut removes nothing, because every group is at its floor."""
    return any(isinstance(step, Prune) and not step.widths for step in candidate.steps)


def summary_of(candidate: Candidate) -> str:
    """Return a candidate in words, for the progress display."""
    words = []
    for step in candidate.steps:
        match step:
            case Prune(widths=widths):
                words.append(f"pruned to {sum(widths.values())} channels")
            case Student(name=name):
                words.append(f"student {name}")
            case Sparsify(ratio=ratio):
                words.append(f"{ratio:.0%} zeros")
            case LowRank(layers=layers):
                words.append(f"{len(layers)} layers of low rank")
            case QuantizeAware():
                words.append("int8-aware")
            case Distill():
                pass
    return ", ".join(words) or "original"
