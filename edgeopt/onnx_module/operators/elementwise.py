"""Operators that work element by element, with broadcasting."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeopt.onnx_module.constants import TYPES, name_type
from edgeopt.onnx_module.node import Node, Operator
from edgeopt.onnx_module.values import Value, as_list, as_tensor, is_plain

_FIRST_WITH_BROADCASTING = 7
"""Before this operator set, an operand was broadcast only with ``broadcast = 1``, and aligned at ``axis``."""


def unary(function: Callable[[Tensor], Tensor]) -> Operator:
    """Make an operator of one input without attributes."""
    return Operator(lambda _node, x: function(x))


def binary(function: Callable[[Any, Any], Tensor]) -> Operator:
    """Make an operator of two inputs. A constant of one number becomes a literal of the traced graph."""

    def compute(node: Node, a: Value, b: Value) -> Tensor:
        left, right = operands(node, a, b)
        return function(left, right)

    return Operator(compute, either=(0, 1), weights=(0, 1))


def commutative(function: Callable[[Any, Any], Tensor]) -> Operator:
    """Make an operator of two inputs in any order: a number comes second, because exporters know no other order."""

    def compute(node: Node, a: Value, b: Value) -> Tensor:
        left, right = operands(node, a, b)
        return function(left, right) if isinstance(left, Tensor) else function(right, left)

    return Operator(compute, either=(0, 1), weights=(0, 1))


def operands(node: Node, a: Value, b: Value) -> tuple[Any, Any]:
    """Return two operands as tensors, or one of them as a number."""
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        a, b = as_tensor(a), as_tensor(b)
    elif not isinstance(a, Tensor) and isinstance(b, Tensor):
        return _literal(a, b), b
    elif isinstance(a, Tensor) and not isinstance(b, Tensor):
        return a, _aligned(node, a, _literal(b, a))
    return a, _aligned(node, a, b)


def _literal(value: Any, other: Tensor) -> Any:
    """Return numbers as one number, if that is what they are and the result keeps its rank, else as a tensor."""
    if value.size == 1 and value.ndim <= other.dim() and is_plain(value):
        return as_list(value)[0]
    return as_tensor(value, other.device)


def _aligned(node: Node, a: Any, b: Any) -> Any:
    axis = node.get("axis")
    if node.opset >= _FIRST_WITH_BROADCASTING or axis is None or not isinstance(b, Tensor):
        return b
    return b.reshape(*b.shape, *[1] * (a.dim() - axis % a.dim() - b.dim()))


def _divide(a: Any, b: Any) -> Tensor:
    integers = not any(value.is_floating_point() if isinstance(value, Tensor) else isinstance(value, float)
                       for value in (a, b))  # fmt: skip
    if not integers:
        return torch.true_divide(a, b)
    return torch.div(a if isinstance(a, Tensor) else torch.full_like(b, a), b, rounding_mode="trunc")


def _power(node: Node, a: Value, b: Value) -> Tensor:
    base, exponent = operands(node, a, b)
    dtype = base.dtype if isinstance(base, Tensor) else as_tensor(a).dtype
    if isinstance(exponent, Tensor) and not dtype.is_floating_point and exponent.is_floating_point():
        return torch.pow(base.to(exponent.dtype), exponent).to(dtype)
    result: Tensor = torch.pow(base, exponent)
    return result.to(dtype)


def _modulo(node: Node, a: Value, b: Value) -> Tensor:
    left, right = operands(node, a, b)
    left = left if isinstance(left, Tensor) else torch.full_like(right, left)
    return torch.fmod(left, right) if node.get("fmod", 0) else torch.remainder(left, right)


def _shift(node: Node, a: Tensor, b: Tensor) -> Tensor:
    return a << b if node.get("direction") == "LEFT" else a >> b


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return Operator(lambda _node, *values: functools.reduce(function, values))


def _mean(_node: Node, *values: Tensor) -> Tensor:
    total: Tensor = functools.reduce(torch.add, values)
    return total / len(values)


def _clip(node: Node, x: Tensor, low: Value | None = None, high: Value | None = None) -> Tensor:
    limits: list[Any] = [node.get("min"), node.get("max")]
    for place, value in enumerate((low, high)):
        if value is not None:
            limits[place] = value if isinstance(value, Tensor) else as_list(value)[0]
    if any(isinstance(limit, Tensor) for limit in limits):
        limits = [limit if limit is None or isinstance(limit, Tensor) else x.new_tensor(limit) for limit in limits]
    return torch.clamp(x, *limits) if limits != [None, None] else x


def _cast(node: Node, x: Tensor) -> Tensor:
    dtype = TYPES.get(node.get("to"))
    if dtype is None:
        raise node.refuse(f"casts to {name_type(node.get('to'))}, which is not supported.")
    return x if x.dtype == dtype else x.to(dtype)


def _gelu(node: Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=node.get("approximate", "none"))


def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    alpha, beta = node.get("alpha", 0.2), node.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(alpha * x + beta, 0, 1)


def _prelu(_node: Node, x: Tensor, slope: Tensor) -> Tensor:
    per_channel = slope.dim() == x.dim() - 1 and slope.numel() == slope.shape[0] and x.dim() > 2
    if slope.numel() == 1 or (per_channel and slope.shape[0] == x.shape[1]):
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


def _shrink(node: Node, x: Tensor) -> Tensor:
    bias, limit = node.get("bias", 0.0), node.get("lambd", 0.5)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


def _is_infinite(node: Node, x: Tensor) -> Tensor:
    positive, negative = node.get("detect_positive", 1), node.get("detect_negative", 1)
    found = torch.isinf(x)
    if not positive:
        found = found & (x < 0)
    return found if negative else found & (x > 0)


def _selu(node: Node, x: Tensor) -> Tensor:
    alpha, gamma = node.get("alpha", 1.67326319217681884765625), node.get("gamma", 1.05070102214813232421875)
    return torch.mul(F.elu(x, alpha), gamma)


TABLE: dict[str, Operator] = {
    "Add": commutative(torch.add),
    "Sub": binary(torch.sub),
    "Mul": commutative(torch.mul),
    "Div": binary(_divide),
    "Pow": Operator(_power, either=(0, 1)),
    "Mod": Operator(_modulo, either=(0, 1)),
    "BitShift": Operator(_shift),
    "Sum": _variadic(torch.add),
    "Max": _variadic(torch.maximum),
    "Min": _variadic(torch.minimum),
    "Mean": Operator(_mean),
    "And": _variadic(torch.logical_and),
    "Or": _variadic(torch.logical_or),
    "Xor": _variadic(torch.logical_xor),
    "BitwiseAnd": _variadic(torch.bitwise_and),
    "BitwiseOr": _variadic(torch.bitwise_or),
    "BitwiseXor": _variadic(torch.bitwise_xor),
    "BitwiseNot": unary(torch.bitwise_not),
    "Equal": commutative(torch.eq)._replace(weights=()),
    "Less": Operator(lambda node, a, b: torch.lt(*operands(node, a, b)), either=(1,)),
    "LessOrEqual": Operator(lambda node, a, b: torch.le(*operands(node, a, b)), either=(1,)),
    "Greater": Operator(lambda node, a, b: torch.gt(*operands(node, a, b)), either=(1,)),
    "GreaterOrEqual": Operator(lambda node, a, b: torch.ge(*operands(node, a, b)), either=(1,)),
    "Not": unary(torch.logical_not),
    "Where": Operator(lambda _node, condition, a, b: torch.where(condition, a, b)),
    "Abs": unary(torch.abs),
    "Acos": unary(torch.acos),
    "Acosh": unary(torch.acosh),
    "Asin": unary(torch.asin),
    "Asinh": unary(torch.asinh),
    "Atan": unary(torch.atan),
    "Atanh": unary(torch.atanh),
    "Ceil": unary(torch.ceil),
    "Cos": unary(torch.cos),
    "Cosh": unary(torch.cosh),
    "Erf": unary(torch.erf),
    "Exp": unary(torch.exp),
    "Floor": unary(torch.floor),
    "IsNaN": unary(torch.isnan),
    "IsInf": Operator(_is_infinite),
    "Log": unary(torch.log),
    "Neg": unary(torch.neg),
    "Reciprocal": unary(torch.reciprocal),
    "Round": unary(torch.round),
    "Sign": unary(torch.sign),
    "Sin": unary(torch.sin),
    "Sinh": unary(torch.sinh),
    "Sqrt": unary(torch.sqrt),
    "Tan": unary(torch.tan),
    "Tanh": unary(torch.tanh),
    "Relu": unary(F.relu),
    "Sigmoid": unary(torch.sigmoid),
    "HardSwish": unary(F.hardswish),
    "Mish": unary(F.mish),
    "Softplus": unary(F.softplus),
    "Softsign": unary(F.softsign),
    "Celu": Operator(lambda node, x: F.celu(x, node.get("alpha", 1.0))),
    "Elu": Operator(lambda node, x: F.elu(x, node.get("alpha", 1.0))),
    "Gelu": Operator(_gelu),
    "HardSigmoid": Operator(_hard_sigmoid),
    "LeakyRelu": Operator(lambda node, x: F.leaky_relu(x, node.get("alpha", 0.01))),
    "PRelu": Operator(_prelu, weights=(1,)),
    "Selu": Operator(_selu),
    "Shrink": Operator(_shrink),
    "Swish": Operator(lambda node, x: x * torch.sigmoid(node.get("alpha", 1.0) * x)),
    "ThresholdedRelu": Operator(lambda node, x: F.threshold(x, node.get("alpha", 1.0), 0.0)),
    "Clip": Operator(_clip, either=(1, 2)),
    "Cast": Operator(_cast),
    "CastLike": Operator(lambda _node, x, like: x if x.dtype == like.dtype else x.to(like.dtype)),
}
