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
from edgeopt.graph.weights.int8_weights import measure_rows, round_stored_weight
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
) -> onnx.ModelProto:
    """Return the model with its matrix products and LSTM cells in dynamic int8.

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
    few_bits = _round_to_few_bits(model, step, calibration)
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
    return quantized


def _round_to_few_bits(
    model: onnx.ModelProto, step: QuantizeDynamic, calibration: Path | None
) -> dict[str, tuple[NDArray[np.int8], NDArray[np.float32]]]:
    """Return the weights of products that have fewer bits than 8: ``(depth, outputs)``, and a scale for each output."""
    rounding = StoreWeights(weight_bits=step.weight_bits, bits_of=step.bits_of, samples=step.samples)
    bits_of, found = dict(step.bits_of), {}
    for name, rows in measure_rows(model, rounding, calibration).items():
        layer, bits = rows.layer, bits_of.get(name, step.weight_bits)
        if bits >= _INT8_BITS or layer.kernel or layer.is_recurrent:
            continue
        values, scale = round_stored_weight(read_initializers(model.graph)[name], rows, bits)
        if scale.size == values.shape[layer.channel_axis] == scale.shape[layer.channel_axis]:
            found[name] = (values.T if layer.is_transposed else values).astype(np.int8), scale.reshape(-1)
    return found


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
