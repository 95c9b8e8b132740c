"""Dynamic int8: weights are stored in int8, the range of each activation is found when the network runs.

It is for recurrent networks and transformers: their matrix products become faster, and their activations have outliers
that a fixed range handles badly. Tables of embeddings are stored in int8 too. Everything else stays float, convolutions
too. Weights of products and tables may have fewer bits than 8: they are int8 tensors still, which are then stored
densely. Runs in a subprocess (``edgeopt.graph.jobs``).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from edgeopt.errors import StepError
from edgeopt.graph.facts import MATRIX_PRODUCTS, RECURRENT_CELLS
from edgeopt.graph.model import lift_constants, load, lower_ir, read_initializers, save, sort_nodes
from edgeopt.graph.preparation.attempts import attempt
from edgeopt.graph.rounding.compensation import find_grid, round_with_compensation
from edgeopt.graph.rounding.moments import find_layers
from edgeopt.graph.weights.int8_weights import measure_rows
from edgeopt.graph.weights.tables import find_tables, match_products, quantize_tables, round_rows
from edgeopt.graph.weights.tied import store_tied_apart
from edgeopt.records.recipe import QuantizeDynamic, StoreWeights

_STAGE = "quantize"
_INT8_BITS = 8
_LEVELS = 127
_REDUCED_LEVELS = 63
"""With 7 bits, sums of two products fit into 16 bits on processors without VNNI."""


def quantize_products(
    model: onnx.ModelProto, step: QuantizeDynamic, calibration: Path | None = None
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return the model with its matrix products and LSTM cells in dynamic int8, and notes.

    Args:
        model: Any model; it is changed.
        step: What stays float, and the bits of weights.
        calibration: A batch file with the names of the graph's inputs; needed if weights have few bits.

    Raises:
        StepError: no product or cell has constant weights.
    """
    lower_ir(model)  # which lets initializers be no inputs
    lift_constants(model.graph)
    store_tied_apart(model.graph)
    weights, tables = read_initializers(model.graph), find_tables(model.graph)
    few_bits, notes = _round_to_few_bits(model, step, calibration)
    quantizable = [
        node
        for node in model.graph.node
        if node.op_type in (*MATRIX_PRODUCTS, *RECURRENT_CELLS) and node.input[1] in weights
    ]
    if not quantizable:
        raise StepError(_STAGE, "no matrix product of this graph has constant weights: this variant is skipped.")
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        plain, result = Path(folder) / "plain.onnx", Path(folder) / "result.onnx"
        save(model, plain)
        quantize_dynamic(
            plain,
            result,
            op_types_to_quantize=[*MATRIX_PRODUCTS, *RECURRENT_CELLS],
            per_channel=True,
            reduce_range=step.reduce_range,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(step.float_nodes),
        )
        quantized = load(result, _STAGE)
    _round_stacked_matrices(quantized.graph, weights, _REDUCED_LEVELS if step.reduce_range else _LEVELS)
    _store_few_bits(quantized.graph, few_bits)
    sort_nodes(quantized.graph)  # the tool's order leaves out what branches and loop bodies read
    tied = match_products(tables, weights, read_initializers(quantized.graph))
    bits_of = dict(step.bits_of)
    rounded = {name: round_rows(table, bits_of.get(name, step.weight_bits)) for name, table in tables.items()}
    quantize_tables(quantized.graph, rounded | tied)
    return quantized, notes


def _round_to_few_bits(
    model: onnx.ModelProto, step: QuantizeDynamic, calibration: Path | None
) -> tuple[dict[str, tuple[NDArray[np.int8], NDArray[np.float32]]], tuple[str, ...]]:
    """Round the weights of products that have fewer bits than 8.

    Returns:
        Integers ``(depth, outputs)`` and a scale for each output, by the weight's name; and notes.
    """
    bits_of, weights, found = dict(step.bits_of), read_initializers(model.graph), {}
    layers = [
        one for one in find_layers(model) if not one.kernel and bits_of.get(one.weight, step.weight_bits) < _INT8_BITS
    ]
    if not layers:
        return {}, ()
    rounding = StoreWeights(weight_bits=step.weight_bits, bits_of=step.bits_of, samples=step.samples)
    measured = attempt(lambda: measure_rows(model, rounding, calibration))
    for layer in layers:
        rows, bits = layer.to_rows(weights[layer.weight]), bits_of.get(layer.weight, step.weight_bits)
        known = (measured.result or {}).get(layer.weight)
        grid = find_grid(rows, None if known is None else known.moments, bits, any_sign=True)
        integers = grid.round(rows) if known is None else round_with_compensation(rows, grid, known.moments)
        found[layer.weight] = integers[0].T.astype(np.int8), grid.scale[0].reshape(-1).astype(np.float32)
    failed = measured.reason is not None
    notes = (f"quantize: rounded to the nearest step, without the samples ({measured.reason})",) if failed else ()
    return found, notes


def _store_few_bits(
    graph: onnx.GraphProto, rounded: Mapping[str, tuple[NDArray[np.int8], NDArray[np.float32]]]
) -> None:
    """Put weights in few bits, and their scales, in the place of those that ONNX Runtime's quantizer wrote."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for name, (values, scale) in rounded.items():
        integers, factors = (stored.get(f"{name}_{part}") for part in ("quantized", "scale"))
        if integers is None or factors is None or tuple(integers.dims) != values.shape:
            continue  # in a node that stays float
        if tuple(factors.dims) == scale.shape:
            integers.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), integers.name))
            factors.CopyFrom(numpy_helper.from_array(scale, factors.name))


def _round_stacked_matrices(graph: onnx.GraphProto, weights: Mapping[str, NDArray[Any]], levels: int) -> None:
    """Give each column of each matrix a scale, in weights of several matrices such as those of experts.

    ONNX Runtime's quantizer gives a column of all matrices one scale, in a shape that its own kernel refuses. That
    takes one zero point and one scale for each column of each matrix, ``(matrices, 1, columns)``.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "MatMulInteger" or not node.input[1].endswith("_quantized"):
            continue
        name = node.input[1].removesuffix("_quantized")
        if name not in weights or weights[name].ndim < 3:
            continue
        values = weights[name]
        largest = np.abs(values).max(axis=-2, keepdims=True)
        scale = np.where(largest > 0, largest / levels, 1).astype(np.float32)
        integers = np.clip(np.rint(values / scale), -levels, levels).astype(np.int8)
        for part, array in (("quantized", integers), ("scale", scale), ("zero_point", np.zeros_like(scale, np.int8))):
            stored[f"{name}_{part}"].CopyFrom(numpy_helper.from_array(array, f"{name}_{part}"))
