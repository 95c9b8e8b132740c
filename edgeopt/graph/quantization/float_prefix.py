"""Float prefixes: writes int8 variants of a network whose first layers stay float, to be timed. Runs in a subprocess.

The first layers have few channels and many positions. Int8 gains least there: a depthwise convolution or a swish is
often slower than in float, and there are few weights. From some layer on, int8 pays; only timing tells which.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
import onnx

from edgeopt.graph.compact import compact
from edgeopt.graph.model import read_initializers, save
from edgeopt.graph.quantization.qlinear_fusion import fuse_qlinear
from edgeopt.graph.quantization.sensitivity import MOVEMENT_OPERATORS
from edgeopt.graph.quantization.static import (
    OPERATORS,
    PreparedModel,
    equalize_prepared,
    find_ranges,
    prepare,
    quantize_prepared,
)
from edgeopt.records.recipe import Quantize

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_MAX_PREFIX_COUNT = 12
_MAX_PREFIX_BYTES_RATIO = 0.1
"""Of the weights' bytes, in the longest prefix: in float they take four times the space."""


def write_float_prefixes(
    model: onnx.ModelProto, step: Quantize, calibration: Path, folder: Path, *, fused: bool
) -> tuple[tuple[str, ...], ...]:
    """Write the int8 file as ``0.onnx``, and with more and more of its first nodes in float as ``1.onnx`` and so on.

    Args:
        model: A float model; it is changed.
        step: How it is quantized.
        calibration: As in ``edgeopt.graph.quantization.static.quantize``.
        folder: The folder for the files.
        fused: Whether to write integer operators instead of quantize-dequantize pairs.

    Returns:
        The nodes of each prefix, in the files' order; the first is empty.
    """
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as temporary:
        prepared = prepare(model, calibration, step.samples, Path(temporary))
        if step.equalize:
            prepared = equalize_prepared(prepared, Path(temporary))
        ranges = find_ranges(prepared, step, calibration)
        prefixes = ((), *_find_prefixes(prepared, step))
        for index, prefix in enumerate(prefixes):
            float_nodes = (*step.float_nodes, *prefix)
            variant = quantize_prepared(prepared, msgspec.structs.replace(step, float_nodes=float_nodes), ranges)
            if fused:
                fuse_qlinear(variant)
            compact(variant)
            save(variant, folder / f"{index}.onnx")
    return prefixes


def _find_prefixes(prepared: PreparedModel, step: Quantize) -> list[tuple[str, ...]]:
    """Return the int8 nodes before each of the first layers, except those before anything is computed."""
    graph, float_nodes = prepared.model.graph, {*prepared.float_nodes, *step.float_nodes}
    weight_bytes = {name: values.nbytes for name, values in read_initializers(graph).items()}
    total_bytes = sum(weight_bytes.values())
    prefixes: list[tuple[str, ...]] = []
    prefix: tuple[str, ...] = ()
    used_bytes, computes = 0, False
    for node in graph.node:
        if node.op_type in _LAYERS and computes and prefix not in prefixes:
            prefixes.append(prefix)
        used_bytes += sum(weight_bytes.get(name, 0) for name in node.input)
        if used_bytes > _MAX_PREFIX_BYTES_RATIO * total_bytes or len(prefixes) == _MAX_PREFIX_COUNT:
            break
        if node.op_type in OPERATORS and node.name not in float_nodes:
            prefix = (*prefix, node.name)
            computes = computes or node.op_type not in MOVEMENT_OPERATORS
    return prefixes
