"""Bias correction: a layer's bias makes up for the mean error that rounding its weights adds to its output.

    E[Wq x] = E[W x] + E[(Wq - W) x]        so      b' = b - E[(Wq - W) x], for each output channel

Nagel et al. (2019), "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, with the
expectation over calibration batches, as in its appendix D. Depthwise convolutions need it most: a channel has few
weights, so their errors do not cancel.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgeopt.graph.model import read_initializers
from edgeopt.graph.quantization.activations import ArrayBatches, measure_channel_means

_CORRECTED_OPERATORS = ("Conv", "Gemm")
_BIAS_INDEX = 2
"""Index of the bias among the inputs of both operators."""


def correct_biases(model: onnx.ModelProto, quantized: onnx.ModelProto, batches: ArrayBatches) -> int:
    """Fold the mean error of rounded weights into the biases of the float model, in place; return their number.

    Args:
        model: The float model.
        quantized: The same model with QDQ nodes; nodes have the same names in both.
        batches: Calibration batches.
    """
    errors = measure_mean_errors(model, quantized, batches)
    graph = model.graph
    constants = read_initializers(graph)
    for node in graph.node:
        if node.name not in errors:
            continue
        error = errors[node.name]
        bias = (
            constants[node.input[_BIAS_INDEX]] if len(node.input) > _BIAS_INDEX else np.zeros(error.shape, np.float32)
        )
        name = f"{node.name}_corrected_bias"
        graph.initializer.append(numpy_helper.from_array((bias - error).astype(np.float32), name))
        node.input[:] = [*node.input[:_BIAS_INDEX], name]
    return len(errors)


def measure_mean_errors(
    model: onnx.ModelProto, quantized: onnx.ModelProto, batches: ArrayBatches
) -> dict[str, NDArray[np.float64]]:
    """Return by node the mean error of each output channel, with rounded weights and the float model's activations."""
    rounded = _read_rounded_weights(quantized)
    constants = read_initializers(model.graph)
    probe = onnx.ModelProto.FromString(model.SerializeToString())
    nodes: dict[str, str] = {}
    for node in model.graph.node:
        weights = constants.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type not in _CORRECTED_OPERATORS or weights is None or node.name not in rounded:
            continue
        if (
            len(node.input) > _BIAS_INDEX
            and node.input[_BIAS_INDEX]
            and constants.get(node.input[_BIAS_INDEX], np.zeros(())).ndim != 1
        ):
            continue
        name = f"{node.name}_weight_error"
        difference = rounded[node.name].astype(np.float64) - weights
        probe.graph.initializer.append(numpy_helper.from_array(difference.astype(np.float32), name))
        error_node = helper.make_node(node.op_type, [node.input[0], name], [f"{name}_output"], f"{name}_node")
        error_node.attribute.extend(attribute for attribute in node.attribute if attribute.name != "beta")
        probe.graph.node.append(error_node)
        nodes[f"{name}_output"] = node.name
    means = measure_channel_means(probe, list(nodes), batches)
    return {nodes[output]: mean for output, mean in means.items()}


def _read_rounded_weights(quantized: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """Return by node the weights that its dequantize node outputs."""
    constants = read_initializers(quantized.graph)
    dequantizers = {node.output[0]: node for node in quantized.graph.node if node.op_type == "DequantizeLinear"}
    rounded = {}
    for node in quantized.graph.node:
        source = dequantizers.get(node.input[1]) if node.op_type in _CORRECTED_OPERATORS else None
        if source is None or source.input[0] not in constants:
            continue
        values, scale, zero = (constants[name] for name in source.input)
        axis = next((attribute.i for attribute in source.attribute if attribute.name == "axis"), 1)
        shape = [1] * values.ndim
        if scale.ndim == 1 and scale.size > 1:
            shape[axis] = -1
        steps = values.astype(np.float32) - zero.astype(np.float32).reshape(shape)
        rounded[node.name] = steps * scale.reshape(shape)
    return rounded
