"""Equalize: channels between two convolutions are scaled so that they share one range of 8 bits well.

    y = B * f(A * x + b) = (B s) * f((A / s) * x + b / s)     for f(x / s) = f(x) / s, s > 0 for each channel

A tensor's activations have one scale, so that a channel far smaller than the largest one is left with few of the 256
steps. Dividing the large ones costs nothing where the next convolution has a scale for each channel of its own (a
depthwise one), and otherwise moves a part of the unevenness into its weights.

Cross-layer equalization (Nagel et al., 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
section 4.1) with the activations' ranges in the place of the first layer's weights: these have a scale for each channel
here. The geometric mean of both sides is theirs, and that of SmoothQuant (Xiao et al., 2023).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeopt.graph.model import Arrays, arrays, consumers
from edgeopt.graph.quantization.activations import ArrayBatches, channel_peaks

Channels = NDArray[np.float64]
_ROOM = 1.25
"""A channel that is scaled up below a clip stays so far from it, on calibration batches."""
_LARGEST = 32.0
"""No channel is scaled by more, up or down: rare large values should find some room."""
SCALED_ALIKE = ("Relu", "LeakyRelu", "MaxPool", "Clip")
"""Operators that a positive factor goes through, ``Clip`` where nothing reaches its end."""


class ConvolutionPair(NamedTuple):
    """Two convolutions with nothing between them but operators of ``SCALED_ALIKE``."""

    first: onnx.NodeProto
    last: onnx.NodeProto
    value: str
    """What the second reads."""
    cap: float | None
    """Where a clip between them cuts; None where there is none."""


def equalize(model: onnx.ModelProto, batches: ArrayBatches) -> int:
    """Scale the channels between pairs of convolutions, in place; return how many pairs.

    Without a clip between them the float graph computes the same, whatever goes in; with one (ReLU6) it does as long as
    no channel gets ``_ROOM`` times as large as on the calibration batches, where int8 would cut it off as well.

    Args:
        model: A float model with every batch norm folded.
        batches: Calibration batches.
    """
    constants = arrays(model.graph)
    pairs = find_pairs(model.graph, constants)
    peaks = channel_peaks(model, [pair.value for pair in pairs], batches)
    changed: dict[str, NDArray[Any]] = {}
    for pair in pairs:  # in the graph's order, so that a weight between two pairs is scaled from both sides
        weights = changed.get(pair.last.input[1], constants[pair.last.input[1]])
        factors = channel_factors(peaks[pair.value], weights, pair.cap, _groups(pair.last))
        _divide(pair.first, factors, constants, changed)
        _multiply(pair.last, factors, constants, changed)
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(changed[tensor.name].astype(np.float32), tensor.name))
    return len(pairs)


def find_pairs(graph: onnx.GraphProto, constants: Arrays) -> list[ConvolutionPair]:
    """Return the pairs of a graph: each weight and bias is read by one node alone."""
    readers = consumers(graph)
    outputs = {value.name for value in graph.output}
    found = []
    for node in graph.node:
        if not _can_scale(node, constants, readers):
            continue
        value, cap = node.output[0], None
        while value not in outputs and len(readers.get(value, [])) == 1:
            reader, place = readers[value][0]
            if reader.op_type == "Conv":
                if place == 0 and _can_scale(reader, constants, readers):
                    found.append(ConvolutionPair(node, reader, value, cap))
                break
            if reader.op_type not in SCALED_ALIKE or len(reader.output) != 1:
                break
            if reader.op_type == "Clip":
                low, high = _clip_ends(reader, constants)
                if low != 0.0 or not high or cap is not None:
                    break
                cap = None if high == np.inf else high
            value = reader.output[0]
    return found


def channel_factors(peaks: Channels, weights: NDArray[Any], cap: float | None, groups: int) -> Channels:
    """Return what each channel is divided by.

    Args:
        peaks: Largest magnitude of each channel, before.
        weights: Of the second convolution, ``(out, in / groups, ...)``.
        cap: Where a clip cuts.
        groups: Of the second convolution.
    """
    depthwise = weights.shape[1] == 1
    each = np.abs(weights).reshape(groups, weights.shape[0] // groups, weights.shape[1], -1).max(axis=(1, 3)).ravel()
    used = (peaks > 0) & (each > 0)
    factors = np.ones(len(peaks))
    if not used.any():
        return factors
    wanted = peaks[used] if depthwise else np.sqrt(peaks[used] / each[used])
    # the largest channel keeps its range: only the relation between channels matters
    after = peaks[used] / wanted
    factors[used] = np.clip(wanted * after.max() / peaks[used].max(), 1 / _LARGEST, _LARGEST)
    if cap is not None:  # only up, and not up to where it cuts
        factors[used] = np.where(_ROOM * peaks[used] < cap, np.clip(factors[used], _ROOM * peaks[used] / cap, 1.0), 1.0)
    return factors


def _can_scale(node: onnx.NodeProto, constants: Arrays, readers: dict[str, list[tuple[onnx.NodeProto, int]]]) -> bool:
    stored = list(node.input[1:])
    return node.op_type == "Conv" and all(name in constants and len(readers[name]) == 1 for name in stored)


def _clip_ends(node: onnx.NodeProto, constants: Arrays) -> tuple[float | None, float | None]:
    ends: list[float | None] = []
    for place, absent in ((1, -np.inf), (2, np.inf)):
        name = node.input[place] if len(node.input) > place else ""
        ends.append(absent if not name else float(constants[name]) if name in constants else None)
    return ends[0], ends[1]


def _groups(node: onnx.NodeProto) -> int:
    return next((one.i for one in node.attribute if one.name == "group"), 1)


def _divide(node: onnx.NodeProto, factors: Channels, constants: Arrays, changed: dict[str, NDArray[Any]]) -> None:
    """Divide a convolution's output channels."""
    for name in node.input[1:]:
        values = changed.get(name, constants[name])
        changed[name] = values / factors.reshape(-1, *[1] * (values.ndim - 1))


def _multiply(node: onnx.NodeProto, factors: Channels, constants: Arrays, changed: dict[str, NDArray[Any]]) -> None:
    """Multiply a convolution's input channels."""
    name = node.input[1]
    values = changed.get(name, constants[name])
    groups = _groups(node)
    apart = values.reshape(groups, values.shape[0] // groups, *values.shape[1:])
    scaled = apart * factors.reshape(groups, 1, values.shape[1], *[1] * (values.ndim - 2))
    changed[name] = scaled.reshape(values.shape)
