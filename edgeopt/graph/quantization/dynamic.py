"""Dynamic int8: weights are stored in int8, the range of each activation is found when the network runs.

It is for recurrent networks and transformers: their matrix products become faster, and their activations have outliers
that a fixed range handles badly. Tables of embeddings are stored in int8 too. Everything else stays float, convolutions
too. Runs in a subprocess
(``edgeopt.graph.jobs``).
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
from edgeopt.graph.weights.tables import find_tables, match_products, quantize_tables, round_rows
from edgeopt.graph.weights.tied import store_tied_apart
from edgeopt.records.recipe import QuantizeDynamic

_STAGE = "quantize"
_LEVELS = 127
_REDUCED_LEVELS = 63
"""With 7 bits, sums of two products fit into 16 bits on processors without VNNI."""


def quantize_products(model: onnx.ModelProto, step: QuantizeDynamic) -> onnx.ModelProto:
    """Return the model with its matrix products and LSTM cells in dynamic int8.

    Raises:
        StepError: no product or cell has constant weights.
    """
    lower_ir(model)  # which lets initializers be no inputs
    lift_constants(model.graph)
    store_tied_apart(model.graph)
    weights, tables = read_initializers(model.graph), find_tables(model.graph)
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
    sort_nodes(quantized.graph)  # the tool's order leaves out what branches and loop bodies read
    tied = match_products(tables, weights, read_initializers(quantized.graph))
    quantize_tables(quantized.graph, {name: round_rows(table) for name, table in tables.items()} | tied)
    return quantized


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
