"""Bias correction: what rounding a layer's weights adds to its output on average goes into its bias.

    E[Wq x] = E[W x] + E[(Wq - W) x]        so      b' = b - E[(Wq - W) x], for each output channel

Nagel et al. (2019), "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, with the
expectation over calibration batches, as in its appendix D. Depthwise convolutions need it most: a channel has few
weights, so that their errors do not cancel.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgeopt.graph.model import arrays
from edgeopt.graph.quantization.activations import ArrayBatches, channel_means

CORRECTED = ("Conv", "Gemm")
_BIAS = 2
"""The input of both operators that is the bias."""


def correct_biases(model: onnx.ModelProto, quantized: onnx.ModelProto, batches: ArrayBatches) -> int:
    """Fold the mean error of rounded weights into the biases of the float model, in place; return how many.

    Args:
        model: The float model.
        quantized: The same in QDQ form; nodes have the same names in both.
        batches: Calibration batches.
    """
    errors = mean_errors(model, quantized, batches)
    graph = model.graph
    constants = arrays(graph)
    for node in graph.node:
        if node.name not in errors:
            continue
        error = errors[node.name]
        bias = constants[node.input[_BIAS]] if len(node.input) > _BIAS else np.zeros(error.shape, np.float32)
        name = f"{node.name}_corrected_bias"
        graph.initializer.append(numpy_helper.from_array((bias - error).astype(np.float32), name))
        node.input[:] = [*node.input[:_BIAS], name]
    return len(errors)


def mean_errors(
    model: onnx.ModelProto, quantized: onnx.ModelProto, batches: ArrayBatches
) -> dict[str, NDArray[np.float64]]:
    """Return by node what each output channel is off on average, for rounded weights and the float model's inputs."""
    rounded = _rounded_weights(quantized)
    constants = arrays(model.graph)
    probe = onnx.ModelProto.FromString(model.SerializeToString())
    probes: dict[str, str] = {}
    for node in model.graph.node:
        weights = constants.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type not in CORRECTED or weights is None or node.name not in rounded:
            continue
        if len(node.input) > _BIAS and node.input[_BIAS] and constants.get(node.input[_BIAS], np.zeros(())).ndim != 1:
            continue
        name = f"{node.name}_weight_error"
        difference = rounded[node.name].astype(np.float64) - weights
        probe.graph.initializer.append(numpy_helper.from_array(difference.astype(np.float32), name))
        twin = helper.make_node(node.op_type, [node.input[0], name], [f"{name}_output"], f"{name}_node")
        twin.attribute.extend(one for one in node.attribute if one.name != "beta")
        probe.graph.node.append(twin)
        probes[f"{name}_output"] = node.name
    found = channel_means(probe, list(probes), batches)
    return {probes[output]: mean for output, mean in found.items()}


def _rounded_weights(quantized: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """Return by node the weights that its dequantize node gives."""
    constants = arrays(quantized.graph)
    dequantizers = {node.output[0]: node for node in quantized.graph.node if node.op_type == "DequantizeLinear"}
    found = {}
    for node in quantized.graph.node:
        source = dequantizers.get(node.input[1]) if node.op_type in CORRECTED else None
        if source is None or source.input[0] not in constants:
            continue
        values, scale, zero = (constants[name] for name in source.input)
        axis = next((one.i for one in source.attribute if one.name == "axis"), 1)
        shape = [1] * values.ndim
        if scale.ndim == 1 and scale.size > 1:
            shape[axis] = -1
        apart = values.astype(np.float32) - zero.astype(np.float32).reshape(shape)
        found[node.name] = apart * scale.reshape(shape)
    return found
