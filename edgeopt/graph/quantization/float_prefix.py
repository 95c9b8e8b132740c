"""Fronts: int8 forms of a network whose first layers stay float, to be timed. Runs in a process of its own.

There, in few channels and many positions, int8 gains least: a depthwise convolution or a swish is often slower than in
float, and the weights are few. From some layer on int8 pays; where that is, only the clock says.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
import onnx

from edgeopt.graph.compact import compact
from edgeopt.graph.model import arrays, save
from edgeopt.graph.quantization.qlinear_fusion import fuse_qlinear
from edgeopt.graph.quantization.sensitivity import MOVEMENT_OPERATORS
from edgeopt.graph.quantization.static import OPERATORS, Prepared, equalized, prepare, quantize_prepared, ranges_of
from edgeopt.records.recipe import Quantize

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MOST_FRONTS = 12
MAX_PREFIX_BYTES_RATIO = 0.1
"""Of the weights, in the longest front: in float they are four times as large."""


def write_float_prefixes(
    model: onnx.ModelProto, step: Quantize, calibration: Path, folder: Path, *, fused: bool
) -> tuple[tuple[str, ...], ...]:
    """Write the int8 form as ``0.onnx``, and with ever more of its first nodes in float as ``1.onnx`` and so on.

    Args:
        model: A float model; it is changed.
        step: How it is quantized.
        calibration: As in ``quantize.quantize``.
        folder: Where the files go.
        fused: Whether integer operators are written out.

    Returns:
        The nodes of each front, in the files' order; the first is empty.
    """
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as temporary:
        prepared = prepare(model, calibration, step.samples, Path(temporary))
        if step.equalize:
            prepared = equalized(prepared, Path(temporary))
        ranges = ranges_of(prepared, step, calibration)
        fronts = ((), *_fronts(prepared, step))
        for index, front in enumerate(fronts):
            floats = (*step.float_nodes, *front)
            form = quantize_prepared(prepared, msgspec.structs.replace(step, float_nodes=floats), ranges)
            if fused:
                fuse_qlinear(form)
            compact(form)
            save(form, folder / f"{index}.onnx")
    return fronts


def _fronts(prepared: Prepared, step: Quantize) -> list[tuple[str, ...]]:
    """Return what comes before each of the first layers, as far as int8 takes it in."""
    graph, floats = prepared.model.graph, {*prepared.floats, *step.float_nodes}
    weights = {name: values.nbytes for name, values in arrays(graph).items()}
    total = sum(weights.values())
    found: list[tuple[str, ...]] = []
    front: tuple[str, ...] = ()
    used, computes = 0, False
    for node in graph.node:
        if node.op_type in _LAYERS and computes and front not in found:
            found.append(front)
        used += sum(weights.get(name, 0) for name in node.input)
        if used > MAX_PREFIX_BYTES_RATIO * total or len(found) == MOST_FRONTS:
            break
        if node.op_type in OPERATORS and node.name not in floats:
            front = (*front, node.name)
            computes = computes or node.op_type not in MOVEMENT_OPERATORS
    return found
