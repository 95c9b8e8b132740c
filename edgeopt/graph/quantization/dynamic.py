"""Dynamic int8: weights are stored in int8, the range of each activation is found when the network runs.

It is for recurrent networks and transformers: their matrix products become faster, and their activations have outliers
that a fixed range handles badly. Tables of embeddings are stored in int8 too. Everything else stays float, convolutions
too. Runs in a subprocess
(``edgeopt.graph.subprocess_worker``).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from edgeopt.errors import StepError
from edgeopt.graph.facts import MATRIX_PRODUCTS, RECURRENT_CELLS
from edgeopt.graph.model import load, read_initializers, save, sort_nodes
from edgeopt.graph.weights.tables import find_tables, match_products, quantize_tables, round_rows
from edgeopt.graph.weights.tied import store_tied_apart
from edgeopt.records.recipe import QuantizeDynamic

_STAGE = "quantize"


def quantize_products(model: onnx.ModelProto, step: QuantizeDynamic) -> onnx.ModelProto:
    """Return the model with its matrix products and LSTM cells in dynamic int8.

    Raises:
        StepError: no product or cell has constant weights.
    """
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
    sort_nodes(quantized.graph)  # the tool's order leaves out what branches and loop bodies read
    tied = match_products(tables, weights, read_initializers(quantized.graph))
    quantize_tables(quantized.graph, {name: round_rows(table) for name, table in tables.items()} | tied)
    return quantized
