"""Weights with bits of their own: fewer where rounding disturbs the outputs little, more where it disturbs them much.

Tried for the winner, which has as few bits as all of its weights can have together; and for a network that keeps the
score in float, but not with all weights in 8 bits, because a few of them (the basis of a signal front end, say) need
more.
"""

from __future__ import annotations

from collections.abc import Callable

from edgeopt.errors import EdgeoptError
from edgeopt.graph.rounding.packing import PLANES
from edgeopt.graph.weights.bit_study import BITS
from edgeopt.pipeline.artifacts.int8_variants import bit_study
from edgeopt.pipeline.artifacts.large_models import is_pair
from edgeopt.pipeline.artifacts.onnx_files import can_unpack, int8_steps, with_bits_of
from edgeopt.pipeline.boundary import as_failed
from edgeopt.pipeline.search.candidate import Variant, summary_of
from edgeopt.pipeline.search.trial_runner import VariantMaker
from edgeopt.planning.weight_bits import allocate_bits, noise_at
from edgeopt.records.quantization import BitStudy
from edgeopt.records.recipe import (
    BitsStep,
    GraphStep,
    Quantize,
    QuantizeDynamic,
    QuantizeWeights,
    Recipe,
    StoredBits,
    StoreWeights,
    WeightBits,
)

BITS_IN_ORDER: tuple[WeightBits, ...] = (3, 4, 5, 6, 8)
"""That all weights of a network are tried in together."""
MORE_BITS = (9.0, 10.0, 12.0)
"""Mean noise levels, in bits, that are tried if 8 bits cost too much."""
MAX_GAP_BITS = 0.3
"""The search ends when so little lies between a level that keeps the score and one that does not."""


def fewer_bits_of(maker: VariantMaker, recipe: Recipe) -> Variant | None:
    """Return a variant of a file that keeps the score, with fewer bits for some of its weights; None if none keeps it.

    Args:
        maker: Of the file's network.
        recipe: Of the file.
    """
    keeps = bits_of_all(recipe)
    if keeps is None or keeps == BITS_IN_ORDER[0] or not can_unpack(maker.build.profile):
        return None
    fails = BITS_IN_ORDER[BITS_IN_ORDER.index(keeps) - 1]
    return _search_levels(maker, recipe.graph_steps, fails, keeps)


def enough_bits(maker: VariantMaker) -> Variant | None:
    """Return the variant that stores some weights in more than 8 bits and keeps the score; None if none does."""
    steps = int8_steps(StoreWeights(), maker.build.profile)
    return _search_levels(maker, steps, BITS_IN_ORDER[-1], None)


def bits_of_all(recipe: Recipe) -> WeightBits | None:
    """Return the bits that all weights of an int8 file have; None if they are trained, of another kind, or differ.

    Plain dynamic int8 is of another kind: its cells have 8 bits in any case.
    """
    steps = [step for step in recipe.graph_steps if isinstance(step, BitsStep)]
    others = any(isinstance(step, QuantizeWeights) for step in recipe.graph_steps)
    others = others or any(isinstance(step, QuantizeDynamic) and step.weight_bits == 8 for step in steps)
    trained = any(isinstance(step, Quantize) and step.calibration == "trained" for step in steps)
    if not steps or others or trained or any(step.bits_of for step in steps):
        return None
    return max(step.weight_bits or BITS_IN_ORDER[-1] for step in steps)


def _search_levels(
    maker: VariantMaker, steps: tuple[GraphStep, ...], fails: float, keeps: float | None
) -> Variant | None:
    """Return the smallest variant found that keeps the score, at a noise between that of two numbers of bits.

    Args:
        maker: Of the network.
        steps: Of a file; its bits are replaced.
        fails: Bits of all weights at which the score is lost.
        keeps: The same at which it is kept; None if none is known.
    """
    build = maker.build
    if build.is_out_of_time or is_pair(build, maker.exported):
        return None
    try:
        study = bit_study(build, maker.exported)
    except EdgeoptError as error:
        label = summary_of(maker.candidate)
        build.progress("quantize", f"{label}: all weights have the same bits: {as_failed(error).reason}")
        return None
    made: dict[tuple[GraphStep, ...], Variant] = {}

    def at(level: float) -> Variant:
        found = with_bits_of(steps, _allocation(maker, steps, study, level))
        if found not in made:
            made[found] = maker.make(found)
        return made[found]

    def is_good(variant: Variant) -> bool:
        return variant.keeps_score(build.budget)

    return search_levels(at, is_good, fails, keeps, may_go_on=lambda: not build.is_out_of_time)


def search_levels(
    at: Callable[[float], Variant],
    is_good: Callable[[Variant], bool],
    fails: float,
    keeps: float | None,
    may_go_on: Callable[[], bool] = lambda: True,
) -> Variant | None:
    """Return the variant of the lowest level that is good; None if none is.

    Args:
        at: From a level of noise, in bits, to the variant with bits by weight.
        is_good: Whether a variant keeps the score.
        fails: Level that is known to be bad.
        keeps: Level at which a variant with equal bits is good; None if none is known.
        may_go_on: Whether there is time for another one.
    """
    best = None
    high = keeps
    if high is None:
        for level in MORE_BITS:
            if not may_go_on():
                return None
            variant = at(level)
            if is_good(variant):
                best, high = variant, level
                break
            fails = level
        if high is None:
            return None
    while high - fails > MAX_GAP_BITS and may_go_on():
        middle = (high + fails) / 2
        variant = at(middle)
        if is_good(variant):
            best, high = variant, middle
        else:
            fails = middle
    if best is None and may_go_on():
        variant = at(high)
        best = variant if is_good(variant) else None
    return best


def _allocation(
    maker: VariantMaker, steps: tuple[GraphStep, ...], study: BitStudy, level: float
) -> tuple[tuple[str, StoredBits], ...]:
    """Return the bits of each weight whose noise together is that of a number of bits for all."""
    widths: tuple[StoredBits, ...] = (8,)
    if can_unpack(maker.build.profile):
        widths = (*(bits for bits in (3, 4, 5, 6) if bits in PLANES), *widths)
    static = next((step for step in steps if isinstance(step, Quantize)), None)
    if static is None and not any(isinstance(step, QuantizeDynamic) for step in steps):
        widths = (*widths, 16)
    elif static is not None and not any(isinstance(step, StoreWeights) for step in steps):
        rounded = [one for one in study.noises if one.node and one.node not in static.float_nodes]
        study = BitStudy(noises=tuple(rounded))
    return allocate_bits(study, noise_at(study, level, BITS), BITS, widths) if study.noises else ()
