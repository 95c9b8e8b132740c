"""Measures how much fewer bits of each weight disturb the outputs of a network.

One weight after the other is rounded to ``BITS`` bits, as ``edgeopt.graph.weights.int8_weights`` would, and the noise
at the outputs is measured on samples that did not calibrate. Runs in a subprocess (``edgeopt.graph.jobs``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from edgeopt.errors import StepError
from edgeopt.graph.counting.macs import count_macs
from edgeopt.graph.facts import has_half_weights
from edgeopt.graph.model import lift_constants, lower_ir, read_batch_axes, walk_graphs
from edgeopt.graph.preparation.attempts import attempt
from edgeopt.graph.preparation.widening import widen_halves
from edgeopt.graph.quantization.activations import ArrayBatch
from edgeopt.graph.quantization.sensitivity import (
    affordable_batches,
    run_all_batches,
    shapes_of_one,
    split_batches,
)
from edgeopt.graph.rounding.moments import find_layers
from edgeopt.graph.weights.int8_weights import find_weights, measure_rows, round_stored_weight
from edgeopt.model_files.tensors import count_bytes, tensor_values
from edgeopt.records.quantization import BitStudy, WeightNoise
from edgeopt.records.recipe import StoreWeights, WeightBits

BITS: WeightBits = 5
"""In the middle of what is tried: each bit more or less is a quarter or four times the noise."""
_MAX_NOISE = 1e6
MAX_READ_BYTES = 4_000_000_000
"""Of all sessions together: a large model with many weights is not studied."""


def study_weight_bits(model: onnx.ModelProto, samples: int, calibration: Path, held_back: int) -> BitStudy:
    """Measure the noise at the outputs with one weight at a time in few bits.

    Args:
        model: A float model; it is changed.
        samples: Calibration samples over which rounding errors cancel.
        calibration: A batch file with the names of the graph's inputs. Noise is measured on the ``held_back`` samples
            after the first ``samples``, as in ``edgeopt.graph.quantization.sensitivity``.
        held_back: Number of samples.

    Raises:
        StepError: the graph has no weight worth it, cannot be run, or is too large for as many sessions.
    """
    lower_ir(model)
    if has_half_weights(model):
        widen_halves(model)
    for graph in walk_graphs(model.graph):
        lift_constants(graph)
    weights = [
        (tensor, graph is model.graph)
        for graph in walk_graphs(model.graph)
        for name in find_weights(graph)
        for tensor in graph.initializer
        if tensor.name == name
    ]
    if len(weights) < 2:
        raise StepError("study", "the graph has fewer than two weights that could have bits of their own.")
    if len(weights) * sum(count_bytes(tensor) or 0 for tensor, _ in weights) > MAX_READ_BYTES:
        raise StepError("study", f"the graph has {len(weights)} weights, too many and too large to try each alone.")
    axes = read_batch_axes(model.graph)
    calibrating, batches = split_batches(calibration, axes, samples, held_back)
    work = count_macs(model, shapes_of_one(batches[0], axes)).work * len(weights)
    batches = affordable_batches(model, batches, axes, work)
    step = StoreWeights(weight_bits=BITS, samples=calibrating)
    rows = attempt(lambda: measure_rows(model, step, calibration)).result or {}
    layers = {layer.weight: layer.node for layer in find_layers(model)}
    expected = run_all_batches(model, batches)
    noises = []
    for tensor, is_top in weights:
        exact = onnx.TensorProto.FromString(tensor.SerializeToString())
        stored, scale = round_stored_weight(tensor_values(tensor), rows.get(tensor.name) if is_top else None, BITS)
        tensor.CopyFrom(numpy_helper.from_array((stored * scale).astype(np.float32), tensor.name))
        noise_ratio = measure_noise(expected, run_all_batches(model, batches))
        tensor.CopyFrom(exact)
        noises.append(
            WeightNoise(
                weight=tensor.name,
                values=int(np.prod(tensor.dims)),
                noise_ratio=noise_ratio,
                is_packed=is_top,
                node=layers.get(tensor.name, "") if is_top else "",
            )
        )
    return BitStudy(noises=tuple(noises))


def measure_noise(expected: Sequence[ArrayBatch], found: Sequence[ArrayBatch]) -> float:
    """Return noise over signal in power, the mean over outputs; at most ``_MAX_NOISE``.

    Values that are not finite, such as masked logits, and outputs that are always 0 do not count.

    Raises:
        StepError: nothing counts.
    """
    ratios = []
    for name in expected[0]:
        signal = np.concatenate([batch[name].ravel() for batch in expected]).astype(np.float64)
        noisy = np.concatenate([batch[name].ravel() for batch in found]).astype(np.float64)
        finite = np.isfinite(signal)
        power = float((signal[finite] ** 2).sum())
        if power > 0:
            noise = float(((noisy[finite] - signal[finite]) ** 2).sum())
            ratios.append(min(_MAX_NOISE, noise / power) if np.isfinite(noise) else _MAX_NOISE)
    if not ratios:
        raise StepError("study", "no output of the graph has finite values that are not 0.")
    return float(np.mean(ratios))
