"""Rounds the weights of a static int8 file again: by what errors do to the layers' outputs, and to fewer bits if asked.

``onnxruntime.quantization`` rounds each weight to the nearest of 127 or 255 steps. With fewer bits the weights keep the
type int8, so kernels, speed and overflow are those of any int8 file; ``edgeopt.graph.rounding.packing`` then stores
them densely. Each channel's range is narrowed to the one with the smallest error.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeopt.errors import StepError
from edgeopt.graph.model import read_initializers
from edgeopt.graph.quantization.activations import ArrayBatches
from edgeopt.graph.rounding.compensation import Grid, find_grid, round_with_compensation
from edgeopt.graph.rounding.moments import RowLayer, find_layers, measure_moments

MIN_ROUNDED_VALUES = 1024
"""Smaller tensors keep 8 bits."""
_INT8_BITS = 8
_MAX_BIAS = 2.0**31 * 0.999
"""Of int32, less what rounding of the scales adds."""
_NOTHING_TO_ROUND = (
    f"no layer has {MIN_ROUNDED_VALUES} int8 weights with a scale for each channel: this variant is skipped."
)
_Arrays = NDArray[Any]


class _Stored(NamedTuple):
    """A layer's weights in the quantized graph: the names of its initializers."""

    integers: str
    scale: str


def round_again(
    model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    batches: ArrayBatches,
    bits: int,
    bits_of: Mapping[str, int] = MappingProxyType({}),
) -> int:
    """Round the weights of convolutions and products in a quantized model again, in place; return how many tensors.

    Args:
        model: The float model.
        quantized: The same model with QDQ nodes; nodes have the same names in both.
        batches: Calibration batches.
        bits: Of each weight; 8 keeps the scales, and so the bytes.
        bits_of: Float weights with bits of their own.

    Raises:
        StepError: there is no such tensor.
    """
    stored = _find_stored(quantized)
    layers = [layer for layer in find_layers(model) if layer.node in stored]
    moments = measure_moments(model, layers, batches)
    exact, constants = read_initializers(model.graph), read_initializers(quantized.graph)
    least = _least_scales(quantized, constants)
    replaced: dict[str, _Arrays] = {}
    for layer in layers:
        integers, scale = stored[layer.node]
        weights, before = exact[layer.weight], constants[integers]
        if integers in replaced or before.size < MIN_ROUNDED_VALUES:
            continue
        if (width := bits_of.get(layer.weight, bits)) < _INT8_BITS:
            if not _can_have_few_bits(layer, exact, constants, stored[layer.node]):
                continue
            grid = find_grid(layer.to_rows(weights), moments[layer.weight], width)
            grid = grid._replace(scale=np.maximum(grid.scale, _per_row(least[scale], layer, weights)))
            replaced[scale] = grid.scale.reshape(constants[scale].shape).astype(np.float32)
        else:
            limit = int(np.abs(before.astype(int)).max())
            grid = Grid(_per_row(constants[scale], layer, weights), np.zeros(()), -limit, limit)
        rows = round_with_compensation(layer.to_rows(weights), grid, moments[layer.weight])
        replaced[integers] = layer.from_rows(rows, weights.shape).astype(np.int8)
    if not replaced:
        raise StepError("quantize", _NOTHING_TO_ROUND)
    _rescale_biases(quantized, constants, replaced)
    _replace(quantized, replaced)
    return sum(values.dtype == np.int8 for values in replaced.values())


def symmetric_levels(bits: int) -> tuple[int, int]:
    """Return the integers that weights in few bits of a trained network take: as many below zero as above."""
    highest = 2 ** (bits - 1) - 1
    return -highest, highest


def round_to_nearest(model: onnx.ModelProto, quantized: onnx.ModelProto, bits: int) -> frozenset[str]:
    """Round the weights of convolutions and products to the nearest of few steps, in place, as a training has done.

    The largest weight of a channel becomes the last step.

    Args:
        model: The float model.
        quantized: The same model with QDQ nodes; nodes have the same names in both.
        bits: Of each weight, 6 or fewer.

    Returns:
        The names of the float weights that were rounded; the others keep 8 bits.

    Raises:
        StepError: there is no such tensor.
    """
    stored, (low, high) = _find_stored(quantized), symmetric_levels(bits)
    exact, constants = read_initializers(model.graph), read_initializers(quantized.graph)
    least = _least_scales(quantized, constants)
    replaced: dict[str, _Arrays] = {}
    rounded = set()
    for layer in find_layers(model):
        if layer.node not in stored or not _can_have_few_bits(layer, exact, constants, stored[layer.node]):
            continue
        integers, scale = stored[layer.node]
        rounded.add(layer.weight)
        rows = layer.to_rows(exact[layer.weight])
        largest = np.abs(rows).max(2, keepdims=True)
        steps = np.where(largest > 0, largest / high, 1.0)
        steps = np.maximum(steps, _per_row(least[scale], layer, exact[layer.weight])).astype(np.float32)
        values = np.clip(np.rint(rows / steps), low, high)
        replaced[scale] = steps.reshape(constants[scale].shape)
        replaced[integers] = layer.from_rows(values, exact[layer.weight].shape).astype(np.int8)
    if not rounded:
        raise StepError("quantize", _NOTHING_TO_ROUND)
    _rescale_biases(quantized, constants, replaced)
    _replace(quantized, replaced)
    return frozenset(rounded)


def _can_have_few_bits(
    layer: RowLayer, exact: dict[str, _Arrays], constants: dict[str, _Arrays], stored: _Stored
) -> bool:
    """Tell whether a layer's weights are many, and have a scale for each channel: with one, few bits are too coarse."""
    weights = exact[layer.weight]
    return weights.size >= MIN_ROUNDED_VALUES and constants[stored.scale].size == weights.shape[layer.channel_axis]


def _find_stored(quantized: onnx.ModelProto) -> dict[str, _Stored]:
    """Return where the weights of each node are stored in int8."""
    constants = read_initializers(quantized.graph)
    sources = {node.output[0]: node for node in quantized.graph.node if node.op_type == "DequantizeLinear"}
    found = {}
    for node in quantized.graph.node:
        source = sources.get(node.input[1]) if len(node.input) > 1 else None
        if source is None or source.input[0] not in constants or constants[source.input[0]].dtype != np.int8:
            continue
        if not any(constants[name].any() for name in source.input[2:]):
            found[node.name] = _Stored(source.input[0], source.input[1])
    return found


def _per_row(scale: _Arrays, layer: RowLayer, weights: _Arrays) -> _Arrays:
    """Return scales as ``(groups, outputs, 1)``."""
    count = weights.shape[layer.channel_axis]
    return np.broadcast_to(scale.reshape(-1), (count,)).reshape(layer.groups, -1, 1).astype(np.float64)


class _Bias(NamedTuple):
    """A layer's bias in int32."""

    integers: str
    scale: str
    weight_scale: str
    """The scale of the layer's weights."""
    data_scale: _Arrays
    values: _Arrays
    """What the integers stand for."""


def _read_biases(quantized: onnx.ModelProto, constants: dict[str, _Arrays]) -> list[_Bias]:
    """Return the int32 biases of a quantized graph."""
    sources = {node.output[0]: node for node in quantized.graph.node if node.op_type == "DequantizeLinear"}
    found = []
    for node in quantized.graph.node:
        parts = [sources.get(name) for name in node.input[:3]]
        if len(parts) < 3 or any(part is None for part in parts):
            continue
        data, weight, bias = (part for part in parts if part is not None)
        names = (data.input[1], weight.input[1], *bias.input[:2])
        if all(name in constants for name in names) and constants[bias.input[0]].dtype == np.int32:
            values = constants[bias.input[0]] * constants[bias.input[1]].astype(np.float64)
            found.append(_Bias(bias.input[0], bias.input[1], weight.input[1], constants[data.input[1]], values))
    return found


def _least_scales(quantized: onnx.ModelProto, constants: dict[str, _Arrays]) -> dict[str, _Arrays]:
    """Return the smallest scales of weights with which int32 biases do not overflow, by the name of the scale.

    A channel that batch norm has all but switched off has tiny weights, and a bias of an ordinary size.
    """
    least: dict[str, _Arrays] = {}
    for name in {stored.scale for stored in _find_stored(quantized).values()}:
        least[name] = np.zeros(constants[name].shape)
    for bias in _read_biases(quantized, constants):
        if bias.weight_scale in least:
            product = np.maximum(np.abs(bias.values) / _MAX_BIAS, np.finfo(np.float32).tiny)
            needed = product / bias.data_scale.astype(np.float64)
            least[bias.weight_scale] = np.maximum(least[bias.weight_scale], needed)
    return least


def _rescale_biases(quantized: onnx.ModelProto, constants: dict[str, _Arrays], replaced: dict[str, _Arrays]) -> None:
    """Add biases for new scales of weights: an int32 bias has the scale of the products."""
    for bias in _read_biases(quantized, constants):
        if bias.weight_scale not in replaced or bias.scale in replaced:
            continue
        scale = (bias.data_scale * replaced[bias.weight_scale].reshape(-1)).astype(np.float32)
        integers = np.rint(bias.values / scale)
        assert np.abs(integers).max(initial=0) < 2**31, "the scales are at least those of _least_scales"
        replaced[bias.scale] = np.broadcast_to(scale, constants[bias.scale].shape).astype(np.float32)
        replaced[bias.integers] = integers.astype(np.int32)


def _replace(quantized: onnx.ModelProto, replaced: dict[str, _Arrays]) -> None:
    for tensor in quantized.graph.initializer:
        if tensor.name in replaced:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(replaced[tensor.name]), tensor.name))
