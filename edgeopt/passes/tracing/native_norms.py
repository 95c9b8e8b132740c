"""Norms by their native operators (``torch.native_layer_norm``), which also return statistics that only training needs.

``torch.export`` leaves ``layer_norm`` and its like in one piece; native ones come from code that calls them itself. If
their statistics are not used, they are written as the plain operators, which have pruning rules and train.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from edgeopt.passes.aten import argument_names, aten

_Arguments = tuple[Any, ...]


def _layer_norm(x: Any, shape: Any, weight: Any, bias: Any, eps: float) -> _Arguments:
    return x, shape, weight, bias, eps


def _group_norm(x: Any, weight: Any, bias: Any, n: Any, c: Any, size: Any, groups: int, eps: float) -> _Arguments:
    return x, groups, weight, bias, eps


def _batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float
) -> _Arguments:
    return x, weight, bias, mean, variance, training, momentum, eps, False


def _batch_norm_in_evaluation(
    x: Any, weight: Any, bias: Any, mean: Any, variance: Any, momentum: float, eps: float
) -> _Arguments:
    return _batch_norm(x, weight, bias, mean, variance, False, momentum, eps)


PLAIN: dict[Any, tuple[Any, Callable[..., _Arguments]]] = {
    aten.native_layer_norm: (aten.layer_norm.default, _layer_norm),
    aten.native_group_norm: (aten.group_norm.default, _group_norm),
    aten.native_batch_norm: (aten.batch_norm.default, _batch_norm),
    aten._native_batch_norm_legit: (aten.batch_norm.default, _batch_norm),
    aten._native_batch_norm_legit_no_training: (aten.batch_norm.default, _batch_norm_in_evaluation),
}
"""The plain operator of each native one, and its arguments from the native one's."""


def write_plain_norms(graph: fx.Graph) -> None:
    """Replace native norms by plain ones, in place, if only the first of their results is used."""
    for node in list(graph.nodes):
        found = PLAIN.get(getattr(node.target, "overloadpacket", None))
        users = [user for user in node.users if user.users]
        if found is None or not all(user.target is operator.getitem and user.args[1] == 0 for user in users):
            continue
        target, arrange = found
        with graph.inserting_before(node):
            plain = graph.call_function(target, arrange(*_all_arguments(node)))
        plain.meta = {key: value for key, value in node.meta.items() if key != "val"}
        for user in users:
            plain.meta |= {key: user.meta[key] for key in ("val",) if key in user.meta}
            user.replace_all_uses_with(plain)
        for user in list(node.users):
            graph.erase_node(user)
        graph.erase_node(node)


def _all_arguments(node: fx.Node) -> Sequence[Any]:
    """Return a node's arguments in the order of its schema, with None for statistics that it does not take."""
    names = argument_names(node)
    given = [*node.args, *(node.kwargs[name] for name in names[len(node.args) :])]
    is_without = node.target is aten._native_batch_norm_legit.no_stats
    return [*given[:3], None, None, *given[3:]] if is_without else given
