"""Static int8 with weights in 4, 5 or 6 bits, as few as keep the score, stored densely: as fast as int8, and smaller.

If none of them keeps it, and plain int8 does not either, int8 weights are rounded again by the calibration samples.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeopt.graph.facts import MATRIX_PRODUCTS
from edgeopt.graph.model import lift_constants, load
from edgeopt.graph.weights.int8_weights import measure_stored_ratio
from edgeopt.pipeline.artifacts.networks import ExportedFile, StoredNetwork
from edgeopt.pipeline.artifacts.onnx_files import can_unpack, with_weight_bits
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.search.candidate import Candidate, ScoredArtifact, Variant
from edgeopt.pipeline.search.trial_runner import TrialRunner
from edgeopt.records.recipe import Quantize, WeightBits
from edgeopt.records.trial import Failed

FEWEST_FIRST: tuple[WeightBits, ...] = (4, 5, 6)
MIN_ROUNDED_BYTES_RATIO = 0.1
"""If convolutions and products hold no more than this share of a file, fewer bits save too little to be tried."""
_ROUNDED_OPERATORS = frozenset({"Conv", *MATRIX_PRODUCTS})


def fewer_weight_bits(
    runner: TrialRunner,
    candidate: Candidate,
    network: StoredNetwork,
    exported: ExportedFile,
    variants: Sequence[Variant],
) -> list[Variant]:
    """Return the static int8 variant of the fewest weight bits that keeps the score limit, or none.

    A variant that cannot be made is returned too, as a failed trial; then no others are tried.

    Args:
        runner: Makes and scores files.
        candidate: The candidate.
        network: Its network.
        exported: Its float file.
        variants: Its files in every precision.
    """
    budget = runner.build.budget
    base = _smallest_static(variants)
    if base is None or not _is_worth_trying(runner.build, exported, variants):
        return []
    widths: tuple[WeightBits, ...] = FEWEST_FIRST if can_unpack(runner.build.profile) else ()
    if not any(variant.keeps_score(budget) for variant in variants if variant.recipe.precision == "int8"):
        widths = (*widths, 8)
    for bits in widths:
        steps = with_weight_bits(base.recipe.graph_steps, bits)
        found = runner.make_variant(candidate, network, exported, steps, {})
        if isinstance(found.made, Failed) or found.keeps_score(budget):
            return [found]
    return []


def _smallest_static(variants: Sequence[Variant]) -> Variant | None:
    """Return the smallest variant in static int8 whose weights were not trained for it."""
    made = {
        variant.made.artifact.size_bytes: variant
        for variant in variants
        if isinstance(variant.made, ScoredArtifact)
        and any(isinstance(step, Quantize) and step.calibration != "trained" for step in variant.recipe.graph_steps)
    }
    return made[min(made)] if made else None


def _is_worth_trying(build: Build, exported: ExportedFile, variants: Sequence[Variant]) -> bool:
    """Tell whether the network keeps the score in float, and weights that can be rounded are much of its file."""
    in_float = [variant for variant in variants if variant.recipe.precision == "fp32"]
    if build.is_out_of_time or (in_float and not any(variant.keeps_score(build.budget) for variant in in_float)):
        return False
    model = load(build.workspace.artifact(exported.sha256), "quantize")
    lift_constants(model.graph)
    ratio = measure_stored_ratio(model, frozenset()) - measure_stored_ratio(model, _ROUNDED_OPERATORS)
    return ratio > MIN_ROUNDED_BYTES_RATIO
