"""Stores weights in int8 with a scale for each channel, and makes them float again with a ``Cast`` and a ``Mul``.

ONNX Runtime folds both when it loads the file, which it does not do with a ``DequantizeLinear``: the file is small, and
runs as fast as before. Activations and all arithmetic stay float32, so nothing has to be calibrated, and every operator
can read such weights: convolutions, recurrent cells, embeddings, the matrices of signal front ends.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeopt.errors import StepError
from edgeopt.graph.model import STANDARD_DOMAINS, lift_constants, lower_ir, unused_name, used_names, walk_graphs
from edgeopt.model_files.tensors import count_bytes, tensor_values

_STAGE = "quantize"
_MIN_VALUES = 1024
"""Smaller tensors save less than their scales and node cost."""
_MAX_SCALES_RATIO = 1 / 16
"""Scales of an axis, over the values: with more, they would take a quarter of the saved bytes."""
_LEVELS = 127
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


def store_int8_weights(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Return the model with its large float32 weights in int8, and how many there are.

    Raises:
        StepError: there are none.
    """
    lower_ir(model)
    count, taken = 0, used_names(model.graph)
    for graph in walk_graphs(model.graph):
        lift_constants(graph)
        for name in _find_weights(graph):
            _store(graph, name, taken)
            count += 1
    if not count:
        raise StepError(_STAGE, f"no float32 weight of this graph has {_MIN_VALUES} values: this variant is skipped.")
    return model, count


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
        readers = {name: [node.op_type for node in graph.node if name in node.input] for name in _find_weights(graph)}
        others += sum(sizes[name] for name, kinds in readers.items() if not operators & set(kinds))
    return others / total if total else 0.0


def _find_weights(graph: onnx.GraphProto) -> list[str]:
    """Return the names of a graph's float32 weights that are large enough and read by standard operators only."""
    outputs = {value.name for value in graph.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for inner in walk_graphs(graph):
        for node in inner.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
    return [
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT
        and np.prod(tensor.dims) >= _MIN_VALUES
        and tensor.name not in outputs
        and readers.get(tensor.name)
        and all(node.domain in STANDARD_DOMAINS and node.op_type not in _QUANTIZERS for node in readers[tensor.name])
        and np.isfinite(tensor_values(tensor)).all()
    ]


def _store(graph: onnx.GraphProto, name: str, taken: set[str]) -> None:
    tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
    values = tensor_values(tensor)
    stored, scale, axis = round_weights(values)
    if axis is not None:
        scale = scale.reshape([-1 if one == axis else 1 for one in range(values.ndim)])
    integers, factors, floats = (unused_name(f"{name}_{part}", taken) for part in ("int8", "scale", "float"))
    graph.initializer.remove(tensor)
    graph.initializer.extend([numpy_helper.from_array(stored, integers), numpy_helper.from_array(scale, factors)])
    graph.node.insert(0, helper.make_node("Mul", [floats, factors], [name], f"{name}_scaled"))
    graph.node.insert(0, helper.make_node("Cast", [integers], [floats], f"{name}_cast", to=TensorProto.FLOAT))


def round_weights(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32], int | None]:
    """Return weights in int8, their scales, and the axis of the scales with the smallest error; None for one scale."""
    best: tuple[float, NDArray[np.int8], NDArray[np.float32], int | None] | None = None
    for axis in (None, *range(values.ndim)):
        if axis is not None and values.shape[axis] > _MAX_SCALES_RATIO * values.size:
            continue
        others = tuple(other for other in range(values.ndim) if other != axis)
        largest = np.abs(values).max(axis=None if axis is None else others, keepdims=axis is not None)
        scale = np.asarray(np.where(largest > 0, largest / _LEVELS, 1), dtype=np.float32)
        stored = np.clip(np.rint(values / scale), -_LEVELS, _LEVELS)
        error = float(((stored * scale - values) ** 2).sum(dtype=np.float64))
        if best is None or error < best[0]:
            best = error, stored.astype(np.int8), scale.reshape(() if axis is None else -1), axis
    assert best is not None
    return best[1:]
