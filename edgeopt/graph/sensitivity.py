"""Which calibration serves a network best, and which of its nodes suffer most from int8.

The measure is the signal to quantization noise at the network's outputs, on samples that did not calibrate: it needs no
labels, and it moves before the score does. Runs in a process of its own (``edgeopt.graph.child``).
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime

from edgeopt.graph.facts import macs_of_nodes
from edgeopt.graph.files import arrays
from edgeopt.graph.quantize import OPERATORS, Prepared, prepare, quantize_prepared, read_batches
from edgeopt.graph.ranges import METHODS, Batch
from edgeopt.records.quantization import NodeCost, NodeNoise, Study
from edgeopt.records.recipe import CalibrationMethod, Quantize

MOVES = (
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
CEILING_DB = 120.0
"""Of equal outputs."""


def study(model: onnx.ModelProto, step: Quantize, calibration: Path, held_back: int, *, rank: bool) -> Study:
    """Compare calibration methods, and rank the nodes under the best of them.

    Args:
        model: A float model; it is changed.
        step: Types and number of samples; its ``calibration`` and ``float_nodes`` are not looked at.
        calibration: As in ``quantize.quantize``; the ``held_back`` samples after the first ``step.samples`` are what
            noise is measured on. Where the file has no more, those that calibrated are.
        held_back: How many samples.
        rank: Whether to rank the nodes, which takes a session a node.
    """
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        prepared = prepare(model, calibration, step.samples, Path(folder))
        batches = _held_back(prepared, calibration, step.samples, held_back)
        expected = _outputs(prepared.model, batches)
        plain = msgspec.structs.replace(step, float_nodes=())

        def snr_db(method: CalibrationMethod, only: tuple[str, ...] = ()) -> float:
            quantized = quantize_prepared(prepared, plain, prepared.ranges.find(method), only)
            return signal_to_noise_db(expected, _outputs(quantized, batches))

        found = {method: snr_db(method) for method in METHODS}
        best = max(METHODS, key=lambda method: found[method])
        method = best if found[best] > found["minmax"] + CLEARLY_BETTER_DB else "minmax"
        nodes = _nodes(prepared)
        noises = [(node, snr_db(method, (node.node,))) for node in nodes] if rank else []
    return Study(method_snr_db=found, method=method, nodes=nodes, ranking=_ranking(noises))


def signal_to_noise_db(expected: Sequence[Batch], found: Sequence[Batch]) -> float:
    """Return ten times the logarithm of signal power over noise power; each output's noise is relative to its own."""
    relative = 0.0
    for name in expected[0]:
        wanted = np.concatenate([batch[name].ravel() for batch in expected]).astype(np.float64)
        got = np.concatenate([batch[name].ravel() for batch in found]).astype(np.float64)
        relative += float(((got - wanted) ** 2).sum() / max((wanted**2).sum(), 1e-30))
    ratio = relative / len(expected[0])
    return CEILING_DB if ratio <= 10 ** (-CEILING_DB / 10) else float(-10 * np.log10(ratio))


def _held_back(prepared: Prepared, calibration: Path, samples: int, held_back: int) -> list[Batch]:
    names = [value.name for value in prepared.model.graph.input]
    batches = list(read_batches(calibration, names, samples + held_back))
    counts = list(itertools.accumulate(len(batch[names[0]]) for batch in batches))
    later = [batch for batch, count in zip(batches, counts, strict=True) if count > samples]
    return later or batches[:1]


def _outputs(model: onnx.ModelProto, batches: Sequence[Batch]) -> list[Batch]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return [dict(zip(names, session.run(names, batch), strict=True)) for batch in batches]


def _nodes(prepared: Prepared) -> tuple[NodeCost, ...]:
    weights = arrays(prepared.model.graph)
    macs = {node.name: count for node, count in macs_of_nodes(prepared.model)}
    return tuple(
        NodeCost(
            node=node.name,
            operator=node.op_type,
            weight_bytes=sum(weights[name].nbytes for name in node.input if name in weights),
            macs=macs.get(node.name, 0),
        )
        for node in prepared.model.graph.node
        if node.op_type in OPERATORS and node.op_type not in MOVES and node.name not in prepared.floats
    )


def _ranking(noises: list[tuple[NodeCost, float]]) -> tuple[NodeNoise, ...]:
    """Order nodes by the noise that float takes away, over what float costs there."""
    all_bytes = sum(node.weight_bytes for node, _ in noises) or 1
    all_macs = sum(node.macs for node, _ in noises) or 1
    ranked = [
        NodeNoise(
            node=node.node,
            snr_db=snr_db,
            cost_ratio=(node.weight_bytes / all_bytes + node.macs / all_macs) / 2,
        )
        for node, snr_db in noises
    ]
    return tuple(sorted(ranked, key=lambda noise: -(10 ** (-noise.snr_db / 10)) / (noise.cost_ratio + NODE_COST_RATIO)))
