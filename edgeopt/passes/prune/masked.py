"""``Masked``: runs the zero-masked original, node by node, as the reference for a pruned network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from edgeopt.passes.aten import aten
from edgeopt.passes.prune.interpret import Marks
from edgeopt.passes.prune.labels import Integers, Marked
from edgeopt.passes.prune.resize import kept_indices, take_indices
from edgeopt.passes.prune.rules.reductions import VALUES_OF_CHANNELS

_NORMS = (aten.layer_norm, aten.rms_norm, aten.group_norm)
_WEIGHTED: tuple[Any, ...] = (
    aten.linear, aten.conv1d, aten.conv2d, aten.conv3d,
    aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d,
)  # fmt: skip
"""Operators that sum over channels of an activation and a weight. A weight's lost channels are zero, unless it is
computed (a weight that is normalized, or generated from an input)."""
_REDUCTIONS: tuple[Any, ...] = (
    aten.mean, aten.var, aten.std, aten.var_mean, aten.std_mean, aten.amax, aten.amin, aten.logsumexp,
    aten.linalg_vector_norm, aten.norm, aten.aminmax, *VALUES_OF_CHANNELS,
)  # fmt: skip
"""Reductions over channels, in which zeros would count. Like norms, they are computed on the kept channels only."""

_CHANNEL_SUMS: tuple[Any, ...] = (
    aten.matmul, aten.bmm, aten.mm, aten.mv, aten.dot, aten.vdot, aten.einsum, aten.sum, aten.bilinear,
    aten.scaled_dot_product_attention, aten.addmm, aten.addmv, aten.addbmm, aten.baddbmm, aten.nansum,
    aten.count_nonzero, aten._cdist_forward, aten._euclidean_dist, aten.pdist, aten._pdist_forward,
    aten.cosine_similarity, aten.dist,
)  # fmt: skip
"""Operators that sum over channels of activations. A lost channel may not be zero there (after a sigmoid), so it is
set to zero."""

_PICKING: tuple[Any, ...] = (aten.softmax, aten._softmax, aten.topk)
"""Operators for which a lost channel is a logit of minus infinity, not a zero."""

_SHARPENED_STD = 3.0
"""Standard deviation of the input of every softmax, after scaling, in both networks. With initial weights, attention is
nearly uniform and would hide a wrong index."""


class Sharpened(fx.Interpreter):
    """Runs a graph with the input of every softmax multiplied by a number, and with given random numbers."""

    def __init__(self, module: fx.GraphModule, multipliers: dict[str, float], given: dict[str, Tensor]) -> None:
        super().__init__(module)
        self.multipliers = multipliers
        """By node name."""
        self.given = given
        """The values of operators that draw random numbers or leave memory as it was, by node name: the kept part of
        the original's."""

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        if n.name in self.multipliers:
            (x, *rest), kwargs = self.fetch_args_kwargs_from_env(n)
            return n.target(x * self.multipliers[n.name], *rest, **kwargs)  # type: ignore[operator]
        value = super().run_node(n)
        given = self.given.get(n.name)
        return value if given is None or given.shape != value.shape else value.copy_(given)


_WITHOUT_CONTENT: tuple[Any, ...] = (
    aten.empty, aten.empty_like, aten.new_empty, aten.empty_strided, aten.empty_permuted,
)  # fmt: skip


class Masked(Sharpened):
    """Runs the zero-masked original; statistics over channels use only the kept channels."""

    def __init__(
        self, module: fx.GraphModule, marks: Marks, alive: Tensor, branches: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(module, {}, {})
        self._values, self._alive = marks.values, alive
        self._branches = branches or {}
        """Name of a sum to its operand that is zero."""

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; lost channels are set to 0 if they would change the sums of others."""
        packet = getattr(n.target, "overloadpacket", None)
        if n.name in self._branches:
            branch = n.all_input_nodes[self._branches[n.name]]
            self.env[branch] = torch.zeros_like(self.env[branch])
        for used in _summed(n, packet):
            self.env[used] = self._zero_lost(used, self.env[used])
        if packet in (aten.softmax, aten._softmax, aten.scaled_dot_product_attention):
            self.multipliers[n.name] = _find_multiplier(*self.fetch_args_kwargs_from_env(n))
        if packet in _PICKING:
            return self._pick(n)
        if packet in _NORMS:
            return self._norm(n)
        if packet is aten.batch_norm:
            return self._batch_norm(n)
        if packet in _REDUCTIONS or n.target in _REDUCTIONS:
            return self._reduce(n)
        state = torch.get_rng_state()
        value = super().run_node(n)
        if not isinstance(value, Tensor):
            return value
        draws = packet is not aten.scaled_dot_product_attention and not torch.equal(state, torch.get_rng_state())
        if draws or packet in _WITHOUT_CONTENT:
            return self._give(n, value)
        if value.is_floating_point() and not bool(value.isfinite().all()):
            return self._zero_lost(n, value)
        return value

    def _give(self, node: fx.Node, value: Tensor) -> Tensor:
        """Let the pruned network's node have the kept part of this one's value."""
        if getattr(node.target, "overloadpacket", None) in _WITHOUT_CONTENT:
            value.zero_()
        if isinstance(self._values[node.name], Marked):
            kept = take_indices(value, dict(enumerate(self._kept(node))))
            self.given[node.name] = kept.clone()
        return value

    def _kept(self, node: fx.Node) -> tuple[Integers, ...]:
        return kept_indices(self._values[node.name], self._alive)

    def _zero_lost(self, node: fx.Node, value: Any) -> Any:
        """Set lost channels to 0."""
        if not isinstance(value, Tensor) or not isinstance(self._values[node.name], Marked):
            return value
        kept = self._kept(node)
        if all(len(indices) == size for indices, size in zip(kept, value.shape, strict=True)):
            return value
        result = torch.zeros_like(value)
        result[np.ix_(*kept)] = value[np.ix_(*kept)]
        return result

    def _norm(self, n: fx.Node) -> Tensor:
        """Compute a norm over the kept channels, with the matching part of its parameters."""
        (x, size, *rest), kwargs = self.fetch_args_kwargs_from_env(n)
        kept = self._kept(n)
        channels = {dim: indices for dim, indices in enumerate(kept) if len(indices) < x.shape[dim]}
        new_size: int | list[int]
        if isinstance(size, int):
            first, new_size = 1, size if size < x.shape[1] else len(kept[1])
        else:
            first = x.ndim - len(size)
            new_size = [len(indices) for indices in kept[first:]]
        for position, parameter in enumerate(rest):
            if isinstance(parameter, Tensor):
                dims = {dim - first: indices for dim, indices in channels.items() if 0 <= dim - first < parameter.ndim}
                rest[position] = take_indices(parameter, dims)
        result = torch.zeros_like(x)
        result[np.ix_(*kept)] = n.target(take_indices(x, channels), new_size, *rest, **kwargs)  # type: ignore[operator]
        return result

    def _batch_norm(self, n: fx.Node) -> Tensor:
        """Compute a batch norm over the kept part, which its statistics are of if it uses those of its input."""
        (x, *rest), kwargs = self.fetch_args_kwargs_from_env(n)
        kept = self._kept(n)
        parameters = [part if part is None else take_indices(part, {0: kept[1]}) for part in rest[:4]]
        result = torch.zeros_like(x)
        result[np.ix_(*kept)] = n.target(take_indices(x, dict(enumerate(kept))), *parameters, *rest[4:], **kwargs)  # type: ignore[operator]
        return result

    def _reduce(self, n: fx.Node) -> Any:
        (x, *rest), kwargs = self.fetch_args_kwargs_from_env(n)
        source = n.args[0]
        assert isinstance(source, fx.Node), "the first argument of a reduction is a tensor"
        channels = {dim: kept for dim, kept in enumerate(self._kept(source)) if len(kept) < x.shape[dim]}
        if not channels:
            return super().run_node(n)
        reduced = n.target(take_indices(x, channels), *rest, **kwargs)  # type: ignore[operator]
        if isinstance(reduced, Tensor):
            return self._place(reduced, self._values[n.name])
        return type(reduced)(map(self._place, reduced, self._values[n.name]))

    def _pick(self, n: fx.Node) -> Any:
        """Compute a softmax or the best of the kept channels: the others have a logit of minus infinity."""
        (x, *rest), kwargs = self.fetch_args_kwargs_from_env(n)
        source, picks = n.args[0], getattr(n.target, "overloadpacket", None) is aten.topk
        assert isinstance(source, fx.Node), "the first argument is a tensor"
        kept = self._kept(source)
        if all(len(indices) == size for indices, size in zip(kept, x.shape, strict=True)):
            return super().run_node(n)
        part = take_indices(x, dict(enumerate(kept))) * self.multipliers.get(n.name, 1)
        if not picks:
            return self._place(n.target(part, *rest, **kwargs), self._values[n.name])  # type: ignore[operator]
        values, positions = n.target(part, *rest, **kwargs)  # type: ignore[operator]
        dim = (rest[1] if len(rest) > 1 else kwargs.get("dim", -1)) % x.ndim
        positions = torch.from_numpy(kept[dim])[positions]
        return tuple(map(self._place, (values, positions), self._values[n.name]))

    def _place(self, part: Tensor, marked: Marked) -> Tensor:
        """Put the kept part into a tensor of the full shape, with zeros elsewhere."""
        result = part.new_zeros(marked.shape)
        result[np.ix_(*kept_indices(marked, self._alive))] = part
        return result


def _summed(node: fx.Node, packet: Any) -> list[fx.Node]:
    """Return the arguments in which lost channels would change sums over channels."""
    if packet in _CHANNEL_SUMS:
        return node.all_input_nodes
    weight = node.args[1] if packet in _WEIGHTED else None
    return [weight] if isinstance(weight, fx.Node) and weight.op != "get_attr" else []


def _find_multiplier(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Return the number that sharpens a softmax, or an attention of a query and a key."""
    x = args[0]
    if len(args) > 1 and isinstance(args[1], Tensor):
        scale = kwargs.get("scale") or 1 / math.sqrt(x.shape[-1])
        std = float(x.square().mean().sqrt() * args[1].square().mean().sqrt()) * math.sqrt(x.shape[-1]) * scale
    else:
        visible = x[x.abs() < _MASK_MAGNITUDE]
        std = float(visible.std()) if visible.numel() > 1 else 0.0
    return max(1.0, _SHARPENED_STD / std) if std > 0 else 1.0


_MASK_MAGNITUDE = 1e4
"""Attention masks add numbers larger than this to the elements that a softmax must ignore."""
