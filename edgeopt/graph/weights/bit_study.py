"""Measures how much fewer bits of each weight disturb the outputs of a network.

One weight after the other is rounded to ``BITS`` bits, as ``edgeopt.graph.weights.int8_weights`` would, and the noise
at the outputs is measured on samples that did not calibrate. Runs in a subprocess (``edgeopt.graph.jobs``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from edgeopt.errors import StepError
from edgeopt.graph.counting.macs import count_macs
from edgeopt.graph.model import lift_constants, lower_ir, read_batch_axes, walk_graphs
from edgeopt.graph.preparation.attempts import attempt
from edgeopt.graph.quantization.sensitivity import (
    MAX_RANKING_MACS,
    affordable_batches,
    measure_snr_db,
    run_all_batches,
    shapes_of_one,
    split_batches,
)
from edgeopt.graph.weights.int8_weights import find_weights, measure_rows, round_stored_weight
from edgeopt.model_files.tensors import count_bytes, tensor_values
from edgeopt.records.quantization import BitStudy, WeightNoise
from edgeopt.records.recipe import StoreWeights, WeightBits

BITS: WeightBits = 5
"""In the middle of what is tried: each bit more or less is a quarter or four times the noise."""
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
    macs = count_macs(model, shapes_of_one(batches[0], axes)).total * len(weights)
    batches = batches[: affordable_batches(batches, axes, macs, MAX_RANKING_MACS)]
    step = StoreWeights(weight_bits=BITS, samples=calibrating)
    rows = attempt(lambda: measure_rows(model, step, calibration)).result or {}
    expected = run_all_batches(model, batches)
    noises = []
    for tensor, is_top in weights:
        exact = onnx.TensorProto.FromString(tensor.SerializeToString())
        stored, scale = round_stored_weight(tensor_values(tensor), rows.get(tensor.name) if is_top else None, BITS)
        tensor.CopyFrom(numpy_helper.from_array((stored * scale).astype(np.float32), tensor.name))
        snr_db = measure_snr_db(expected, run_all_batches(model, batches))
        tensor.CopyFrom(exact)
        values = int(np.prod(tensor.dims))
        noises.append(WeightNoise(weight=tensor.name, values=values, noise_ratio=10 ** (-snr_db / 10)))
    return BitStudy(noises=tuple(noises))
