"""``Masked``: how the zero-masked original computes each node that a pruned network is compared with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from edgeopt.passes.aten import aten
from edgeopt.passes.prune.interpret import Marks
from edgeopt.passes.prune.labels import Integers, Marked
from edgeopt.passes.prune.resize import kept_of, kept_part

NORMS = (aten.layer_norm, aten.rms_norm, aten.group_norm)
KEPT_ALONE = (
    aten.mean, aten.var, aten.std, aten.var_mean, aten.std_mean, aten.amax, aten.amin, aten.logsumexp,
    aten.linalg_vector_norm, aten.norm,
)  # fmt: skip
"""Reductions over channels, where zeros would count. They and norms are computed on what is kept."""

SUMMED: tuple[Any, ...] = (
    aten.matmul, aten.bmm, aten.mm, aten.mv, aten.dot, aten.einsum, aten.sum, aten.bilinear,
    aten.scaled_dot_product_attention,
)  # fmt: skip
"""Operators that sum over channels of activations, which need not be zero (a sigmoid's): what is lost becomes zero."""

SHARPNESS = 3.0
"""Standard deviation that the input of every softmax is scaled to, in both networks: at their initial weights
attentions are nearly uniform, and would hide what a wrong index changes in them."""


class Sharpened(fx.Interpreter):
    """Runs a graph with the input of every softmax multiplied by a factor."""

    def __init__(self, module: fx.GraphModule, factors: dict[str, float]) -> None:
        super().__init__(module)
        self.factors = factors
        """By the name of the node."""

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        if n.name not in self.factors:
            return super().run_node(n)
        (x, *rest), kwargs = self.fetch_args_kwargs_from_env(n)
        return n.target(x * self.factors[n.name], *rest, **kwargs)  # type: ignore[operator]


class Masked(Sharpened):
    """Runs the zero-masked original; statistics over channels see only the channels that are kept."""

    def __init__(self, module: fx.GraphModule, marks: Marks, alive: Tensor) -> None:
        super().__init__(module, {})
        self._values, self._alive = marks.values, alive

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; what is lost becomes 0 where it would disturb the sums of others."""
        packet = getattr(n.target, "overloadpacket", None)
        if packet in SUMMED:
            for used in n.all_input_nodes:
                self.env[used] = self._zeroed(used, self.env[used])
        if packet in (aten.softmax, aten._softmax, aten.scaled_dot_product_attention):
            self.factors[n.name] = _factor(*self.fetch_args_kwargs_from_env(n))
        if packet in NORMS:
            return self._norm(n)
        if packet in KEPT_ALONE:
            return self._reduced(n)
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
            return self._zeroed(n, value)
        return value

    def _kept(self, node: fx.Node) -> tuple[Integers, ...]:
        return kept_of(self._values[node.name], self._alive)

    def _zeroed(self, node: fx.Node, value: Any) -> Any:
        """Set what is lost to 0."""
        if not isinstance(value, Tensor) or not isinstance(self._values[node.name], Marked):
            return value
        kept = self._kept(node)
        if all(len(indices) == size for indices, size in zip(kept, value.shape, strict=True)):
            return value
        result = torch.zeros_like(value)
        result[np.ix_(*kept)] = value[np.ix_(*kept)]
        return result

    def _norm(self, n: fx.Node) -> Tensor:
        """Compute a norm of what is kept, with the parameters that go with its result."""
        (x, size, *rest), kwargs = self.fetch_args_kwargs_from_env(n)
        kept = self._kept(n)
        channels = {dim: indices for dim, indices in enumerate(kept) if len(indices) < x.shape[dim]}
        new: int | list[int]
        if isinstance(size, int):
            first, new = 1, size if size < x.shape[1] else len(kept[1])
        else:
            first = x.ndim - len(size)
            new = [len(indices) for indices in kept[first:]]
        for place, parameter in enumerate(rest):
            if isinstance(parameter, Tensor):
                dims = {dim - first: indices for dim, indices in channels.items() if 0 <= dim - first < parameter.ndim}
                rest[place] = kept_part(parameter, dims)
        result = torch.zeros_like(x)
        result[np.ix_(*kept)] = n.target(kept_part(x, channels), new, *rest, **kwargs)  # type: ignore[operator]
        return result

    def _reduced(self, n: fx.Node) -> Any:
        (x, *rest), kwargs = self.fetch_args_kwargs_from_env(n)
        source = n.args[0]
        assert isinstance(source, fx.Node), "the first argument of a reduction is a tensor"
        channels = {dim: kept for dim, kept in enumerate(self._kept(source)) if len(kept) < x.shape[dim]}
        if not channels:
            return super().run_node(n)
        found = n.target(kept_part(x, channels), *rest, **kwargs)  # type: ignore[operator]
        if isinstance(found, Tensor):
            return self._placed(found, self._values[n.name])
        return type(found)(map(self._placed, found, self._values[n.name]))

    def _placed(self, part: Tensor, marked: Marked) -> Tensor:
        """Put a part where it belongs, with zeros around it."""
        result = part.new_zeros(marked.shape)
        result[np.ix_(*kept_of(marked, self._alive))] = part
        return result


def _factor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Return what sharpens a softmax over ``args``, or an attention of a query and a key."""
    x = args[0]
    if len(args) > 1 and isinstance(args[1], Tensor):
        scale = kwargs.get("scale") or 1 / math.sqrt(x.shape[-1])
        spread = float(x.square().mean().sqrt() * args[1].square().mean().sqrt()) * math.sqrt(x.shape[-1]) * scale
    else:
        seen = x[x.abs() < HIDDEN]
        spread = float(seen.std()) if seen.numel() > 1 else 0.0
    return max(1.0, SHARPNESS / spread) if spread > 0 else 1.0


HIDDEN = 1e4
"""Masks add numbers larger than this to what a softmax must not see."""
