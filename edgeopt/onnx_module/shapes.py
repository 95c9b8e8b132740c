"""Operators on numbers that are known without running the graph: arithmetic on shapes.

In and out: numpy arrays, with dynamic sizes as ``torch.SymInt`` in arrays of objects.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch

from edgeopt.onnx_module.constants import TYPES
from edgeopt.onnx_module.node import Node
from edgeopt.onnx_module.values import MAX_NUMBERS, Numbers, as_list

_sym: Any = torch
"""torch has no types for its functions on sizes."""


def read_shape(node: Node, x: Any) -> Numbers:
    """Return the sizes of a tensor, or of numbers."""
    sizes = np.empty(len(x.shape), dtype=object)
    sizes[:] = list(x.shape)
    found: Numbers = sizes[slice(node.get("start", 0), node.get("end"))]
    return found


def count_elements(_node: Node, x: Any) -> Numbers:
    """Return the number of elements."""
    return _objects(math.prod(x.shape))


def _objects(value: Any) -> Numbers:
    array = np.empty((), dtype=object)
    array[()] = value
    return array


def _each(function: Callable[..., Any]) -> Callable[..., Numbers]:
    """Make an operator that works element by element on arrays of objects."""
    ufunc: Any = np.frompyfunc(function, function.__code__.co_argcount, 1)

    def compute(_node: Node, *arrays: Numbers) -> Numbers:
        return np.asarray(ufunc(*(array.astype(object) for array in arrays)), dtype=object)

    return compute


def _absolute(a: Any) -> Any:
    return abs(a)


def _floor(a: Any) -> Any:
    return _sym.sym_float(math.floor(a))


def _ceil(a: Any) -> Any:
    return _sym.sym_float(math.ceil(a))


def _smaller(a: Any, b: Any) -> Any:
    return _sym.sym_min(a, b)


def _larger(a: Any, b: Any) -> Any:
    return _sym.sym_max(a, b)


def _divide(a: Any, b: Any) -> Any:
    if isinstance(a, float | torch.SymFloat) or isinstance(b, float | torch.SymFloat):
        return a / b
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return a // b  # sizes are not negative


def _fold(function: Callable[[Any, Any], Any]) -> Callable[..., Numbers]:
    """Make a reduction over all axes, of at most one."""

    def compute(node: Node, x: Numbers, axes: Numbers | None = None) -> Numbers:
        chosen = node.get("axes", [0]) if axes is None else as_list(axes)
        if x.ndim != 1 or list(chosen) not in ([0], [-1], []):
            raise node.refuse(f"reduces sizes of shape {x.shape} over {chosen}, which is not supported.")
        values = as_list(x)
        total = _objects(values[0] if values else 0)
        for value in values[1:]:
            total = _objects(function(total[()], value))
        return total.reshape(1) if node.get("keepdims", 1) else total

    return compute


def _cast(node: Node, x: Numbers) -> Numbers:
    dtype = TYPES.get(node.get("to"))
    if dtype is None or dtype == torch.bool:
        function: Callable[[Any], Any] = bool
    else:
        function = _sym.sym_float if dtype.is_floating_point else _sym.sym_int
    return np.asarray(np.frompyfunc(function, 1, 1)(x.astype(object)), dtype=object)


def _gather(node: Node, x: Numbers, indices: Numbers) -> Numbers:
    return np.asarray(np.take(x, indices.astype(np.int64), axis=node.get("axis", 0)), dtype=object)


def _slice(node: Node, x: Numbers, *given: Numbers | None) -> Numbers:
    values = [None if value is None else [int(one) for one in as_list(value)] for value in given]
    starts, ends = values[:2] if values else (node.get("starts"), node.get("ends"))
    axes = (values[2] if len(values) > 2 else node.get("axes")) or list(range(len(starts or ())))
    steps = (values[3] if len(values) > 3 else None) or [1] * len(axes)
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts or (), ends or (), steps, strict=True):
        stop = None if step < 0 and end < -x.shape[axis] else end
        index[axis] = slice(start, stop, step)
    found: Numbers = x[tuple(index)]
    return found


def _concat(node: Node, *arrays: Numbers) -> Numbers:
    return np.concatenate([array.astype(object) for array in arrays], node.get("axis", 0))


def _unsqueeze(node: Node, x: Numbers, axes: Numbers | None = None) -> Numbers:
    chosen = node.get("axes") if axes is None else as_list(axes)
    return np.expand_dims(x, tuple(int(axis) for axis in chosen))


def _squeeze(node: Node, x: Numbers, axes: Numbers | None = None) -> Numbers:
    chosen = node.get("axes") if axes is None else as_list(axes)
    return np.squeeze(x, None if chosen is None else tuple(int(axis) for axis in chosen))


def _reshape(node: Node, x: Numbers, sizes: Numbers | None = None) -> Numbers:
    return x.reshape([int(one) for one in (node.get("shape", []) if sizes is None else as_list(sizes))])


def _transpose(node: Node, x: Numbers) -> Numbers:
    return np.transpose(x, node.get("perm"))


def _split(node: Node, x: Numbers, parts: Numbers | None = None) -> tuple[Numbers, ...]:
    axis, lengths = node.get("axis", 0), node.get("split") if parts is None else as_list(parts)
    if lengths is None:
        return tuple(np.array_split(x, len(node.outputs), axis))
    return tuple(np.split(x, np.cumsum([int(one) for one in lengths])[:-1], axis))


def _where(_node: Node, condition: Numbers, x: Numbers, y: Numbers) -> Numbers:
    def choose(first: Any, a: Any, b: Any) -> Any:
        return a if first else b

    return np.asarray(np.frompyfunc(choose, 3, 1)(*map(_as_objects, (condition, x, y))), dtype=object)


def _as_objects(array: Numbers) -> Numbers:
    return array.astype(object)


def _range(_node: Node, start: Numbers, limit: Numbers, step: Numbers) -> Any:
    """Return a short range of known numbers; a longer one is a tensor, such as positions."""
    first, last, by = (as_list(value)[0] for value in (start, limit, step))
    if not all(isinstance(value, int) for value in (first, last, by)) or len(range(first, last, by)) > MAX_NUMBERS:
        return NotImplemented
    return np.array(range(first, last, by), dtype=object)


def _constant_of_shape(node: Node, sizes: Numbers) -> Any:
    """Return a few known numbers; anything larger is a tensor."""
    count, stored = as_list(sizes), node.get("value")
    value = 0.0 if stored is None else np.array(onnx.numpy_helper.to_array(stored)).reshape(-1)[0].item()
    if len(count) != 1 or not isinstance(count[0], int) or count[0] > MAX_NUMBERS:
        return NotImplemented
    return np.array([value] * count[0], dtype=object)


NUMBER_OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": _each(lambda a, b: a + b),
    "Sub": _each(lambda a, b: a - b),
    "Mul": _each(lambda a, b: a * b),
    "Div": _each(_divide),
    "Mod": _each(lambda a, b: a % b),
    "Neg": _each(lambda a: -a),
    "Abs": _each(_absolute),
    "Floor": _each(_floor),
    "Ceil": _each(_ceil),
    "Min": _each(_smaller),
    "Max": _each(_larger),
    "Equal": _each(lambda a, b: bool(a == b)),
    "Less": _each(lambda a, b: bool(a < b)),
    "Greater": _each(lambda a, b: bool(a > b)),
    "LessOrEqual": _each(lambda a, b: bool(a <= b)),
    "GreaterOrEqual": _each(lambda a, b: bool(a >= b)),
    "Not": _each(lambda a: not a),
    "And": _each(lambda a, b: bool(a and b)),
    "Or": _each(lambda a, b: bool(a or b)),
    "Where": _where,
    "Cast": _cast,
    "Identity": lambda _node, x: x,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Split": _split,
    "Range": _range,
    "ConstantOfShape": _constant_of_shape,
    "ReduceProd": _fold(operator.mul),
    "ReduceSum": _fold(operator.add),
    "ReduceMax": _fold(_larger),
    "ReduceMin": _fold(_smaller),
}
"""What is computed on numbers if all inputs are numbers. Whatever is missing here becomes a tensor, as does a result of
``NotImplemented``."""
