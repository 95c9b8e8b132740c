"""Second moments of the inputs of convolutions and matrix products, over calibration samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import helper

from edgeopt.graph.model import STANDARD_DOMAINS, read_initializers
from edgeopt.graph.quantization.activations import ArrayBatches, read_activations
from edgeopt.graph.rounding.compensation import Moments

MAX_DEPTH = 4096
"""Inputs of one output: time grows with its cube, and 4,096 take about ten seconds on one core."""
_MAX_PLACES = 64
"""Places of one sample that a layer's weights are seen at; the others are much like them."""
_CELLS = ("LSTM", "GRU", "RNN")
_Arrays = NDArray[Any]


class RowLayer(NamedTuple):
    """A convolution or matrix product with constant weights, as products of rows."""

    node: str
    data: str
    """Name of its input."""
    weight: str
    """Name of its weights."""
    groups: int
    kernel: tuple[int, ...]
    """Empty for a matrix product."""
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    """At the start of each dimension, then at the end of each."""
    is_transposed: bool
    """Whether a product's weights are ``(outputs, depth)``; otherwise ``(depth, outputs)``."""
    is_recurrent: bool = False
    """Whether these are weights of a recurrent cell, ``(directions, outputs, depth)``: a group for each direction."""

    def to_rows(self, weights: _Arrays) -> _Arrays:
        """Return weights, or anything of their shape, as ``(groups, outputs, depth)``."""
        if self.is_recurrent:
            return weights
        if self.kernel:
            return weights.reshape(self.groups, weights.shape[0] // self.groups, -1)
        return (weights if self.is_transposed else weights.T)[None]

    def from_rows(self, rows: _Arrays, shape: tuple[int, ...]) -> _Arrays:
        """Undo ``to_rows``."""
        if self.kernel or self.is_recurrent:
            return rows.reshape(shape)
        return np.asarray(rows[0] if self.is_transposed else rows[0].T)

    @property
    def channel_axis(self) -> int:
        """The axis of the outputs in the weights."""
        return 0 if self.kernel or self.is_transposed else 1


def find_layers(model: onnx.ModelProto) -> list[RowLayer]:
    """Return the float32 layers of the top graph whose inputs can be read as rows.

    Those deeper than ``MAX_DEPTH`` are left out, and weights that are read in two ways, such as a tied matrix that one
    product transposes.
    """
    constants = read_initializers(model.graph)
    found = list[RowLayer]()
    for node in model.graph.node:
        weights = constants.get(node.input[1]) if len(node.input) > 1 else None
        if weights is None or node.domain not in STANDARD_DOMAINS or node.input[0] in constants:
            continue
        if weights.dtype != np.float32:
            continue
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        layer = _read_layer(node, weights.shape, attributes)
        if layer is not None:
            found.append(layer)
    ways: dict[str, set[tuple[object, ...]]] = {}
    for layer in found:
        ways.setdefault(layer.weight, set()).add((layer.groups, layer.kernel, layer.is_transposed))
    return [
        layer
        for layer in found
        if len(ways[layer.weight]) == 1 and layer.to_rows(constants[layer.weight]).shape[2] <= MAX_DEPTH
    ]


def _read_layer(node: onnx.NodeProto, shape: tuple[int, ...], attributes: Mapping[str, Any]) -> RowLayer | None:
    names = (node.name, node.input[0], node.input[1])
    if node.op_type == "Conv" and attributes.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID"):
        rank = len(shape) - 2
        ones = (1,) * rank
        return RowLayer(
            *names,
            groups=int(attributes.get("group", 1)),
            kernel=shape[2:],
            strides=tuple(attributes.get("strides", ones)),
            dilations=tuple(attributes.get("dilations", ones)),
            pads=tuple(attributes.get("pads", (0,) * (2 * rank))),
            is_transposed=True,
        )
    is_product = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attributes.get("transA", 0))
    if is_product and len(shape) == 2:
        return RowLayer(*names, 1, (), (), (), (), bool(attributes.get("transB", 0)))
    return None


def find_recurrent_layers(model: onnx.ModelProto) -> list[RowLayer]:
    """Return the weights of the top graph's recurrent cells: those of their inputs, and those of their states.

    A cell's states are its first output, which gets a name in the model if nothing reads it.
    """
    constants = read_initializers(model.graph)
    found = []
    for index, node in enumerate(model.graph.node):
        if node.op_type not in _CELLS or node.domain not in STANDARD_DOMAINS or len(node.input) < 3:
            continue
        if any(one.name == "layout" and one.i for one in node.attribute):  # batch first
            continue
        if not node.output[0]:
            node.output[0] = f"states_of_cell_{index}"
        for data, weight in ((node.input[0], node.input[1]), (node.output[0], node.input[2])):
            if weight not in constants or data in constants or constants[weight].dtype != np.float32:
                continue
            if constants[weight].shape[2] <= MAX_DEPTH:
                directions = len(constants[weight])
                found.append(RowLayer(node.name, data, weight, directions, (), (), (), (), True, is_recurrent=True))
    return found


def measure_moments(model: onnx.ModelProto, layers: list[RowLayer], batches: ArrayBatches) -> dict[str, Moments]:
    """Return the moments of each layer's inputs, by the name of its weights.

    Args:
        model: A float model; it is not changed.
        layers: Its layers; those that share weights share moments.
        batches: Calibration batches.
    """
    sums: dict[str, _Sum] = {}
    rng = np.random.default_rng(0)
    for values in read_activations(model, [layer.data for layer in layers], batches()):
        for layer in layers:
            for rows in _rows_of(layer, values[layer.data], rng):
                sums.setdefault(layer.weight, _Sum()).add(rows)
    return {weight: one.total() for weight, one in sums.items()}


class _Sum:
    """A sum of products of rows. Products of fewer rows than they are deep are slow, so rows wait for others."""

    def __init__(self) -> None:
        self._waiting: list[_Arrays] = []
        self._moments: Moments | None = None

    def add(self, rows: _Arrays) -> None:
        """Take rows, ``(groups, places, depth)``."""
        self._waiting.append(rows)
        if sum(one.shape[1] for one in self._waiting) >= rows.shape[2]:
            self._multiply()

    def total(self) -> Moments:
        """Return the products of all rows."""
        if self._waiting:
            self._multiply()
        assert self._moments is not None, "a sum begins with rows"
        return self._moments

    def _multiply(self) -> None:
        rows = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting, axis=1)
        self._waiting.clear()
        products = _products(rows).astype(np.float64, copy=False)
        self._moments = products if self._moments is None else np.add(self._moments, products, out=self._moments)


def _products(rows: _Arrays) -> _Arrays:
    """Return the sums of products of ``(groups, places, depth)``; NumPy computes half of them for a single matrix."""
    return np.asarray((rows[0].T @ rows[0])[None] if len(rows) == 1 else np.matmul(rows.swapaxes(1, 2), rows))


def _rows_of(layer: RowLayer, values: _Arrays, rng: np.random.Generator) -> Iterator[_Arrays]:
    """Yield inputs as ``(groups, places, depth)``, or ``(1, places, depth)`` if all groups have the same."""
    if layer.is_recurrent:
        states = values if values.ndim == 4 else values[:, None]  # (time, directions or 1, batch, depth)
        by_direction = states.swapaxes(0, 1).reshape(states.shape[1], -1, states.shape[-1])
        count = min(by_direction.shape[1], _MAX_PLACES * values.shape[-2])
        yield by_direction[:, np.sort(rng.choice(by_direction.shape[1], count, replace=False))]
        return
    if not layer.kernel:
        rows = values.reshape(-1, values.shape[-1])
        count = min(len(rows), _MAX_PLACES * max(1, len(values) if values.ndim > 1 else 1))
        yield rows[np.sort(rng.choice(len(rows), count, replace=False))][None]
        return
    rank = len(layer.kernel)
    pads = [(0, 0), (0, 0), *zip(layer.pads[:rank], layer.pads[rank:], strict=True)]
    spans = [1 + (size - 1) * step for size, step in zip(layer.kernel, layer.dilations, strict=True)]
    axes = tuple(range(2, 2 + rank))
    windows = sliding_window_view(np.pad(values, pads), spans, axis=axes)
    every: tuple[Any, ...] = (slice(None), slice(None))
    windows = windows[(*every, *(slice(None, None, step) for step in layer.strides))]
    windows = windows[(*every, *(slice(None),) * rank, *(slice(None, None, step) for step in layer.dilations))]
    sizes = windows.shape[2 : 2 + rank]
    count = math.prod(sizes)
    where = np.unravel_index(np.sort(rng.choice(count, min(count, _MAX_PLACES), replace=False)), sizes)
    seen = np.asarray(windows[(*every, *where)])  # (samples, channels, places, *kernel)
    samples, channels, count = seen.shape[:3]
    grouped = seen.reshape(samples, layer.groups, channels // layer.groups, count, -1)
    yield grouped.transpose(1, 0, 3, 2, 4).reshape(layer.groups, samples * count, -1)
