"""Stores weights in int8 with a scale for each channel, and makes them float again with a ``Cast`` and a ``Mul``.

ONNX Runtime folds both when it loads the file, which it does not do with a ``DequantizeLinear``: the file is small, and
runs as fast as before. Activations and all arithmetic stay float32, so nothing has to be calibrated, and every operator
can read such weights: convolutions, recurrent cells, embeddings, the matrices of signal front ends.

With fewer bits the tensors are int8 too, and ``edgeopt.graph.rounding.packing`` then stores them densely. Every row of
a convolution, product or cell has its own scale, and errors cancel over samples if there are some
(``edgeopt.graph.rounding``); other tensors have the axis of scales with the smallest error.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeopt.errors import StepError
from edgeopt.graph.facts import is_quantized
from edgeopt.graph.model import (
    STANDARD_DOMAINS,
    lift_constants,
    lower_ir,
    read_batch_axes,
    unused_name,
    used_names,
    walk_graphs,
)
from edgeopt.graph.preparation.attempts import attempt
from edgeopt.graph.quantization.static import read_calibration_batches
from edgeopt.graph.rounding.compensation import Grid, Moments, find_grid, round_with_compensation
from edgeopt.graph.rounding.moments import RowLayer, find_layers, find_recurrent_layers, measure_moments
from edgeopt.model_files.tensors import count_bytes, tensor_values
from edgeopt.records.recipe import StoredBits, StoreWeights

_STAGE = "quantize"
_MIN_VALUES = 1024
"""Smaller tensors save less than their scales and node cost."""
_MAX_SCALES_RATIO = 1 / 16
"""Scales of an axis, over the values: with more, they would take a quarter of the saved bytes."""
_INT8_BITS = 8
_LEVELS = 127
_WIDE_BITS: StoredBits = 16
_WIDE_LEVELS = 32767
_IN_8_BITS = StoreWeights()
_SCALES = {"_scale": "_quantized", "_row_scales": "_int8"}
"""From the end of the name of scales to that of their integers, as dynamic int8 writes them."""
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


def store_int8_weights(
    model: onnx.ModelProto, step: StoreWeights = _IN_8_BITS, calibration: Path | None = None
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return the model with its large float32 weights in int8, and notes.

    If the graph cannot be run over the calibration samples, each weight is rounded to the nearest step.

    Args:
        model: Any model; it is changed.
        step: Bits of each weight, and the samples over which rounding errors cancel.
        calibration: A batch file with the names of the graph's inputs; needed if there are such samples.

    Raises:
        StepError: there are no such weights.
    """
    lower_ir(model)
    measured = attempt(lambda: measure_rows(model, step, calibration))
    rows = measured.result or {}
    top = model.graph
    taken, bits_of, stored = used_names(top), dict(step.bits_of), list[StoredBits]()
    for graph in walk_graphs(top):
        lift_constants(graph)
        for name in find_weights(graph):
            bits = bits_of.get(name, step.weight_bits)
            _store(graph, name, taken, bits, rows.get(name) if graph is top else None)
            bits_of.pop(name, None)
            stored.append(bits)
    if not stored and is_quantized(model):
        return model, ()  # by an earlier step, which has left nothing
    if not stored:
        raise StepError(_STAGE, f"no float32 weight of this graph has {_MIN_VALUES} values: this variant is skipped.")
    wide = stored.count(_WIDE_BITS)
    kinds = f"int8{f' ({wide} of them in int16)' if wide else ''}"
    notes = [f"store-weights: {len(stored)} tensors in {kinds}, made float again when the file is loaded"]
    if measured.reason is not None:
        notes.append(f"store-weights: rounded to the nearest step, without the samples ({measured.reason})")
    return model, tuple(notes)


class Rows(NamedTuple):
    """A tensor as rows, and the moments of what they are multiplied with."""

    layer: RowLayer
    moments: Moments


def measure_rows(model: onnx.ModelProto, step: StoreWeights, calibration: Path | None) -> dict[str, Rows]:
    """Return the layers that the weights of the top graph belong to, by the weights' names; none without samples."""
    if not step.samples:
        return {}
    if calibration is None:
        raise StepError(_STAGE, "needs a calibration file, but none was given.")
    path, copy = calibration, onnx.ModelProto.FromString(model.SerializeToString())
    lift_constants(copy.graph)
    axes = read_batch_axes(copy.graph)
    layers = [*find_layers(copy), *find_recurrent_layers(copy)]
    moments = measure_moments(copy, layers, lambda: read_calibration_batches(path, axes, step.samples))
    return {layer.weight: Rows(layer, moments[layer.weight]) for layer in layers}


def measure_stored_ratio(model: onnx.ModelProto, operators: frozenset[str]) -> float:
    """Return the share of the bytes of initializers that are large weights read by none of some operators.

    Args:
        model: A float32 model.
        operators: Those whose weights another step stores in integers.
    """
    total = others = 0
    for graph in walk_graphs(model.graph):
        sizes = {tensor.name: count_bytes(tensor) or 0 for tensor in graph.initializer}
        total += sum(sizes.values())
        kinds: dict[str, set[str]] = {}
        for node in graph.node:
            for name in node.input:
                kinds.setdefault(name, set()).add(node.op_type)
        others += sum(sizes[name] for name in find_weights(graph) if not operators & kinds.get(name, set()))
    return others / total if total else 0.0


def find_weights(graph: onnx.GraphProto) -> list[str]:
    """Return the names of a graph's float32 weights that are large enough and read by standard operators only."""
    outputs = {value.name for value in graph.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for inner in walk_graphs(graph):
        for node in inner.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
    names = {tensor.name for tensor in graph.initializer}
    return [
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT
        and not _is_scale(tensor.name, names)
        and np.prod(tensor.dims) >= _MIN_VALUES
        and tensor.name not in outputs
        and readers.get(tensor.name)
        and all(node.domain in STANDARD_DOMAINS and node.op_type not in _QUANTIZERS for node in readers[tensor.name])
        and np.isfinite(tensor_values(tensor)).all()
    ]


def _is_scale(name: str, names: set[str]) -> bool:
    """Tell whether a tensor has the scales of another one, from an earlier quantization."""
    return any(
        name.endswith(suffix) and f"{name.removesuffix(suffix)}{other}" in names for suffix, other in _SCALES.items()
    )


def _store(graph: onnx.GraphProto, name: str, taken: set[str], bits: StoredBits, rows: Rows | None) -> None:
    tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
    stored, scale = round_stored_weight(tensor_values(tensor), rows, bits)
    integers, factors, floats = (unused_name(f"{name}_{part}", taken) for part in ("int8", "scale", "float"))
    graph.initializer.remove(tensor)
    graph.initializer.extend([numpy_helper.from_array(stored, integers), numpy_helper.from_array(scale, factors)])
    graph.node.insert(0, helper.make_node("Mul", [floats, factors], [name], f"{name}_scaled"))
    graph.node.insert(0, helper.make_node("Cast", [integers], [floats], f"{name}_cast", to=TensorProto.FLOAT))


def round_stored_weight(
    values: NDArray[np.float32], rows: Rows | None, bits: StoredBits
) -> tuple[NDArray[np.int8 | np.int16], NDArray[np.float32]]:
    """Return a weight as integers, and the scales that make it float again by a product.

    Args:
        values: Of any shape.
        rows: The layer that it belongs to, over whose inputs errors cancel; None: each is rounded to the nearest step.
        bits: Of each value.
    """
    by_rows = None if rows is None or bits == _WIDE_BITS else _round_rows(values, rows, bits)
    return by_rows or round_weights(values, bits)


def _round_rows(
    values: NDArray[np.float32], rows: Rows, bits: StoredBits
) -> tuple[NDArray[np.int8], NDArray[np.float32]] | None:
    """Return weights in int8 and a scale for each row, so that errors cancel; None if rows are too short for one."""
    weights = rows.layer.to_rows(values)
    if weights.shape[2] * _MAX_SCALES_RATIO < 1:
        return None
    grid = find_grid(weights, rows.moments, bits, any_sign=True)
    stored = rows.layer.from_rows(round_with_compensation(weights, grid, rows.moments), values.shape)
    scale = rows.layer.from_rows(np.broadcast_to(grid.scale, weights.shape), values.shape)
    return np.ascontiguousarray(stored, np.int8), np.ascontiguousarray(_without_repeats(scale), np.float32)


def _without_repeats(scale: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return an array with a single entry along each axis on which all are equal."""
    for axis in range(scale.ndim):
        first = scale.take([0], axis)
        scale = first if (scale == first).all() else scale
    return scale


def round_weights(
    values: NDArray[np.float32], bits: StoredBits = 8
) -> tuple[NDArray[np.int8 | np.int16], NDArray[np.float32]]:
    """Return weights in int8, and their scales, along the axis with the smallest error; a single one if all are short.

    Args:
        values: Of any shape.
        bits: Of each weight.

    Returns:
        Integers of that shape, and scales of as many axes, all but one of length 1.
    """
    dtype = np.int16 if bits == _WIDE_BITS else np.int8
    best: tuple[float, NDArray[np.int8 | np.int16], NDArray[np.float32]] | None = None
    axes: list[int | None] = [
        axis for axis in range(values.ndim) if values.shape[axis] <= _MAX_SCALES_RATIO * values.size
    ]
    for axis in axes or [None]:
        rows = values.reshape(1, -1) if axis is None else np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
        grid = _nearest_grid(rows, bits)
        scale = grid.scale.astype(np.float32).reshape([-1 if one == axis else 1 for one in range(values.ndim)])
        stored = np.clip(np.rint(values / scale), grid.low, grid.high)
        error = float(((stored * scale - values) ** 2).sum(dtype=np.float64))
        if best is None or error < best[0]:
            best = error, stored.astype(dtype), scale
    assert best is not None
    return best[1:]


def _nearest_grid(rows: NDArray[np.float32], bits: StoredBits) -> Grid:
    """Return a scale for each row ``(rows, values)``; in few bits one that cuts off what costs the others too much."""
    if bits < _INT8_BITS:
        return find_grid(rows[None], None, bits, any_sign=True)
    levels, largest = _WIDE_LEVELS if bits == _WIDE_BITS else _LEVELS, np.abs(rows).max(1, initial=0.0)
    return Grid(np.where(largest > 0, largest / levels, 1), np.zeros(()), -levels, levels)
