"""Sums, maxima and norms over axes; softmax, cumulative sums and sorting along one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeopt.onnx_module.node import Node, Operator
from edgeopt.onnx_module.values import Numbers, as_list

_FIRST_SOFTMAX_ALONG_ONE_AXIS = 13
"""Before this operator set, softmax sees its input as a matrix that is split at ``axis``."""


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    """Make a reduction; axes are an attribute, or an input of a later operator set."""

    def compute(node: Node, x: Tensor, axes: Numbers | None = None) -> Tensor:
        chosen = node.get("axes", []) if axes is None else [int(axis) for axis in as_list(axes)]
        if not chosen and node.get("noop_with_empty_axes", 0):
            return function(x.unsqueeze(0), [0], False)  # each element is reduced by itself
        dims = sorted(axis % x.dim() for axis in chosen) if chosen else list(range(x.dim()))
        return function(x, dims, bool(node.get("keepdims", 1))) if dims else x

    return Operator(compute, numbers=(1,))


def _product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in reversed(dims):
        x = torch.prod(x, dim, keepdim=keep)
    return x


def _sum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.sum(x, dims, keepdim=keep, dtype=x.dtype)


def _log_sum_exp(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x if x.is_floating_point() else x.float(), dims, keep).to(x.dtype)


def _arg(function: Callable[..., Any]) -> Operator:
    def compute(node: Node, x: Tensor) -> Any:
        axis, keep = node.get("axis", 0), bool(node.get("keepdims", 1))
        if node.get("select_last_index", 0):
            return x.shape[axis] - 1 - function(x.flip(axis), dim=axis, keepdim=keep)
        return function(x, dim=axis, keepdim=keep)

    return Operator(compute)


def _softmax(function: Callable[..., Any]) -> Operator:
    def compute(node: Node, x: Tensor) -> Any:
        if node.opset >= _FIRST_SOFTMAX_ALONG_ONE_AXIS:
            return function(x, dim=node.get("axis", -1))
        axis = node.get("axis", 1) % x.dim()
        if axis == x.dim() - 1:
            return function(x, dim=axis)
        return function(x.flatten(axis), dim=axis).reshape(x.shape)

    return Operator(compute)


def _hardmax(x: Tensor, dim: int) -> Tensor:
    largest = x.argmax(dim, keepdim=True)
    return torch.zeros_like(x).scatter(dim, largest, torch.ones_like(x))


def _cumulative(function: Callable[..., Any], start: float) -> Operator:
    def compute(node: Node, x: Tensor, axis: Numbers) -> Any:
        dim = int(as_list(axis)[0]) % x.dim()
        x = x.flip(dim) if node.get("reverse", 0) else x
        total = function(x, dim, dtype=x.dtype)
        if node.get("exclusive", 0):
            first = torch.full_like(total.narrow(dim, 0, 1), start)
            total = torch.cat([first, total.narrow(dim, 0, total.shape[dim] - 1)], dim)
        return total.flip(dim) if node.get("reverse", 0) else total

    return Operator(compute, numbers=(1,))


def _top_k(node: Node, x: Tensor, count: Numbers | None = None) -> tuple[Tensor, Tensor]:
    k: Any = node.get("k") if count is None else as_list(count)[0]
    found = torch.topk(x, k, node.get("axis", -1), bool(node.get("largest", 1)), True)
    return found[0], found[1]


TABLE: dict[str, Operator] = {
    "ReduceSum": _reduce(_sum),
    "ReduceMean": _reduce(lambda x, dims, keep: x.mean(dims, keepdim=keep)),
    "ReduceMax": _reduce(lambda x, dims, keep: x.amax(dims, keepdim=keep)),
    "ReduceMin": _reduce(lambda x, dims, keep: x.amin(dims, keepdim=keep)),
    "ReduceProd": _reduce(_product),
    "ReduceL1": _reduce(lambda x, dims, keep: _sum(x.abs(), dims, keep)),
    "ReduceL2": _reduce(lambda x, dims, keep: torch.sqrt(_sum(x * x, dims, keep))),
    "ReduceSumSquare": _reduce(lambda x, dims, keep: _sum(x * x, dims, keep)),
    "ReduceLogSum": _reduce(lambda x, dims, keep: torch.log(_sum(x, dims, keep))),
    "ReduceLogSumExp": _reduce(_log_sum_exp),
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "Softmax": _softmax(F.softmax),
    "LogSoftmax": _softmax(F.log_softmax),
    "Hardmax": _softmax(_hardmax),
    "CumSum": _cumulative(torch.cumsum, 0),
    "CumProd": _cumulative(torch.cumprod, 1),
    "TopK": Operator(_top_k, numbers=(1,)),
}
