"""Composite operators: those that PyTorch itself computes by others, such as ``tensordot`` or ``vstack``.

``torch.export`` leaves them in the graph. One without a pruning rule of its own is replaced by the operators that it
consists of, so that their rules apply. So are operators that no ONNX exporter writes: ``cdist``, products of grouped
experts, and convolutions whose number of groups is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import guard_or_false
from torch.nn import functional

from edgeopt.passes.aten import argument, aten, read_attribute

_COMPOSITE = "CompositeImplicitAutograd"
"""PyTorch's dispatch key of an operator that consists of others and has no gradient of its own."""


def decompose_composites(module: fx.GraphModule, has_rule: Callable[[Any], bool]) -> None:
    """Replace every composite operator without a rule by the operators that it consists of, in place.

    Args:
        module: An exported graph, whose nodes still have their example values (``meta["val"]``).
        has_rule: Tells whether an operator stays as it is.
    """
    for node in list(module.graph.nodes):
        formula = _FORMULAS.get(getattr(getattr(node.target, "_schema", None), "name", ""))
        if _has_computed_groups(node):
            _replace(module, node, convolve_groups)
        elif formula is not None:
            _replace(module, node, formula)
        elif _is_composite(node.target) and not has_rule(node.target):
            _replace(module, node, node.target.decompose)


def _is_composite(target: Any) -> bool:
    """Tell whether an operator can be replaced: not one that computes differently in training, such as dropout."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    name: str = target._name
    in_training = any(argument.name in ("training", "train") for argument in target._schema.arguments)
    has_kernel = torch._C._dispatch_has_kernel(name)
    return has_kernel and not in_training and torch._C._dispatch_has_kernel_for_dispatch_key(name, _COMPOSITE)


def _replace(module: fx.GraphModule, node: fx.Node, compute: Callable[..., Any]) -> None:
    """Replace a node by the operators that ``compute`` calls for the same arguments, none of which is composite."""
    used = node.all_input_nodes

    def run(*given: Any) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), dict(zip(used, given, strict=True)).__getitem__)
        return compute(*args, **kwargs)

    result = insert_operators(module, node, run, used)
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
    for user in list(node.users):
        user.replace_all_uses_with(result[user.args[1]])
        module.graph.erase_node(user)
    module.graph.erase_node(node)


def insert_operators(
    module: fx.GraphModule, place: fx.Node, compute: Callable[..., Any], used: Sequence[fx.Node]
) -> Any:
    """Insert the operators that ``compute`` calls, none of which is composite, and return the nodes of its results.

    Args:
        module: An exported graph, whose nodes still have their example values (``meta["val"]``).
        place: The node before which they are inserted.
        compute: Any function of the values of ``used``.
        used: The nodes of its arguments.
    """
    parts = make_fx(compute, tracing_mode="symbolic")(*(_example(module, source) for source in used))
    inputs: dict[fx.Node, Any] = dict(zip(parts.graph.find_nodes(op="placeholder"), used, strict=True))
    with module.graph.inserting_before(place):
        for constant in parts.graph.find_nodes(op="get_attr"):
            inputs[constant] = _add_constant(module, read_attribute(parts, constant))
        return module.graph.graph_copy(parts.graph, inputs)


def _add_constant(module: fx.GraphModule, value: Tensor) -> fx.Node:
    number = next(count for count in range(len(module.graph.nodes) + 1) if not hasattr(module, f"constant_{count}"))
    module.register_buffer(f"constant_{number}", value)
    return module.graph.get_attr(f"constant_{number}")


def _example(module: fx.GraphModule, node: fx.Node) -> Any:
    """Return the value that a node has for the example inputs: without data, except for constants of the module."""
    return node.meta["val"] if "val" in node.meta else read_attribute(module, node)


def _distances(one: Tensor, other: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """Compute ``cdist(one[..., p, k], other[..., r, k])``, of shape [..., p, r], as PyTorch does.

    Euclidean distances of more than 25 rows come from products of matrices, unless ``compute_mode`` says otherwise
    (``aten/src/ATen/native/Distance.cpp``).
    """
    is_large = guard_or_false(one.shape[-2] > _FEW_ROWS) or guard_or_false(other.shape[-2] > _FEW_ROWS)
    if p != 2 or compute_mode == _NEVER_BY_PRODUCTS or not (is_large or compute_mode == _ALWAYS_BY_PRODUCTS):
        distances: Tensor = torch.linalg.vector_norm(one.unsqueeze(-2) - other.unsqueeze(-3), p, -1)
        return distances
    squares: Tensor = one.square().sum(-1, keepdim=True) + other.square().sum(-1).unsqueeze(-2)
    return (squares - 2 * one @ other.mT).clamp_min(_SMALLEST_SQUARE).sqrt()


_FEW_ROWS = 25
_ALWAYS_BY_PRODUCTS, _NEVER_BY_PRODUCTS = 1, 2
_SMALLEST_SQUARE = 1e-30
"""The gradient of a square root at 0 is infinite."""


def grouped_products(
    rows: Tensor, weights: Tensor, ends: Tensor, bias: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Multiply each row (k) by the weight (k, n) of its expert; rows are sorted by expert, ``ends`` says up to where.

    Rows after the last end belong to no expert and become 0, as in ``transformers.integrations.moe``.
    """
    numbers = torch.arange(rows.shape[0], device=rows.device, dtype=ends.dtype)
    before = (numbers.unsqueeze(1) >= ends).sum(1)
    expert = before.clamp_max(weights.shape[0] - 1)
    products = (rows.unsqueeze(1) @ weights[expert]).squeeze(1)
    if bias is not None:
        products = products + bias[expert]
    found = products * (before < weights.shape[0]).unsqueeze(1).to(products.dtype)
    return found if dtype is None else found.to(dtype)


def _has_computed_groups(node: fx.Node) -> bool:
    """Tell whether a node is a convolution of one or two dimensions with its samples in the groups."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet not in (aten.conv1d, aten.conv2d) or not isinstance(argument(node, "groups"), fx.Node):
        return False
    x, weight = (argument(node, name).meta["val"] for name in ("input", "weight"))
    is_folded = x.ndim == weight.ndim and isinstance(x.shape[0], int) and x.shape[0] == 1
    return is_folded and all(isinstance(size, int) for size in weight.shape[2:])


def convolve_groups(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] | str = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Tensor:
    """Compute ``conv2d(x[1, g * k, h, w])`` or ``conv1d(x[1, g * k, w])`` by a product of matrices for each group.

    A kernel for each sample puts the samples into groups (CondConv, StyleGAN2, the correlation of SiamRPN), so their
    number is that of the batch. The windows are columns, as in im2col (Chellapilla et al. 2006).
    """
    rank = weight.ndim - 2
    steps, rates = _for_each(stride, rank), _for_each(dilation, rank)
    total = [rate * (size - 1) for rate, size in zip(rates, weight.shape[2:], strict=True)]
    if padding == "same":
        x = functional.pad(x, [side for size in reversed(total) for side in (size // 2, size - size // 2)])
    pads = _for_each((0,) if isinstance(padding, str) else padding, rank)
    if rank == 1:
        return convolve_groups(
            x.unsqueeze(2), weight.unsqueeze(2), bias, [1, *steps], [0, *pads], [1, *rates], groups
        ).squeeze(2)
    sizes = [(x.shape[d + 2] + 2 * pads[d] - total[d] - 1) // steps[d] + 1 for d in range(2)]
    parts = x.reshape(groups, -1, *x.shape[2:])
    windows = functional.unfold(parts, tuple(weight.shape[2:]), tuple(rates), tuple(pads), tuple(steps))
    products = torch.bmm(weight.reshape(groups, -1, math.prod(weight.shape[1:])), windows)
    result = products.reshape(1, -1, *sizes)
    return result if bias is None else result + bias.reshape(-1, 1, 1)


def _for_each(value: Sequence[int], rank: int) -> list[int]:
    """Return a number for each dimension, of which PyTorch may be given one for all."""
    return list(value) * (rank // len(value))


_FORMULAS: dict[str, Callable[..., Any]] = {
    "aten::cdist": _distances,
    "aten::_grouped_mm": grouped_products,
    "transformers::grouped_mm_fallback": grouped_products,
}
"""By name: the second library's operators exist only where it is imported."""
