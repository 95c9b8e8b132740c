"""Equalize: scale the channels between two convolutions so that they make good use of one 8-bit range.

    y = B * f(A * x + b) = (B s) * f((A / s) * x + b / s)     for f(x / s) = f(x) / s, s > 0 for each channel

The activations of a tensor share one scale, so a channel far smaller than the largest one uses few of the 256 steps.
Dividing the large channels costs nothing if the next convolution has a scale for each of them (a depthwise one);
otherwise it moves part of the unevenness into that convolution's weights.

Cross-layer equalization (Nagel et al., 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
section 4.1), with the ranges of activations instead of the first layer's weights, since weights have a scale for each
channel here. Like the paper and SmoothQuant (Xiao et al., 2023), it takes the geometric mean of both sides.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeopt.graph.model import Arrays, find_consumers, read_initializers
from edgeopt.graph.quantization.activations import ArrayBatches, measure_channel_peaks

Channels = NDArray[np.float64]
_CLIP_MARGIN_RATIO = 1.25
"""A channel below a clip is scaled up until the clip's end is this many times its peak on calibration batches."""
_MAX_SCALE_RATIO = 32.0
"""No channel is scaled by more, up or down, so that rare large values still have some room."""
SCALE_EQUIVARIANT_OPERATORS = ("Relu", "LeakyRelu", "MaxPool", "Clip")
"""Operators with f(s * x) = s * f(x) for s > 0; ``Clip`` only as long as nothing reaches its upper end."""


class ConvolutionPair(NamedTuple):
    """Two convolutions with only ``SCALE_EQUIVARIANT_OPERATORS`` between them."""

    first: onnx.NodeProto
    last: onnx.NodeProto
    value: str
    """The value that the second one reads."""
    clip_max: float | None
    """Upper end of a clip between them; None if there is no clip."""


def equalize(model: onnx.ModelProto, batches: ArrayBatches) -> int:
    """Scale the channels between pairs of convolutions, in place; return the number of pairs.

    Without a clip between them, the float graph computes the same for all inputs. With one (ReLU6), it does as long as
    no channel gets ``_CLIP_MARGIN_RATIO`` times as large as on the calibration batches; int8 would clip it there too.

    Args:
        model: A float model with every batch norm folded.
        batches: Calibration batches.
    """
    constants = read_initializers(model.graph)
    pairs = find_convolution_pairs(model.graph, constants)
    peaks = measure_channel_peaks(model, [pair.value for pair in pairs], batches)
    changed: dict[str, NDArray[Any]] = {}
    for pair in pairs:  # in the graph's order: a weight between two pairs is scaled from both sides
        weights = changed.get(pair.last.input[1], constants[pair.last.input[1]])
        factors = compute_channel_factors(peaks[pair.value], weights, pair.clip_max, _count_groups(pair.last))
        _divide_outputs(pair.first, factors, constants, changed)
        _multiply_inputs(pair.last, factors, constants, changed)
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(changed[tensor.name].astype(np.float32), tensor.name))
    return len(pairs)


def find_convolution_pairs(graph: onnx.GraphProto, constants: Arrays) -> list[ConvolutionPair]:
    """Return the pairs of a graph whose weights and biases are each read by one node only."""
    readers = find_consumers(graph)
    outputs = {value.name for value in graph.output}
    pairs = []
    for node in graph.node:
        if not _can_scale(node, constants, readers):
            continue
        value, clip_max = node.output[0], None
        while value not in outputs and len(readers.get(value, [])) == 1:
            reader, index = readers[value][0]
            if reader.op_type == "Conv":
                if index == 0 and _can_scale(reader, constants, readers):
                    pairs.append(ConvolutionPair(node, reader, value, clip_max))
                break
            if reader.op_type not in SCALE_EQUIVARIANT_OPERATORS or len(reader.output) != 1:
                break
            if reader.op_type == "Clip":
                low, high = _read_clip_ends(reader, constants)
                if low != 0.0 or not high or clip_max is not None:
                    break
                clip_max = None if high == np.inf else high
            value = reader.output[0]
    return pairs


def compute_channel_factors(peaks: Channels, weights: NDArray[Any], clip_max: float | None, groups: int) -> Channels:
    """Return the factor by which each channel is divided.

    Args:
        peaks: Largest magnitude of each channel, before the division.
        weights: Of the second convolution, ``(out, in / groups, ...)``.
        clip_max: Upper end of a clip between them, if there is one.
        groups: Of the second convolution.
    """
    is_depthwise = weights.shape[1] == 1
    weight_peaks = (
        np.abs(weights).reshape(groups, weights.shape[0] // groups, weights.shape[1], -1).max(axis=(1, 3)).ravel()
    )
    used = (peaks > 0) & (weight_peaks > 0)
    factors = np.ones(len(peaks))
    if not used.any():
        return factors
    wanted = peaks[used] if is_depthwise else np.sqrt(peaks[used] / weight_peaks[used])
    # the largest channel keeps its range: only the ratios between channels matter
    after = peaks[used] / wanted
    factors[used] = np.clip(wanted * after.max() / peaks[used].max(), 1 / _MAX_SCALE_RATIO, _MAX_SCALE_RATIO)
    if clip_max is not None:  # only up, and not as far as the clip
        reach = _CLIP_MARGIN_RATIO * peaks[used]
        factors[used] = np.where(reach < clip_max, np.clip(factors[used], reach / clip_max, 1.0), 1.0)
    return factors


def _can_scale(node: onnx.NodeProto, constants: Arrays, readers: dict[str, list[tuple[onnx.NodeProto, int]]]) -> bool:
    stored = list(node.input[1:])
    return node.op_type == "Conv" and all(name in constants and len(readers[name]) == 1 for name in stored)


def _read_clip_ends(node: onnx.NodeProto, constants: Arrays) -> tuple[float | None, float | None]:
    ends: list[float | None] = []
    for index, absent in ((1, -np.inf), (2, np.inf)):
        name = node.input[index] if len(node.input) > index else ""
        ends.append(absent if not name else float(constants[name]) if name in constants else None)
    return ends[0], ends[1]


def _count_groups(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


def _divide_outputs(
    node: onnx.NodeProto, factors: Channels, constants: Arrays, changed: dict[str, NDArray[Any]]
) -> None:
    """Divide a convolution's output channels."""
    for name in node.input[1:]:
        values = changed.get(name, constants[name])
        changed[name] = values / factors.reshape(-1, *[1] * (values.ndim - 1))


def _multiply_inputs(
    node: onnx.NodeProto, factors: Channels, constants: Arrays, changed: dict[str, NDArray[Any]]
) -> None:
    """Multiply a convolution's input channels."""
    name = node.input[1]
    values = changed.get(name, constants[name])
    groups = _count_groups(node)
    grouped = values.reshape(groups, values.shape[0] // groups, *values.shape[1:])
    scaled = grouped * factors.reshape(groups, 1, values.shape[1], *[1] * (values.ndim - 2))
    changed[name] = scaled.reshape(values.shape)
