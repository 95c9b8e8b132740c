"""Which calibration serves a network best, and which of its nodes suffer most from int8.

The measure is the signal to quantization noise at the network's outputs, on samples that did not calibrate: it needs no
labels, and it moves before the score does. Runs in a process of its own (``edgeopt.graph.subprocess_worker``).
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx

from edgeopt.graph.facts import macs_of_nodes
from edgeopt.graph.model import arrays
from edgeopt.graph.quantization.activations import ArrayBatch, session_of
from edgeopt.graph.quantization.calibration import METHODS
from edgeopt.graph.quantization.cross_layer_equalization import find_pairs
from edgeopt.graph.quantization.static import (
    OPERATORS,
    Prepared,
    calibration_batches,
    equalized,
    prepare,
    quantize_prepared,
)
from edgeopt.records.quantization import NodeNoise, Preparation, SensitivityStudy
from edgeopt.records.recipe import CalibrationMethod, Quantize

MOVEMENT_OPERATORS = (
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "MaxPool",
    "Relu",
    "Clip",
    "Slice",
    "Split",
    "Gather",
)
"""Operators that follow their input's form and so cost no accuracy of their own."""
CLEARLY_BETTER_DB = 0.5
NODE_COST_RATIO = 0.005
"""What a node in float costs beside its bytes and work: its quantize and dequantize nodes."""
JUDGING_RATIO = 1 / 3
"""Share of the samples that judges where there are few."""
CEILING_DB = 120.0
"""Of equal outputs."""


def study_sensitivity(
    model: onnx.ModelProto, step: Quantize, calibration: Path, held_back: int, *, rank: bool
) -> SensitivityStudy:
    """Compare calibration methods, then what can be done before, and rank the nodes under the best of them.

    Args:
        model: A float model; it is changed.
        step: Types and number of samples; all else in it is not looked at.
        calibration: As in ``quantize.quantize``; the ``held_back`` samples after the first ``step.samples`` are what
            noise is measured on. Where the file has fewer than both, its last third is; a single batch does both.
        held_back: How many samples.
        rank: Whether to rank the nodes, which takes a session a node.
    """
    names = [value.name for value in model.graph.input]
    samples, batches = _parts(calibration, names, step.samples, held_back)
    plain = msgspec.structs.replace(step, float_nodes=(), equalize=False, correct_bias=False)
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        prepared = prepare(model, calibration, samples, Path(folder))
        expected = _outputs(prepared.model, batches)

        def snr_db(of: Prepared, step: Quantize, method: CalibrationMethod, only: tuple[str, ...] = ()) -> float:
            quantized = quantize_prepared(of, step, of.ranges.find(method), only)
            return signal_to_noise_db(expected, _outputs(quantized, batches))

        by_method = {method: snr_db(prepared, plain, method) for method in METHODS}
        best = max(METHODS, key=lambda method: by_method[method])
        method = best if by_method[best] > by_method["minmax"] + CLEARLY_BETTER_DB else "minmax"

        corrected = msgspec.structs.replace(plain, correct_bias=True)
        prepared_as: dict[Preparation, tuple[Prepared, Quantize]] = {"bias correction": (prepared, corrected)}
        if find_pairs(prepared.model.graph, arrays(prepared.model.graph)):
            scaled = equalized(prepared, Path(folder))
            prepared_as |= {"equalization": (scaled, plain), "equalization and bias correction": (scaled, corrected)}
        by_preparation = {name: snr_db(*how, method) for name, how in prepared_as.items()}
        first = max(by_preparation, key=lambda name: by_preparation[name])
        preparation = first if by_preparation[first] > by_method[method] + CLEARLY_BETTER_DB else None
        ranked = prepared if preparation is None else prepared_as[preparation][0]

        nodes = _nodes(prepared) if rank else ()
        noises = [(node, snr_db(ranked, plain, method, (node.name,))) for node in nodes]
    return SensitivityStudy(
        method_snr_db=by_method,
        method=method,
        preparation_snr_db=by_preparation,
        preparation=preparation,
        ranking=_ranking(noises),
    )


def signal_to_noise_db(expected: Sequence[ArrayBatch], found: Sequence[ArrayBatch]) -> float:
    """Return ten times the logarithm of signal power over noise power; each output's noise is relative to its own."""
    relative = 0.0
    for name in expected[0]:
        wanted = np.concatenate([batch[name].ravel() for batch in expected]).astype(np.float64)
        got = np.concatenate([batch[name].ravel() for batch in found]).astype(np.float64)
        relative += float(((got - wanted) ** 2).sum() / max((wanted**2).sum(), 1e-30))
    ratio = relative / len(expected[0])
    return CEILING_DB if ratio <= 10 ** (-CEILING_DB / 10) else float(-10 * np.log10(ratio))


def _parts(calibration: Path, names: list[str], samples: int, held_back: int) -> tuple[int, list[ArrayBatch]]:
    """Return how many samples calibrate, and the batches after them: whole ones, for graphs of a fixed batch size."""
    batches = list(calibration_batches(calibration, names, samples + held_back))
    counts = list(itertools.accumulate(len(batch[names[0]]) for batch in batches))
    if len(batches) == 1:
        return min(samples, counts[0]), batches
    wanted = min(samples, math.ceil(counts[-1] * (1 - JUDGING_RATIO)))
    cut = next((index for index, count in enumerate(counts[:-1], 1) if count >= wanted), len(batches) - 1)
    return counts[cut - 1], batches[cut:]


def _outputs(model: onnx.ModelProto, batches: Sequence[ArrayBatch]) -> list[ArrayBatch]:
    session = session_of(model)
    names = [value.name for value in session.get_outputs()]
    return [dict(zip(names, session.run(names, batch), strict=True)) for batch in batches]


class _NodeCost(NamedTuple):
    """A node that int8 takes in, and what float would cost there."""

    name: str
    weight_bytes: int
    """Of its constant inputs, in float32."""
    macs: int


def _nodes(prepared: Prepared) -> tuple[_NodeCost, ...]:
    weights = arrays(prepared.model.graph)
    macs = {node.name: count for node, count in macs_of_nodes(prepared.model)}
    return tuple(
        _NodeCost(
            name=node.name,
            weight_bytes=sum(weights[name].nbytes for name in node.input if name in weights),
            macs=macs.get(node.name, 0),
        )
        for node in prepared.model.graph.node
        if node.op_type in OPERATORS and node.op_type not in MOVEMENT_OPERATORS and node.name not in prepared.floats
    )


def _ranking(noises: list[tuple[_NodeCost, float]]) -> tuple[NodeNoise, ...]:
    """Order nodes by the noise that float takes away, over what float costs there."""
    all_bytes = sum(node.weight_bytes for node, _ in noises) or 1
    all_macs = sum(node.macs for node, _ in noises) or 1
    ranked = [
        NodeNoise(
            node=node.name,
            snr_db=snr_db,
            cost_ratio=(node.weight_bytes / all_bytes + node.macs / all_macs) / 2,
        )
        for node, snr_db in noises
    ]
    return tuple(sorted(ranked, key=lambda noise: -(10 ** (-noise.snr_db / 10)) / (noise.cost_ratio + NODE_COST_RATIO)))
