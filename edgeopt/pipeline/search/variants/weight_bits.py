"""Weights in 3 to 6 bits, as few as keep the score, stored densely.

Static int8 comes first: with fewer bits it is as fast, and smaller. If none of them keeps the score, and plain int8
does not either, int8 weights are rounded again by the calibration samples. Where activations in int8 cost too much,
weights alone get fewer bits, and everything is computed in float.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgeopt.graph.facts import MATRIX_PRODUCTS
from edgeopt.graph.model import lift_constants, load
from edgeopt.graph.rounding.packing import PLANES
from edgeopt.graph.weights.int8_weights import measure_stored_ratio
from edgeopt.pipeline.artifacts.large_models import is_pair
from edgeopt.pipeline.artifacts.networks import ExportedFile
from edgeopt.pipeline.artifacts.onnx_files import (
    CALIBRATION_SAMPLES,
    can_unpack,
    int8_steps,
    storing_the_rest,
    with_weight_bits,
)
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.search.candidate import ScoredArtifact, Variant
from edgeopt.pipeline.search.trial_runner import VariantMaker
from edgeopt.pipeline.search.variants.mixed_bits import bits_of_all, enough_bits
from edgeopt.records.recipe import Quantize, QuantizeDynamic, Recipe, StoreWeights, WeightBits
from edgeopt.records.trial import Failed

TRIED_BITS: tuple[WeightBits, ...] = (4, 5, 6)
"""In turn, until one keeps the score."""
_FEWER_THAN_FIRST: WeightBits = 3
"""Tried only if the first keeps it."""
MIN_ROUNDED_BYTES_RATIO = 0.1
"""If convolutions and products hold no more than this share of a file, fewer bits save too little to be tried."""
MAX_SPARE_RATIO = 1.1
"""An int8 file with more than this multiple of the bytes that all weights in 8 bits would have leaves some to save."""
MAX_OTHER_BYTES_RATIO = 0.05
"""Of weights that neither products nor lookups read, in a network whose dynamic int8 can have fewer bits."""
ROUNDED_OPERATORS = frozenset({"Conv", *MATRIX_PRODUCTS})
"""Those of static int8 whose weights can have fewer bits."""


def fewer_weight_bits(maker: VariantMaker, variants: Sequence[Variant]) -> list[Variant]:
    """Return the static int8 variant of the fewest weight bits that keeps the score limit, or none.

    A variant that cannot be made is returned too, as a failed trial; then no others are tried.

    Args:
        maker: Of the candidate.
        variants: Its files in every precision.
    """
    build = maker.build
    base = _smallest_static(variants)
    if base is None or not _is_worth_trying(build, maker.exported, variants, ROUNDED_OPERATORS):
        return []
    widths = TRIED_BITS if can_unpack(build.profile) else ()
    if not _any_keeps(build, variants):
        widths = (*widths, 8)

    def make(bits: WeightBits) -> Variant:
        return maker.make(with_weight_bits(base.recipe.graph_steps, bits))

    return _fewest_bits(build, make, widths)


def stored_in_fewer_bits(maker: VariantMaker, variants: Sequence[Variant]) -> list[Variant]:
    """Return the variant whose weights have the fewest bits while all is computed in float, or none.

    None is tried if static int8 keeps the score in fewer bits: that is faster. If no int8 variant keeps it, or only one
    that left large weights in float, int8 weights are rounded by the calibration samples too; then a few weights get
    more bits. The arguments are those of ``fewer_weight_bits``.
    """
    build = maker.build
    if any(_has_few_static_bits(variant.recipe) for variant in _small_that_keep(maker, variants)):
        return []
    if "int8" not in build.profile.precisions or is_pair(build, maker.exported):
        return []
    if not _is_worth_trying(build, maker.exported, variants):
        return []
    stored = [variant for variant in variants if variant.recipe.only_stores_weights]
    is_hopeless = bool(stored) and not _any_keeps(build, stored)
    widths = TRIED_BITS if can_unpack(build.profile) and not is_hopeless else ()
    needs_more = not _small_that_keep(maker, variants)
    if needs_more:
        widths = (*widths, 8)

    def make(bits: WeightBits) -> Variant:
        return maker.make(int8_steps(StoreWeights(weight_bits=bits, samples=CALIBRATION_SAMPLES), build.profile))

    found = _fewest_bits(build, make, widths)
    if needs_more and not _any_keeps(build, found):
        enough = enough_bits(maker)
        found += [enough] if enough is not None else []
    return found + _in_dynamic_int8(maker, variants, found)


def _in_dynamic_int8(maker: VariantMaker, variants: Sequence[Variant], stored: Sequence[Variant]) -> list[Variant]:
    """Return the dynamic int8 variant with as few bits as a stored one that keeps the score: as small, often quicker.

    Only for networks that are all products and lookups, and keep the score in plain dynamic int8.
    """
    build = maker.build
    plain = next((one for one in variants if one.keeps_score(build.budget) and _dynamic_step(one.recipe)), None)
    bits = [bits_of_all(one.recipe) for one in stored if one.keeps_score(build.budget)]
    if plain is None or not bits or bits[0] not in PLANES:
        return []
    model = load(build.workspace.artifact(maker.exported.sha256), "quantize")
    lift_constants(model.graph)
    if measure_stored_ratio(model, frozenset({"Gather", *MATRIX_PRODUCTS})) > MAX_OTHER_BYTES_RATIO:
        return []
    step = QuantizeDynamic(
        reduce_range=build.profile.activation_type == "uint8", weight_bits=bits[0], samples=CALIBRATION_SAMPLES
    )
    rest = StoreWeights(weight_bits=bits[0], samples=CALIBRATION_SAMPLES)
    return [maker.make(storing_the_rest(int8_steps(step, build.profile), rest))]


def _dynamic_step(recipe: Recipe) -> QuantizeDynamic | None:
    return next((step for step in recipe.graph_steps if isinstance(step, QuantizeDynamic)), None)


def _small_that_keep(maker: VariantMaker, variants: Sequence[Variant]) -> list[Variant]:
    """Return the int8 variants that keep the score and are about as small as weights in 8 bits make a file.

    Others have most of their nodes in float.
    """
    build = maker.build
    model = load(build.workspace.artifact(maker.exported.sha256), "quantize")
    lift_constants(model.graph)
    saved_ratio = 0.75 * measure_stored_ratio(model, frozenset())
    max_bytes = MAX_SPARE_RATIO * (1 - saved_ratio) * model.ByteSize()
    return [
        variant
        for variant in variants
        if variant.recipe.precision == "int8"
        and variant.keeps_score(build.budget)
        and isinstance(variant.made, ScoredArtifact)
        and variant.made.artifact.size_bytes <= max_bytes
    ]


def _fewest_bits(build: Build, make: Callable[[WeightBits], Variant], widths: Sequence[WeightBits]) -> list[Variant]:
    """Return the variant of the fewest bits that keeps the score, or none; or the first that cannot be made."""
    for bits in widths:
        found = make(bits)
        if isinstance(found.made, Failed):
            return [found]
        if found.keeps_score(build.budget):
            fewer = make(_FEWER_THAN_FIRST) if bits == TRIED_BITS[0] else found
            return [fewer if fewer.keeps_score(build.budget) else found]
    return []


def _any_keeps(build: Build, variants: Sequence[Variant]) -> bool:
    return any(variant.keeps_score(build.budget) for variant in variants if variant.recipe.precision == "int8")


def _has_few_static_bits(recipe: Recipe) -> bool:
    return any(isinstance(step, Quantize) and step.weight_bits in PLANES for step in recipe.graph_steps)


def _smallest_static(variants: Sequence[Variant]) -> Variant | None:
    """Return the smallest variant in static int8 whose weights were not trained for it."""
    made = {
        variant.made.artifact.size_bytes: variant
        for variant in variants
        if isinstance(variant.made, ScoredArtifact)
        and any(isinstance(step, Quantize) and step.calibration != "trained" for step in variant.recipe.graph_steps)
    }
    return made[min(made)] if made else None


def _is_worth_trying(
    build: Build,
    exported: ExportedFile,
    variants: Sequence[Variant],
    operators: frozenset[str] | None = None,
) -> bool:
    """Tell whether the network keeps the score in float, and weights that can be rounded are much of its file.

    Args:
        build: The build.
        exported: The network's float file.
        variants: Its files.
        operators: Those whose weights can be rounded; None: any.
    """
    in_float = [variant for variant in variants if variant.recipe.precision == "fp32"]
    if build.is_out_of_time or (in_float and not any(variant.keeps_score(build.budget) for variant in in_float)):
        return False
    return holds_many_weights(build, exported, operators)


def holds_many_weights(build: Build, exported: ExportedFile, operators: frozenset[str] | None = None) -> bool:
    """Tell whether weights that can be rounded to fewer bits are much of a float file.

    Args:
        build: The build.
        exported: The file.
        operators: Those whose weights can be rounded; None: any.
    """
    model = load(build.workspace.artifact(exported.sha256), "quantize")
    lift_constants(model.graph)
    ratio = measure_stored_ratio(model, frozenset())
    if operators is not None:
        ratio -= measure_stored_ratio(model, operators)
    return ratio > MIN_ROUNDED_BYTES_RATIO
