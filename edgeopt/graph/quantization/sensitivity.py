"""Finds the best calibration method for a network, and ranks its nodes by the noise that int8 adds.

The measure is the signal-to-quantization-noise ratio at the network's outputs, on samples that did not calibrate. It
needs no labels, and it changes before the score does. Runs in a subprocess (``edgeopt.graph.jobs``).
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx

from edgeopt.graph.counting.macs import MacCount, count_macs
from edgeopt.graph.model import find_consumers, read_batch_axes, read_initializers
from edgeopt.graph.quantization.activations import ArrayBatch, open_cpu_session
from edgeopt.graph.quantization.calibration import CALIBRATION_METHODS
from edgeopt.graph.quantization.cross_layer_equalization import find_convolution_pairs
from edgeopt.graph.quantization.static import (
    OPERATORS,
    PreparedModel,
    count_batch,
    equalize_prepared,
    prepare,
    quantize_prepared,
    read_calibration_batches,
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
"""Operators that keep their input's quantization and so add no noise."""
_MIN_SNR_GAIN_DB = 0.5
"""A method or preparation replaces the default only if it is better by this much."""
_NODE_COST_RATIO = 0.005
"""Cost of a node in float besides its bytes and work: its quantize and dequantize nodes."""
_HELD_BACK_RATIO = 1 / 3
"""Share of the samples that is held back if there are too few."""
MAX_STUDY_WORK = 3_000_000_000_000
"""Of all runs of a study (``MacCount.work``): about a minute on one core. Larger networks are studied on fewer
samples."""
MAX_SINGLE_NODES = 144
"""Of more nodes, not each is measured by itself."""
_MAX_WRITTEN_NODES = 100_000
"""Of all graphs that a ranking writes and loads, which takes a millisecond for each of their nodes."""
_GROUPS = 48
_MIN_WEIGHTS = 64
"""Values of a constant by which nodes belong together: many nodes may read the same small one, such as 0.5."""
_MAX_SNR_DB = 120.0
"""The ratio of equal outputs."""


def study_sensitivity(
    model: onnx.ModelProto, step: Quantize, calibration: Path, held_back: int, *, rank: bool
) -> SensitivityStudy:
    """Compare calibration methods, then preparations, and rank the nodes with the best method.

    Args:
        model: A float model; it is changed.
        step: Types and number of samples; the rest of it is ignored.
        calibration: As in ``edgeopt.graph.quantization.static.quantize``. Noise is measured on the ``held_back``
            samples after the first ``step.samples``. If the file has fewer samples, it is measured on the last third;
            a single batch both calibrates and measures.
        held_back: Number of samples.
        rank: Whether to rank the nodes, which takes one session per node.
    """
    axes = read_batch_axes(model.graph)
    samples, batches = split_batches(calibration, axes, step.samples, held_back)
    plain = msgspec.structs.replace(step, float_nodes=(), equalize=False, correct_bias=False)
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        prepared = prepare(model, calibration, samples, Path(folder))
        expected = run_all_batches(prepared.model, batches)

        def measure(candidate: PreparedModel, step: Quantize, method: CalibrationMethod) -> float:
            quantized = quantize_prepared(candidate, step, candidate.ranges.find(method))
            return measure_snr_db(expected, run_all_batches(quantized, batches))

        by_method = {method: measure(prepared, plain, method) for method in CALIBRATION_METHODS}
        best_method = max(CALIBRATION_METHODS, key=lambda method: by_method[method])
        method = best_method if by_method[best_method] > by_method["minmax"] + _MIN_SNR_GAIN_DB else "minmax"

        corrected = msgspec.structs.replace(plain, correct_bias=True)
        preparations: dict[Preparation, tuple[PreparedModel, Quantize]] = {"bias correction": (prepared, corrected)}
        if find_convolution_pairs(prepared.model.graph, read_initializers(prepared.model.graph)):
            equalized = equalize_prepared(prepared, Path(folder))
            preparations |= {
                "equalization": (equalized, plain),
                "equalization and bias correction": (equalized, corrected),
            }
        by_preparation = {name: measure(*candidate, method) for name, candidate in preparations.items()}
        best_preparation = max(by_preparation, key=lambda name: by_preparation[name])
        preparation = (
            best_preparation if by_preparation[best_preparation] > by_method[method] + _MIN_SNR_GAIN_DB else None
        )
        ranked = prepared if preparation is None else preparations[preparation][0]

        noises = _study_nodes(prepared, ranked, plain, method, batches, axes) if rank else []
    return SensitivityStudy(
        method_snr_db=by_method,
        method=method,
        preparation_snr_db=by_preparation,
        preparation=preparation,
        ranking=_rank(noises),
    )


def _study_nodes(
    prepared: PreparedModel,
    ranked: PreparedModel,
    step: Quantize,
    method: CalibrationMethod,
    batches: Sequence[ArrayBatch],
    axes: Mapping[str, int | None],
) -> list[tuple[_NodeCost, float]]:
    """Return the nodes that int8 covers, each with the ratio of ``measure_nodes``.

    Args:
        prepared: The network as it is.
        ranked: The same after the preparation that was chosen.
        step: Types and number of samples.
        method: Of the ranges.
        batches: On which the noise is measured, as many as a study may run.
        axes: Input to the axis of its samples.
    """
    counted = count_macs(prepared.model, shapes_of_one(batches[0], axes))
    nodes = _list_node_costs(prepared, counted)
    if not nodes:
        return []
    most = max(_GROUPS, min(MAX_SINGLE_NODES, _MAX_WRITTEN_NODES // len(prepared.model.graph.node)))
    used = affordable_batches(prepared.model, batches, axes, counted.work * min(most, len(nodes)))
    expected = run_all_batches(prepared.model, used)
    ranges = ranked.ranges.find(method)

    def measure(names: tuple[str, ...]) -> float:
        return measure_snr_db(expected, run_all_batches(quantize_prepared(ranked, step, ranges, names), used))

    return measure_nodes(nodes, measure, most)


def measure_nodes(
    nodes: Sequence[_NodeCost], measure: Callable[[tuple[str, ...]], float], most: int = MAX_SINGLE_NODES
) -> list[tuple[_NodeCost, float]]:
    """Return the signal-to-noise ratio in decibels with only one node in int8, for each node.

    Nodes that share weights, as the steps of an unrolled loop do, are measured together: their weights are in int8 for
    all or for none. Each measurement writes and loads a graph, so of many nodes neighbours are measured together first.
    Then those of the noisiest groups are measured one by one. Noise that was measured together is shared out evenly.

    Args:
        nodes: In the order of the graph.
        measure: From the names of the nodes in int8 to the ratio.
        most: How many measurements are made.
    """
    units = _join_by_weights(nodes)
    noises: dict[str, float] = {}

    def measure_together(group: Sequence[_NodeCost]) -> float:
        snr_db = measure(tuple(node.name for node in group))
        noises.update({node.name: snr_db + 10 * math.log10(len(group)) for node in group})
        return snr_db

    left, size = most, 1
    if len(units) > most:
        size = math.ceil(len(units) / _GROUPS)
        left -= math.ceil(len(units) / size)
    groups = [units[start : start + size] for start in range(0, len(units), size)]
    found = [(measure_together([node for unit in group for node in unit]), group) for group in groups]
    for _, group in sorted(found, key=lambda one: one[0]):
        left -= len(group)
        if size > 1 and left >= 0:
            for unit in group:
                measure_together(unit)
    return [(node, noises[node.name]) for node in nodes]


def _join_by_weights(nodes: Sequence[_NodeCost]) -> list[list[_NodeCost]]:
    """Return the nodes in units: those that share weights, or a node by itself."""
    units: dict[str, list[_NodeCost]] = {}
    for node in nodes:
        units.setdefault(node.weights or node.name, []).append(node)
    return list(units.values())


def measure_snr_db(expected: Sequence[ArrayBatch], quantized: Sequence[ArrayBatch]) -> float:
    """Return signal power over noise power in decibels: each output's noise is relative to its own signal."""
    relative_noise = 0.0
    for name in expected[0]:
        signal = np.concatenate([batch[name].ravel() for batch in expected]).astype(np.float64)
        noisy = np.concatenate([batch[name].ravel() for batch in quantized]).astype(np.float64)
        relative_noise += float(((noisy - signal) ** 2).sum() / max((signal**2).sum(), 1e-30))
    ratio = relative_noise / len(expected[0])
    return _MAX_SNR_DB if ratio <= 10 ** (-_MAX_SNR_DB / 10) else float(-10 * np.log10(ratio))


def split_batches(
    calibration: Path, axes: Mapping[str, int | None], samples: int, held_back: int
) -> tuple[int, list[ArrayBatch]]:
    """Return how many samples calibrate, and the batches after them; a graph may need whole batches."""
    batches = list(read_calibration_batches(calibration, axes, samples + held_back))
    counts = list(itertools.accumulate(count_batch(batch, axes) for batch in batches))
    if len(batches) == 1:
        return min(samples, counts[0]), batches
    wanted = min(samples, math.ceil(counts[-1] * (1 - _HELD_BACK_RATIO)))
    cut = next((index for index, count in enumerate(counts[:-1], 1) if count >= wanted), len(batches) - 1)
    return counts[cut - 1], batches[cut:]


def run_all_batches(model: onnx.ModelProto, batches: Sequence[ArrayBatch]) -> list[ArrayBatch]:
    """Return the outputs of a model for each batch, by name."""
    session = open_cpu_session(model)
    names = [value.name for value in session.get_outputs()]
    return [dict(zip(names, session.run(names, batch), strict=True)) for batch in batches]


class _NodeCost(NamedTuple):
    """A node that int8 covers, and its cost in float."""

    name: str
    weight_bytes: int
    """Its constant inputs, in float32; its share of those that other nodes read too."""
    macs: int
    weights: str = ""
    """The name of its largest constant input, if there is one of more than a few values."""


def shapes_of_one(batch: ArrayBatch, axes: Mapping[str, int | None]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each input for one sample of a batch."""
    return {
        name: tuple(1 if axis == axes.get(name) else size for axis, size in enumerate(values.shape))
        for name, values in batch.items()
    }


def _list_node_costs(prepared: PreparedModel, counted: MacCount) -> tuple[_NodeCost, ...]:
    weights = read_initializers(prepared.model.graph)
    macs = {node.name: count for node, count in counted.by_node}
    readers = find_consumers(prepared.model.graph)
    return tuple(
        _NodeCost(
            name=node.name,
            weight_bytes=sum(weights[name].nbytes // len(readers[name]) for name in node.input if name in weights),
            macs=macs.get(node.name, 0),
            weights=max(
                (name for name in node.input if name in weights and weights[name].size >= _MIN_WEIGHTS),
                key=lambda name: weights[name].size,
                default="",
            ),
        )
        for node in prepared.model.graph.node
        if node.op_type in OPERATORS
        and node.op_type not in MOVEMENT_OPERATORS
        and node.name not in prepared.float_nodes
    )


def affordable_batches(
    model: onnx.ModelProto,
    batches: Sequence[ArrayBatch],
    axes: Mapping[str, int | None],
    work_of_sample: int,
    max_work: int = MAX_STUDY_WORK,
) -> list[ArrayBatch]:
    """Return the batches that a study may run so that it takes no more than some work in all, or the least there is.

    Args:
        model: That runs; where its batch is fixed, a batch stays whole.
        batches: That it could run.
        axes: Input to the axis of its samples.
        work_of_sample: Of all its runs on one sample, as ``MacCount.work``.
        max_work: In all.
    """
    counts = list(itertools.accumulate(count_batch(batch, axes) for batch in batches))
    count = sum(total * work_of_sample <= max_work for total in counts)
    if count:
        return list(batches[:count])
    sizes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    is_fixed = any(axis is not None and sizes[name][axis].dim_value > 0 for name, axis in axes.items() if name in sizes)
    samples = counts[0] if is_fixed else max(1, max_work // max(1, work_of_sample))
    return [
        {
            name: values if axes.get(name) is None else values.take(range(min(samples, counts[0])), axes[name])
            for name, values in batches[0].items()
        }
    ]


def _rank(noises: list[tuple[_NodeCost, float]]) -> tuple[NodeNoise, ...]:
    """Order nodes by the noise that float removes, over its cost."""
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
    return tuple(
        sorted(ranked, key=lambda noise: -(10 ** (-noise.snr_db / 10)) / (noise.cost_ratio + _NODE_COST_RATIO))
    )
