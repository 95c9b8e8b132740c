"""Operators that read or write by index, and that make tensors from numbers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeopt.onnx_module.constants import TYPES, name_type, read_tensor
from edgeopt.onnx_module.node import Node, Operator
from edgeopt.onnx_module.values import Numbers, Value, as_list, as_tensor, is_plain

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
"""ONNX's names and torch's."""


def _gather(node: Node, x: Tensor, indices: Value) -> Tensor:
    axis = node.get("axis", 0) % x.dim()
    if isinstance(indices, Tensor):
        if axis == 0 and x.dim() == 2 and x.is_floating_point():
            return F.embedding(_from_start(indices, x.shape[0]), x)
        chosen = x.index_select(axis, _from_start(indices, x.shape[axis]).reshape(-1))
        return chosen.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    if indices.ndim == 0:
        return x.select(axis, as_list(indices)[0])
    if is_plain(indices) and indices.ndim == 1:
        run = [int(one) for one in indices]
        if run[0] >= 0 and run == list(range(run[0], run[0] + len(run))):
            return x.narrow(axis, run[0], len(run))
    return _gather(node, x, as_tensor(indices, x.device).long())


def _from_start(indices: Tensor, size: Any) -> Tensor:
    """Count negative indices from the end."""
    indices = indices if indices.dtype == torch.int64 else indices.long()
    return torch.where(indices < 0, indices + size, indices)


def _gather_elements(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.get("axis", 0)
    return torch.gather(x, axis, _from_start(indices, x.shape[axis]))


def _gather_nd(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    count, depth = node.get("batch_dims", 0), indices.shape[-1]
    where: list[Any] = []
    for dim in range(count):
        sizes = [1] * (indices.dim() - 1)
        sizes[dim] = x.shape[dim]
        where.append(torch.arange(x.shape[dim], device=x.device).reshape(sizes))
    where += [_from_start(indices[..., place], x.shape[count + place]) for place in range(depth)]
    result: Tensor = x[tuple(where)]
    return result


def _scatter_elements(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis, how = node.get("axis", 0), node.get("reduction", "none")
    places = _from_start(indices, x.shape[axis])
    if how == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _REDUCTIONS[how])


def _scatter_nd(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    how, depth = node.get("reduction", "none"), indices.shape[-1]
    where = tuple(_from_start(indices[..., place], x.shape[place]) for place in range(depth))
    if how in ("none", "add"):
        return x.index_put(where, updates, accumulate=how == "add")
    rows = torch.zeros_like(where[0])
    for place, index in enumerate(where):
        rows = rows * x.shape[place] + index
    flat = x.reshape(-1, *x.shape[depth:])
    changes = updates.reshape(-1, *x.shape[depth:])
    places = rows.reshape(-1, *[1] * (flat.dim() - 1)).expand_as(changes)
    return flat.scatter_reduce(0, places, changes, _REDUCTIONS[how]).reshape(x.shape)


def _one_hot(node: Node, indices: Tensor, depth: Numbers, values: Tensor) -> Tensor:
    count: Any = as_list(depth)[0]
    axis = node.get("axis", -1) % (indices.dim() + 1)
    classes = torch.arange(int(count), device=indices.device).reshape(-1, *[1] * (indices.dim() - axis))
    places = torch.where(indices < 0, indices + int(count), indices).unsqueeze(axis)
    return torch.where(places == classes, values[1], values[0])


def _triangle(node: Node, x: Tensor, diagonal: Numbers | None = None) -> Tensor:
    offset = 0 if diagonal is None else int(as_list(diagonal)[0])
    return torch.triu(x, offset) if node.get("upper", 1) else torch.tril(x, offset)


def _constant(node: Node) -> Tensor:
    for name, dtype in (("value_float", torch.float32), ("value_floats", torch.float32),
                        ("value_int", torch.int64), ("value_ints", torch.int64)):  # fmt: skip
        if name in node.attributes:
            return torch.tensor(node.get(name), dtype=dtype)
    stored = node.get("value")
    tensor = None if stored is None else read_tensor(stored)
    if tensor is None:
        kind = "of a form that is not supported" if stored is None else f"of type {name_type(stored.data_type)}"
        raise node.refuse(f"is a constant {kind}.")
    return tensor


def _constant_of_shape(node: Node, sizes: Numbers) -> Tensor:
    stored = node.get("value")
    value = torch.zeros(1) if stored is None else read_tensor(stored)
    if value is None:
        raise node.refuse(f"fills with {name_type(stored.data_type)}, which is not supported.")
    return torch.full(as_list(sizes), value.item(), dtype=value.dtype)


def _range(_node: Node, start: Numbers, limit: Numbers, step: Numbers) -> Tensor:
    first, last, by = (as_list(value)[0] for value in (start, limit, step))
    dtype = as_tensor(start).dtype if start.dtype != object else None
    return torch.arange(first, last, by, dtype=dtype)


def _eye_like(node: Node, x: Tensor) -> Tensor:
    dtype = TYPES[node.get("dtype")] if node.get("dtype") else x.dtype
    rows, columns = (torch.arange(size, device=x.device) for size in x.shape)
    diagonal: int = node.get("k", 0)
    return torch.eq(columns - rows[:, None], diagonal).to(dtype)


def _reverse_sequence(node: Node, x: Tensor, lengths: Tensor) -> Tensor:
    time, batch = node.get("time_axis", 0), node.get("batch_axis", 1)
    steps = torch.arange(x.shape[time], device=x.device)
    ends = lengths.long()[:, None]
    source = torch.where(steps < ends, ends - 1 - steps, steps)  # [batch, time]
    source = source if batch < time else source.t()
    return torch.gather(x, time, source.reshape(*source.shape, *[1] * (x.dim() - 2)).expand_as(x))


TABLE: dict[str, Operator] = {
    "Gather": Operator(_gather, either=(1,), weights=(0,)),
    "GatherElements": Operator(_gather_elements),
    "GatherND": Operator(_gather_nd),
    "ScatterElements": Operator(_scatter_elements),
    "Scatter": Operator(_scatter_elements),
    "ScatterND": Operator(_scatter_nd),
    "OneHot": Operator(_one_hot, numbers=(1,)),
    "Trilu": Operator(_triangle, numbers=(1,)),
    "Constant": Operator(_constant),
    "ConstantOfShape": Operator(_constant_of_shape, numbers=(0,)),
    "Range": Operator(_range, numbers=(0, 1, 2)),
    "EyeLike": Operator(_eye_like),
    "ReverseSequence": Operator(_reverse_sequence),
}
