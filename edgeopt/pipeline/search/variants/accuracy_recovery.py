"""What is tried if int8 costs too much of the score: first some nodes in float, then training that rounds like int8.

Both apply to a candidate whose float variant keeps the score limit while plain int8 does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgeopt.errors import EdgeoptError
from edgeopt.pipeline.artifacts.int8_variants import MixedPrecision, fewest_float_nodes, sensitivity_study
from edgeopt.pipeline.artifacts.large_models import is_pair
from edgeopt.pipeline.artifacts.networks import ExportedFile, StoredNetwork
from edgeopt.pipeline.artifacts.onnx_files import can_unpack, static_int8, storing_the_rest
from edgeopt.pipeline.boundary import as_failed
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.search.candidate import (
    Candidate,
    ScoredArtifact,
    Variant,
    distillation,
    keeps_score,
    summary_of,
)
from edgeopt.pipeline.search.trial_runner import VariantMaker
from edgeopt.pipeline.search.variants.weight_bits import (
    ROUNDED_OPERATORS,
    fewer_weight_bits,
    holds_many_weights,
    stored_in_fewer_bits,
)
from edgeopt.records.recipe import GraphStep, Quantize, QuantizeAware, Sparsify, WeightBits
from edgeopt.records.trial import Measured, Trial

LEARNING_RATE_RATIO = 0.1
"""Of the task's learning rate, when a network is trained for int8: its weights are nearly right already."""
FEW_BITS: WeightBits = 4
FEW_BITS_RATE_RATIO = 0.3
"""The same for training with weights in so few bits, which moves them further."""
MAX_SIZE_RATIO = 1.02
"""An int8 variant that keeps the score at up to this multiple of plain int8's bytes leaves nothing to train for."""


def further_variants(maker: VariantMaker, variants: Sequence[Variant]) -> list[Variant]:
    """Return what a candidate is tried in besides every precision: fewer bits, and what keeps the score if int8 fails.

    Args:
        maker: Of the candidate.
        variants: Its files in every precision.
    """
    if any(isinstance(step, QuantizeAware) for step in maker.candidate.steps):
        return []  # it was trained for one form
    fewer = fewer_weight_bits(maker, variants)
    mixed = mixed_precision(maker, [*variants, *fewer])
    mixed += fewer_weight_bits(maker, mixed)
    return [*fewer, *mixed, *stored_in_fewer_bits(maker, [*variants, *fewer, *mixed])]


def mixed_precision(maker: VariantMaker, variants: Sequence[Variant]) -> list[Variant]:
    """Return an int8 variant with a few nodes in float, if float32 keeps the score limit and int8 does not.

    Args:
        maker: Of the candidate.
        variants: Its files in every precision.

    Returns:
        The one with the fewest nodes in float; the same with the weights of these nodes stored in int8, if that keeps
        the score too; or none.
    """
    build, exported = maker.build, maker.exported
    computing = [variant for variant in variants if not variant.recipe.only_stores_weights]
    keeping = {variant.recipe.precision for variant in computing if variant.keeps_score(build.budget)}
    made_in_int8 = [
        variant
        for variant in computing
        if variant.recipe.precision == "int8" and isinstance(variant.made, ScoredArtifact)
    ]
    if is_pair(build, exported):
        return []  # what finds the nodes loads a single file
    if "int8" in keeping or "fp32" not in keeping or not made_in_int8 or build.is_out_of_time:
        return []
    made: dict[tuple[GraphStep, ...], Variant] = {}

    def keeps_score(mixed: MixedPrecision) -> bool:
        made[mixed.steps] = maker.make(mixed.steps, mixed.notes)
        return made[mixed.steps].keeps_score(build.budget)

    try:
        study = sensitivity_study(build, exported, rank=True)
        found = fewest_float_nodes(build, study, keeps_score)
    except EdgeoptError as error:
        build.progress("failed", f"mixed precision of {summary_of(maker.candidate)}: {as_failed(error).reason}")
        return []
    if found is None:
        return []
    best = [made[found.steps]._replace(ranking=study.ranking)]
    stored = maker.make(storing_the_rest(found.steps), found.notes)
    best += [stored._replace(ranking=study.ranking)] if stored.keeps_score(build.budget) else []
    return [*best, *maker.runner.without_unseen_rows(maker.candidate, maker.network, exported, best)]


def training_for_int8(
    build: Build, candidate: Candidate, network: StoredNetwork, exported: ExportedFile, variants: Sequence[Variant]
) -> Candidate | None:
    """Return the candidate that trains a network for int8, or None if that is not worth a training.

    Args:
        build: The build.
        candidate: The candidate.
        network: Its network.
        exported: Its float file.
        variants: Its files, including those in mixed precision. Those that only store weights in integers are no
            replacement, as they are no faster than float; of a given file they are, which spares a training.

    Raises:
        StepError: the calibration method cannot be chosen, because the graph cannot be studied.
    """
    has_own_grid = any(isinstance(step, Sparsify | QuantizeAware) for step in candidate.steps)  # it would not stay
    computing = [one for one in variants if exported.exporter == "given" or not one.recipe.only_stores_weights]
    if has_own_grid or not is_worth_training(build, computing):
        return None
    return _trained_for(build, network, exported, None, LEARNING_RATE_RATIO)


def training_for_few_bits(
    build: Build, network: StoredNetwork, exported: ExportedFile, trials: Sequence[Trial]
) -> Candidate | None:
    """Return the candidate that trains a network for int8 with 4-bit weights, or None if that is not worth a training.

    Args:
        build: The build.
        network: One that keeps the score in float.
        exported: Its float file.
        trials: All trials so far.

    Raises:
        StepError: the calibration method cannot be chosen, because the graph cannot be studied.
    """
    task, profile = build.data.task, build.profile
    if task.training is None or not build.effort.few_bits or not build.may_train:
        return None
    if "int8" not in profile.precisions or not can_unpack(profile) or is_pair(build, exported):
        return None
    own = [
        (trial, trial.outcome)
        for trial in trials
        if build.keys.network_of(trial.recipe) == network.key and isinstance(trial.outcome, Measured)
    ]
    if not any(_is_static_int8(trial) for trial, _ in own):
        return None
    if any(_has_few_bits(trial) and keeps_score(measured.score, build.budget) for trial, measured in own):
        return None
    if not holds_many_weights(build, exported, ROUNDED_OPERATORS):
        return None
    return _trained_for(build, network, exported, FEW_BITS, FEW_BITS_RATE_RATIO)


def _is_static_int8(trial: Trial) -> bool:
    return any(isinstance(step, Quantize) for step in trial.recipe.graph_steps)


def _has_few_bits(trial: Trial) -> bool:
    steps = trial.recipe.graph_steps
    return any(isinstance(step, Quantize) and (step.weight_bits or 8) <= FEW_BITS for step in steps)


def _trained_for(
    build: Build, network: StoredNetwork, exported: ExportedFile, bits: WeightBits | None, rate_ratio: float
) -> Candidate:
    """Return the candidate that trains a network to compute as its int8 file does."""
    method = sensitivity_study(build, exported, rank=False).method
    plain, distill = static_int8(build.profile), distillation(build)
    aware = QuantizeAware(
        activations=plain.activations,
        per_channel=plain.per_channel,
        reduce_range=plain.reduce_range,
        calibration=method,
        samples=plain.samples,
        weight_bits=bits,
    )
    gentle = msgspec.structs.replace(distill, learning_rate=distill.learning_rate * rate_ratio)
    return Candidate(steps=(aware, gentle), parent=network.key)


def is_worth_training(build: Build, variants: Sequence[Variant]) -> bool:
    """Tell whether float keeps the score limit, and no int8 variant about as small as plain int8 does."""
    if build.data.task.training is None or build.effort.epochs == 0 or not build.may_train:
        return False
    keeping = [variant for variant in variants if variant.keeps_score(build.budget)]
    in_float = [variant for variant in keeping if variant.recipe.precision != "int8"]
    plain_sizes = [size for size in map(_plain_int8_bytes, variants) if size is not None]
    if not plain_sizes or not (in_float or "fp32" not in build.profile.precisions):
        return False
    max_bytes = plain_sizes[0] * MAX_SIZE_RATIO
    return not any(
        isinstance(variant.made, ScoredArtifact) and variant.made.artifact.size_bytes <= max_bytes
        for variant in keeping
        if variant.recipe.precision == "int8"
    )


def _plain_int8_bytes(variant: Variant) -> int | None:
    """Return the bytes of a static int8 variant without float nodes, None for any other."""
    plain = any(isinstance(step, Quantize) and not step.float_nodes for step in variant.recipe.graph_steps)
    return variant.made.artifact.size_bytes if plain and isinstance(variant.made, ScoredArtifact) else None
