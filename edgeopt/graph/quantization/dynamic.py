"""Dynamic int8: weights are stored in int8, the range of each activation is found when the network runs.

It is for recurrent networks and transformers: their matrix products gain, their activations have outliers that a fixed
range serves badly, and what lies between the products stays float. Convolutions stay float. Runs in a process of its
own (``edgeopt.graph.subprocess_worker``).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from edgeopt.errors import StepError
from edgeopt.graph.facts import CELLS, PRODUCTS
from edgeopt.graph.model import arrays, load, save
from edgeopt.records.recipe import QuantizeDynamic

_STAGE = "quantize"


def quantize_products(model: onnx.ModelProto, step: QuantizeDynamic) -> onnx.ModelProto:
    """Return the model with its matrix products and LSTM cells in dynamic int8.

    Raises:
        StepError: it has none with constant weights.
    """
    weights = arrays(model.graph)
    found = [node for node in model.graph.node if node.op_type in (*PRODUCTS, *CELLS) and node.input[1] in weights]
    if not found:
        raise StepError(_STAGE, "no matrix product of this graph has constant weights. Leave this step out.")
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        plain, result = Path(folder) / "plain.onnx", Path(folder) / "result.onnx"
        save(model, plain)
        quantize_dynamic(
            plain,
            result,
            op_types_to_quantize=[*PRODUCTS, *CELLS],
            per_channel=True,
            reduce_range=step.reduce_range,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(step.float_nodes),
        )
        return load(result, _STAGE)
