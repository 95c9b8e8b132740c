"""Which int8 variants a network is tried in, and which nodes stay in float if plain int8 costs too much of the score.

The caller makes the files and scores them; decided here is the next list of graph steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import onnx

from edgeopt.errors import StepError
from edgeopt.graph.apply import (
    apply_steps,
    find_fake_quant_sites,
    study_sensitivity_of_file,
    study_weight_bits_of_file,
)
from edgeopt.graph.facts import (
    MATRIX_PRODUCTS,
    RECURRENT_CELLS,
    is_mostly_products,
    is_quantized,
    measure_packable_bytes_ratio,
)
from edgeopt.graph.model import lift_constants, load
from edgeopt.graph.weights.int8_weights import measure_stored_ratio
from edgeopt.pipeline.artifacts.large_models import is_pair
from edgeopt.pipeline.artifacts.networks import ExportedFile
from edgeopt.pipeline.artifacts.onnx_files import (
    CALIBRATION_SAMPLES,
    FIRST_STEPS,
    graph_steps,
    int8_steps,
    may_use_runtime_operators,
    static_int8,
    storing_the_rest,
)
from edgeopt.pipeline.boundary import run_step
from edgeopt.pipeline.context import Build
from edgeopt.records.codec import to_json
from edgeopt.records.profile import Precision
from edgeopt.records.quantization import BitStudy, NodeNoise, SensitivityStudy
from edgeopt.records.recipe import (
    GraphStep,
    Quantize,
    QuantizeAware,
    QuantizeDynamic,
    QuantizeWeights,
    Simplify,
    StoreWeights,
)
from edgeopt.store.files import write_whole

MAX_GAP_RATIO = 0.15
"""Of the nodes in float: as much more than necessary costs little."""
HELD_BACK_SAMPLES = 128
"""Calibration samples that judge instead of calibrating."""
WEIGHT_BITS: dict[Literal[4, 8], tuple[int, int, int]] = {4: (1, 17, 0), 8: (1, 22, 0)}
"""Bits of weights with float activations, and the first onnxruntime whose CPU provider has kernels for them."""
WEIGHT_BLOCK_SIZE = 32
"""Weights that share a scale: five bits a weight in all, and narrow networks have products no deeper than this."""
MIN_PACKABLE_BYTES_RATIO = 0.1
"""If matrix products and recurrent cells hold more than this share of a file, they are also tried in dynamic int8, and
products with weights in fewer bits."""
MIN_LEFT_BYTES_RATIO = 0.05
"""If weights that a form of int8 leaves in float are more than this share of a file, they are also stored in int8."""


_PRODUCTS_AND_CELLS = frozenset({*MATRIX_PRODUCTS, *RECURRENT_CELLS})
_TABLES = frozenset({"Gather"})
_STATIC_OPERATORS = frozenset({"Conv", "ConvTranspose", *MATRIX_PRODUCTS}) | _TABLES
_DYNAMIC_OPERATORS = _PRODUCTS_AND_CELLS | _TABLES
_PACKED_OPERATORS = frozenset(MATRIX_PRODUCTS) | _TABLES


class MixedPrecision(NamedTuple):
    """An int8 variant with some nodes in float: its graph steps, and why these nodes were chosen."""

    steps: tuple[GraphStep, ...]
    notes: tuple[str, ...]


def variant_steps(build: Build, exported: ExportedFile, precision: Precision) -> Iterator[tuple[GraphStep, ...]]:
    """Yield the graph steps of each variant in a precision.

    For int8 that is the static one; the dynamic one too if products and recurrent cells matter for work or bytes;
    weights in fewer bits if products and tables hold some of the bytes, as far as the oldest onnxruntime named by the
    target supports them; and each of them with the weights in int8 that it would leave in float. A given file is also
    tried with its weights stored in int8 and everything computed in float. One that is quantized already is left as it
    is (``fp32``), but weights that are still in float are stored in int8 if they are worth it. A file whose weights are
    in another one, because they do not fit, is only tried with them in fewer bits, each rounded to the nearest step.
    """
    profile = build.profile
    model = load(build.workspace.artifact(exported.sha256), "quantize")
    if precision != "fp32" and exported.exporter == "given" and is_quantized(model):
        lift_constants(model.graph)
        if precision == "int8" and measure_stored_ratio(model, frozenset()) > MIN_LEFT_BYTES_RATIO:
            yield int8_steps(StoreWeights(), profile)
        return
    if precision != "int8":
        yield graph_steps(precision, profile)
        return
    lift_constants(model.graph)
    is_whole = not is_pair(build, exported)
    if is_whole:
        yield from _activation_steps(build, model)
    if may_use_runtime_operators(profile) and measure_packable_bytes_ratio(model) > MIN_PACKABLE_BYTES_RATIO:
        samples = CALIBRATION_SAMPLES if is_whole else 0
        oldest = tuple(int(part) for part in profile.min_onnxruntime.split("."))
        for bits, since in WEIGHT_BITS.items():
            if oldest >= since:
                steps = int8_steps(QuantizeWeights(bits=bits, block=WEIGHT_BLOCK_SIZE, samples=samples), profile)
                yield steps
                if measure_stored_ratio(model, _PACKED_OPERATORS) > MIN_LEFT_BYTES_RATIO:
                    yield storing_the_rest(steps)
    if exported.exporter == "given" or not is_whole:
        yield int8_steps(StoreWeights(), profile)


def _activation_steps(build: Build, model: onnx.ModelProto) -> Iterator[tuple[GraphStep, ...]]:
    """Yield the graph steps of the variants in which activations are int8 too: the static one, and the dynamic one."""
    profile = build.profile
    yield graph_steps("int8", profile)
    if measure_stored_ratio(model, _STATIC_OPERATORS) > MIN_LEFT_BYTES_RATIO:
        yield storing_the_rest(graph_steps("int8", profile))
    if profile.operators == "qdq":
        return  # ranges that are found at run time have no such pairs
    dynamic_bytes = measure_stored_ratio(model, frozenset()) - measure_stored_ratio(model, _PRODUCTS_AND_CELLS)
    if is_mostly_products(model, build.sample_shapes) or dynamic_bytes > MIN_PACKABLE_BYTES_RATIO:
        dynamic = int8_steps(QuantizeDynamic(reduce_range=profile.activation_type == "uint8"), profile)
        yield dynamic
        if measure_stored_ratio(model, _DYNAMIC_OPERATORS) > MIN_LEFT_BYTES_RATIO:
            yield storing_the_rest(dynamic)


def sensitivity_study(build: Build, exported: ExportedFile, *, rank: bool) -> SensitivityStudy:
    """Return what int8 does to a network's outputs: from the ledger, or found now.

    Args:
        build: The build.
        exported: The network's float file.
        rank: Whether to rank single nodes too, which takes longer.

    Raises:
        StepError: the graph cannot be studied.
    """
    step = static_int8(build.profile)
    key = build.keys.of("sensitivity-study", file=exported.sha256, step=step, held_back=HELD_BACK_SAMPLES)

    def make() -> SensitivityStudy:
        build.progress("quantize", "finding the nodes that suffer from int8" if rank else "finding ranges for int8")
        with float_file(build, exported, key.digest) as source:
            calibration = build.data.calibration_file(step.samples + HELD_BACK_SAMPLES)
            return run_step("study", study_sensitivity_of_file, step, source, calibration, HELD_BACK_SAMPLES, rank=rank)

    return build.ledger.remember(key, SensitivityStudy, make, is_usable=lambda found: bool(found.ranking) or not rank)


def bit_study(build: Build, exported: ExportedFile) -> BitStudy:
    """Return how much fewer bits of each weight disturb a network's outputs: from the ledger, or found now.

    Raises:
        StepError: the graph cannot be studied.
    """
    key = build.keys.of("bit-study", file=exported.sha256, samples=CALIBRATION_SAMPLES, held_back=HELD_BACK_SAMPLES)

    def make() -> BitStudy:
        build.progress("quantize", "finding the weights that suffer from fewer bits")
        with float_file(build, exported, key.digest) as source:
            calibration = build.data.calibration_file(CALIBRATION_SAMPLES + HELD_BACK_SAMPLES)
            samples, held_back = CALIBRATION_SAMPLES, HELD_BACK_SAMPLES
            return run_step("study", study_weight_bits_of_file, samples, source, calibration, held_back)

    return build.ledger.remember(key, BitStudy, make)


@contextmanager
def float_file(build: Build, exported: ExportedFile, name: str) -> Iterator[Path]:
    """Give a network's file after the steps that every variant begins with, for the length of a block.

    If onnxsim fails, the file is not simplified, as in ``make_artifact``.

    Raises:
        StepError: a step fails.
    """
    with build.workspace.scratch(name) as folder:

        def apply(steps: tuple[GraphStep, ...]) -> Path:
            results = run_step(
                "graph", apply_steps, steps, build.workspace.artifact(exported.sha256), folder / "float.onnx",
                calibration=None, max_opset=build.profile.max_opset, max_ir=build.profile.max_ir,
            )  # fmt: skip
            return results[-1].path

        try:
            path = apply(FIRST_STEPS)
        except StepError as error:
            if error.stage != "simplify":
                raise
            path = apply(tuple(step for step in FIRST_STEPS if not isinstance(step, Simplify)))
        yield path


def fewest_float_nodes(
    build: Build, study: SensitivityStudy, keeps_score: Callable[[MixedPrecision], bool]
) -> MixedPrecision | None:
    """Return the mixed-precision variant with the fewest nodes in float that keeps the score, or None if none does.

    Nodes go back to float in the study's order, twice as many each time until the score is kept; then bisection narrows
    the range, to ``MAX_GAP_RATIO`` of the nodes.

    Args:
        build: The build.
        study: Ranks the nodes.
        keeps_score: Makes a variant and tells whether it keeps the score's limit.
    """
    most = len(study.ranking) - 1
    low, high = -1, 0
    while not keeps_score(_with_float_nodes(build, study, high)):
        if high >= most:
            return None
        low, high = high, min(most, max(1, 2 * high))
    while high - low > max(1, MAX_GAP_RATIO * high):
        middle = (low + high) // 2
        low, high = (low, middle) if keeps_score(_with_float_nodes(build, study, middle)) else (middle, high)
    return _with_float_nodes(build, study, high)


def _with_float_nodes(build: Build, study: SensitivityStudy, count: int) -> MixedPrecision:
    """Return the variant whose first ``count`` nodes of the ranking are float."""
    floats = study.ranking[:count]
    preparation = study.preparation or ""
    step = msgspec.structs.replace(
        static_int8(build.profile),
        calibration=study.method,
        float_nodes=tuple(noise.node for noise in floats),
        equalize="equalization" in preparation,
        correct_bias="bias correction" in preparation,
    )
    words = ", ".join(f"{method} {snr:.1f} dB" for method, snr in study.method_snr_db.items())
    notes = [f"quantize: plain int8 misses the score limit; signal-to-noise ratio by calibration: {words}"]
    words = ", ".join(f"{name} {snr:.1f} dB" for name, snr in study.preparation_snr_db.items())
    notes.append(f"quantize: signal-to-noise ratio with {study.method} calibration after: {words}")
    if floats:
        ranking = ", ".join(map(_in_words, study.ranking[: count + 3]))
        notes.append(f"quantize: the first {count} nodes of this ranking are in float: {ranking}")
    return MixedPrecision(int8_steps(step, build.profile), tuple(notes))


def _in_words(noise: NodeNoise) -> str:
    return f"{noise.node} ({noise.snr_db:.1f} dB if only this node is int8, {noise.cost_ratio:.1%} of the work)"


def fake_quant_paths(build: Build, exported: ExportedFile, step: Quantize) -> tuple[Path, Path]:
    """Return the paths of the sites that a network's int8 file rounds, and of the values there."""
    key = build.keys.of("fake-quant-sites", file=exported.sha256, step=step)
    folder = build.workspace.folder("tables")
    return folder / f"fake-quant-{key.digest}.json", folder / f"fake-quant-{key.digest}.npz"


def fake_quant_files(build: Build, exported: ExportedFile, step: Quantize) -> tuple[Path, Path]:
    """Return the files of ``fake_quant_paths``, made now if they do not exist; the values are large, to be removed.

    Raises:
        StepError: the graph cannot be quantized or read.
    """
    sites, values = fake_quant_paths(build, exported, step)
    if not (sites.exists() and values.exists()):
        with float_file(build, exported, sites.stem) as source:
            calibration = build.data.calibration_file(step.samples)
            found = run_step(
                "quantize-aware", find_fake_quant_sites, step, source, calibration, build.data.parity_file, values
            )
        write_whole(sites, to_json(found))
    return sites, values


def quantize_step(aware: QuantizeAware) -> Quantize:
    """Return the quantization that a training for int8 imitates."""
    return Quantize(
        activations=aware.activations,
        per_channel=aware.per_channel,
        reduce_range=aware.reduce_range,
        calibration=aware.calibration,
        samples=aware.samples,
        weight_bits=aware.weight_bits,
    )
