"""Which int8 forms a network is tried in, and what is done where plain int8 loses too much.

The forms are made by the caller, who can make any recipe's file and score it; what is decided here is the next recipe.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from edgeopt.graph.apply import apply_steps, study_sensitivity_of_file
from edgeopt.graph.facts import mostly_products, product_bytes_ratio
from edgeopt.graph.model import load
from edgeopt.pipeline.artifacts.networks import ExportedFile
from edgeopt.pipeline.artifacts.onnx_files import HEAD, graph_steps, in_int8, on_cpu_alone, static_int8
from edgeopt.pipeline.boundary import run_step
from edgeopt.pipeline.context import Build
from edgeopt.records.codec import digest
from edgeopt.records.profile import Precision
from edgeopt.records.quantization import NodeNoise, SensitivityStudy
from edgeopt.records.recipe import GraphStep, QuantizeDynamic, QuantizeWeights

HELD_BACK_SAMPLES = 128
"""Calibration samples that judge instead of calibrating."""
WEIGHT_BITS: dict[Literal[4, 8], tuple[int, int, int]] = {4: (1, 17, 0), 8: (1, 22, 0)}
"""Bits of weights next to float activations, and the first onnxruntime whose CPU provider multiplies by them."""
WEIGHT_BLOCK = 32
"""Weights that share a scale: five bits a weight in all, and narrow networks have products no deeper than this."""
MIN_PRODUCT_BYTES_RATIO = 0.5
"""Share of a file that products hold, from which on their weights are tried in fewer bits."""


class MixedPrecision(NamedTuple):
    """A mixed form: its steps, and why these nodes are float."""

    steps: tuple[GraphStep, ...]
    notes: tuple[str, ...]


def variant_steps(build: Build, exported: ExportedFile, precision: Precision) -> Iterator[tuple[GraphStep, ...]]:
    """Yield the recipes of a precision.

    For int8 the static form, where products dominate the work the dynamic one too, and where they hold most of the
    bytes weights of fewer bits, as far as the oldest runtime named knows them.
    """
    profile = build.profile
    yield graph_steps(precision, profile)
    if precision != "int8":
        return
    model = load(build.workspace.artifact(exported.sha256), "quantize")
    if mostly_products(model):
        yield in_int8(QuantizeDynamic(reduce_range=profile.activation_type == "uint8"), profile)
    if on_cpu_alone(profile) and product_bytes_ratio(model) > MIN_PRODUCT_BYTES_RATIO:
        known = tuple(int(part) for part in profile.min_onnxruntime.split("."))
        for bits, since in WEIGHT_BITS.items():
            if known >= since:
                yield in_int8(QuantizeWeights(bits=bits, block=WEIGHT_BLOCK), profile)


def sensitivity_study(build: Build, exported: ExportedFile, *, rank: bool) -> SensitivityStudy:
    """Return what int8 does to a network: from the ledger, or found now.

    Raises:
        StepError: the graph cannot be studied.
    """
    step = static_int8(build.profile)
    key = digest(("prepared study", exported.sha256, step, HELD_BACK_SAMPLES, build.versions, build.fingerprint))
    found = build.ledger.get("study", key, SensitivityStudy)
    if found is not None and (found.ranking or not rank):
        return found
    build.progress("quantize", "which nodes suffer from int8" if rank else "which ranges suit int8")
    with float_file(build, exported, key) as head:
        calibration = build.data.calibration_file(step.samples + HELD_BACK_SAMPLES)
        found = run_step("study", study_sensitivity_of_file, step, head, calibration, HELD_BACK_SAMPLES, rank=rank)
    build.ledger.put("study", key, found)
    return found


@contextmanager
def float_file(build: Build, exported: ExportedFile, key: str) -> Iterator[Path]:
    """Give a network's file after the steps that every form begins with, as long as a block runs.

    Raises:
        StepError: a step fails.
    """
    folder = build.workspace.folder("stages") / key
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        source, limits = build.workspace.artifact(exported.sha256), (build.profile.max_opset, build.profile.max_ir)
        yield run_step("graph", apply_steps, HEAD, source, folder / "float.onnx", calibration=None,
                       max_opset=limits[0], max_ir=limits[1])[-1].path  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fewest_float_nodes(
    build: Build, found: SensitivityStudy, keeps: Callable[[MixedPrecision], bool]
) -> MixedPrecision | None:
    """Return the mixed form with the fewest nodes in float that ``keeps`` the score's floor, None where none does.

    Nodes go back to float in the study's order, twice as many each time until the floor holds; then the bracket is
    halved.
    """
    most = len(found.ranking) - 1
    low, high = -1, 0
    while not keeps(_mix(build, found, high)):
        if high >= most:
            return None
        low, high = high, min(most, max(1, 2 * high))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps(_mix(build, found, middle)) else (middle, high)
    return _mix(build, found, high)


def _mix(build: Build, found: SensitivityStudy, count: int) -> MixedPrecision:
    """Return the form whose first ``count`` nodes of the ranking are float."""
    floats = found.ranking[:count]
    preparation = found.preparation or ""
    step = msgspec.structs.replace(
        static_int8(build.profile),
        calibration=found.method,
        float_nodes=tuple(noise.node for noise in floats),
        equalize="equalization" in preparation,
        correct_bias="bias correction" in preparation,
    )
    words = ", ".join(f"{method} {snr:.1f} dB" for method, snr in found.method_snr_db.items())
    notes = [f"quantize: plain int8 misses the score's floor; signal to noise by calibration: {words}"]
    words = ", ".join(f"{name} {snr:.1f} dB" for name, snr in found.preparation_snr_db.items())
    notes.append(f"quantize: signal to noise with {found.method} calibration after: {words}")
    if floats:
        ranking = ", ".join(map(_in_words, found.ranking[: count + 3]))
        notes.append(f"quantize: the first {count} of this ranking are float: {ranking}")
    return MixedPrecision(in_int8(step, build.profile), tuple(notes))


def _in_words(noise: NodeNoise) -> str:
    return f"{noise.node} ({noise.snr_db:.1f} dB alone, {noise.cost_ratio:.1%} of the work)"
