"""Weight-only integers: the weights of matrix products get 4 or 8 bits, tables of embeddings 8; activations stay float.

ONNX Runtime's ``MatMulNBits`` (domain ``com.microsoft``) takes the weights of ``A (m, k) x B (k, n)`` in blocks
along k, each with its own scale and zero point. A block's range is narrowed to the one with the smallest square error:
with only 15 steps, a rare large weight costs the others too much (Nagel et al., 2021, section 2.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgeopt.errors import StepError
from edgeopt.graph.facts import MATRIX_PRODUCTS
from edgeopt.graph.model import (
    MICROSOFT_DOMAIN,
    Arrays,
    drop_unused_initializers,
    lift_constants,
    read_batch_axes,
    read_initializers,
    replace_nodes,
)
from edgeopt.graph.preparation.attempts import attempt
from edgeopt.graph.quantization.static import read_calibration_batches
from edgeopt.graph.rounding.compensation import Grid, Moments, round_with_compensation
from edgeopt.graph.rounding.moments import find_layers, measure_moments
from edgeopt.graph.weights.matmul_nbits import pack_bits
from edgeopt.graph.weights.tables import find_tables, quantize_tables, round_rows
from edgeopt.graph.weights.tied import store_tied_apart
from edgeopt.records.recipe import QuantizeWeights

_STAGE = "quantize"
_INT8_ACCURACY_LEVEL = 4
"""``accuracy_level``: the kernel rounds activations to int8 block by block, which is fastest."""
_KEPT_RATIOS = np.linspace(1.0, 0.6, 9, dtype=np.float32)
"""Parts of a block's range to try."""
_PART_VALUES = 2**24
"""Weights that are rounded at a time."""
_Floats = NDArray[np.float32]


def quantize_weights(
    model: onnx.ModelProto, step: QuantizeWeights, calibration: Path | None = None
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return the model with the weights of its matrix products in 4 or 8 bits, its tables in 8, and notes.

    If the graph cannot be run over the calibration samples, each weight is rounded to the nearest step.

    Args:
        model: A float model; it is changed.
        step: Bits, block, and the samples over which rounding errors cancel.
        calibration: A batch file with the names of the graph's inputs; needed if there are such samples.

    Raises:
        StepError: there is no table, and no product has constant weights.
    """
    graph = model.graph
    lift_constants(graph)
    store_tied_apart(graph)
    measured = attempt(lambda: _measure_moments(model, step, calibration))
    moments = measured.result or {}
    constants, tables = read_initializers(graph), find_tables(graph)
    nodes: list[onnx.NodeProto] = []
    stored: set[str] = set()
    for index, node in enumerate(graph.node):
        weights = _read_weights(node, constants)
        if weights is None:
            nodes.append(node)
            continue
        name = node.name or f"{node.op_type}_{index}"
        nodes += _make_product(graph, node, name, weights, step, constants, stored, moments)
    if not stored and not tables:
        raise StepError(
            _STAGE, "this graph has no table, and no matrix product with constant weights: this variant is skipped."
        )
    replace_nodes(graph, nodes)
    quantize_tables(graph, {name: round_rows(table) for name, table in tables.items()})
    drop_unused_initializers(graph)
    if stored and all(entry.domain != MICROSOFT_DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT_DOMAIN, 1))
    if measured.reason is None:
        return model, ()
    return model, (f"quantize: weights rounded to the nearest step, without the samples ({measured.reason})",)


def round_blocks(weights: _Floats, bits: int, block: int) -> tuple[NDArray[np.uint8], _Floats, NDArray[np.uint8]]:
    """Round weights in blocks.

    Args:
        weights: ``(k, n)``.
        bits: Bits per weight.
        block: Number of weights along k that share a scale.

    Returns:
        Values ``(n, blocks, block)``, scales ``(n, blocks)`` and zero points ``(n, blocks)``; the last block is padded
        with zeros.
    """
    depth, columns = weights.shape
    step = max(1, _PART_VALUES // max(1, depth))
    if columns > step:  # a large language model's last layer would take ten times its weights
        parts = [round_blocks(weights[:, start : start + step], bits, block) for start in range(0, columns, step)]
        values, scales, zeros = (np.concatenate(part) for part in zip(*parts, strict=True))
        return values, scales, zeros
    count = math.ceil(depth / block)
    padded = np.zeros((columns, count * block), np.float32)
    padded[:, :depth] = weights.T
    blocks = padded.reshape(columns, count, block)
    low, high = np.minimum(blocks.min(2), 0), np.maximum(blocks.max(2), 0)
    max_value = 2**bits - 1
    best: list[NDArray[Any]] = []
    for kept in _KEPT_RATIOS:
        scale = (high - low) * kept / max_value
        scale = np.where(scale > 0, scale, 1).astype(np.float32)
        zero = np.clip(np.rint(-low * kept / scale), 0, max_value)
        values = np.clip(np.rint(blocks / scale[..., None]) + zero[..., None], 0, max_value)
        error = (((values - zero[..., None]) * scale[..., None] - blocks) ** 2).sum(2)
        if not best:
            best = [error, values, scale, zero]
            continue
        better = error < best[0]
        for index, tried in enumerate((error, values, scale, zero)):
            best[index] = np.where(better[..., None] if tried.ndim == 3 else better, tried, best[index])
    return best[1].astype(np.uint8), best[2].astype(np.float32), best[3].astype(np.uint8)


def round_in_blocks(
    weights: _Floats,
    scales: _Floats,
    zeros: NDArray[np.uint8],
    shape: tuple[int, ...],
    bits: int,
    moments: Moments,
) -> NDArray[np.uint8]:
    """Round weights with the scales and zero points of ``round_blocks``, so that errors cancel over samples.

    Args:
        weights: ``(k, n)``.
        scales: ``(n, blocks)``.
        zeros: ``(n, blocks)``.
        shape: ``(n, blocks, block)``.
        bits: Bits per weight.
        moments: Of the product's inputs, ``(1, k, k)``.

    Returns:
        Values of that shape; the padding has the value of a zero.
    """
    columns, blocks, block = shape
    depth = len(weights)
    scale, zero = (np.repeat(part.astype(np.float64), block, axis=1) for part in (scales, zeros))
    values = zero.copy()
    grid = Grid(scale[None, :, :depth], zero[None, :, :depth], 0, 2**bits - 1)
    values[:, :depth] = round_with_compensation(weights.T[None], grid, moments)[0]
    return values.reshape(columns, blocks, block).astype(np.uint8)


def _measure_moments(model: onnx.ModelProto, step: QuantizeWeights, calibration: Path | None) -> dict[str, Moments]:
    """Return the moments of the inputs of products, by the name of their weights; none if no samples are asked for."""
    if not step.samples:
        return {}
    if calibration is None:
        raise StepError(_STAGE, "needs a calibration file, but none was given.")
    path, axes = calibration, read_batch_axes(model.graph)
    layers = [layer for layer in find_layers(model) if not layer.kernel]
    return measure_moments(model, layers, lambda: read_calibration_batches(path, axes, step.samples))


def _read_weights(node: onnx.NodeProto, constants: Arrays) -> _Floats | None:
    """Return the weights ``(k, n)`` of a product that can be replaced; None for any other node."""
    if node.op_type not in MATRIX_PRODUCTS or node.input[1] not in constants:
        return None
    weights = constants[node.input[1]]
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if weights.ndim != 2 or weights.dtype != np.float32 or attributes.get("transA", 0):
        return None
    if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
        return None
    return weights.T if attributes.get("transB", 0) else weights


def _make_product(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    name: str,
    weights: _Floats,
    step: QuantizeWeights,
    constants: Arrays,
    stored: set[str],
    moments: Mapping[str, Moments],
) -> list[onnx.NodeProto]:
    """Return the nodes that replace a product, and store its weights in the graph; tied weights are stored once."""
    key = f"{node.input[1]}_{'t' if weights is not constants[node.input[1]] else 'n'}_{step.bits}bits"
    names = [f"{key}_{part}" for part in ("values", "scales", "zeros")]
    if key not in stored:
        values, scales, zeros = round_blocks(weights, step.bits, step.block)
        if node.input[1] in moments:
            values = round_in_blocks(weights, scales, zeros, values.shape, step.bits, moments[node.input[1]])
        parts: tuple[NDArray[Any], ...] = (
            pack_bits(values, step.bits),
            scales.ravel(),
            pack_bits(zeros, step.bits).ravel(),
        )
        graph.initializer.extend(numpy_helper.from_array(part, label) for part, label in zip(parts, names, strict=True))
        stored.add(key)
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    product = helper.make_node(
        "MatMulNBits",
        [node.input[0], *names],
        [f"{name}_product" if bias else node.output[0]],
        name,
        domain=MICROSOFT_DOMAIN,
        K=weights.shape[0],
        N=weights.shape[1],
        bits=step.bits,
        block_size=step.block,
        accuracy_level=_INT8_ACCURACY_LEVEL,
    )
    if not bias:
        return [product]
    return [product, helper.make_node("Add", [product.output[0], bias], list(node.output), f"{name}_bias")]
