"""The proof of a pruned network: each node computes what the original computes with the lost channels at zero."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from edgeopt.errors import ParityError
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import Groups
from edgeopt.passes.prune.interpret import execute, tensor_names
from edgeopt.passes.prune.labels import Integers, Marked, Slot
from edgeopt.passes.prune.masked import Masked, Sharpened
from edgeopt.passes.prune.resize import CREATORS, kept_of, kept_part

PROOF_TOLERANCE = 1e-9
"""In float64: rounding over some ten thousand additions stays below 1e-11; a wrong index is an error of order 1."""


def verify(
    original: Network,
    groups: Groups,
    keep: Mapping[str, Sequence[int]],
    pruned: Network,
    inputs: Sequence[Tensor],
    seed: int = 0,
) -> float:
    """Compare every node of a network just pruned with the kept part of the same node in the zero-masked original.

    Outputs alone would hide errors in channels of little weight; every node at once hides nearly none. All runs in
    float64. Tensors that hold one value only (norms and heads as they are initialised) cannot show a swapped index, so
    they are replaced by random values in both networks.

    Args:
        original: The network that was pruned, with the weights that it had.
        groups: What ``analyse`` said of it.
        keep: The channels kept, by group.
        pruned: The result of ``prune``, not trained since.
        inputs: One batch; random numbers will do. Sixteen samples leave hardly a channel at zero behind every ReLU.
        seed: Of the random values.

    Returns:
        The largest error of a node, relative to the largest value in it.

    Raises:
        ParityError: a node differs by more than ``PROOF_TOLERANCE``, or cannot run; the message names it.
    """
    alive = groups.alive(keep)
    full, small = _double(original), _double(pruned)
    _fill_constants(full, small, original, pruned, seed)
    for (name, dim), indices in groups.kept(keep).items():
        tensor = operator.attrgetter(name)(full).data
        lost = np.setdiff1d(np.arange(tensor.shape[dim]), indices)
        tensor.index_fill_(dim, torch.from_numpy(lost), 0.0)
    doubled = [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs]
    reference = Masked(full, groups.marks, alive)
    expectations = execute(full, [tensor.clone() for tensor in doubled], reference)
    candidates = execute(small, [tensor.clone() for tensor in doubled], Sharpened(small, reference.factors))
    worst = 0.0
    for node, expected in expectations:
        found = _of(candidates, node)
        error = _error(groups.marks.values.get(node.name), expected, found, alive)
        if not error <= PROOF_TOLERANCE:
            raise ParityError(
                "prune",
                f"the pruned network differs from the original at node '{node.name}' ({node.target}): relative error "
                f"{error:.2g}, allowed {PROOF_TOLERANCE:.0e}. A rule in edgeopt/passes/prune/rules is wrong for it; "
                "please report the architecture.",
            )
        worst = max(worst, error)
    return worst


def _of(candidates: Iterator[tuple[fx.Node, Any]], node: fx.Node) -> Any:
    """Run the pruned network up to a node of the original's and return that node's value."""
    try:
        return next((value for other, value in candidates if other.name == node.name), None)
    except RuntimeError as error:
        raise ParityError(
            "prune",
            f"the pruned network cannot run at node '{node.name}' ({node.target}): {error}. A rule in "
            "edgeopt/passes/prune/rules is wrong for it; please report the architecture.",
        ) from error


def _double(network: Network) -> fx.GraphModule:
    """Copy a network's graph in float64, with casts to float32 and new tensors of it turned into float64."""
    module = copy.deepcopy(network.eval_module).double()
    for node in module.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, _wider)
        node.kwargs = fx.node.map_aggregate(node.kwargs, _wider)
        if getattr(node.target, "overloadpacket", None) in CREATORS and node.kwargs.get("dtype") is None:
            node.update_kwarg("dtype", torch.float64)
    return module


def _wider(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument


def _fill_constants(full: fx.GraphModule, small: fx.GraphModule, original: Network, pruned: Network, seed: int) -> None:
    """Give random values, the same to both networks, to every tensor that holds one value only.

    Zeros (biases, running means) get small values: large ones would leave channels at zero behind a ReLU, where no
    error shows.
    """
    random = torch.Generator().manual_seed(seed)
    for name in dict.fromkeys(tensor_names(full).values()):
        tensor: Tensor = operator.attrgetter(name)(full).data
        if not tensor.is_floating_point() or tensor.numel() < 2 or bool((tensor != tensor.reshape(-1)[0]).any()):
            continue
        spread = 1.0 if bool(tensor.any()) else 0.1
        tensor += spread * (torch.rand(tensor.shape, generator=random, dtype=tensor.dtype) + 0.1)
        kept = {dim: _relative(original, pruned, (name, dim)) for dim in range(tensor.ndim)}
        cut = kept_part(tensor, {dim: indices for dim, indices in kept.items() if indices is not None})
        operator.attrgetter(name)(small).data.copy_(cut)


def _relative(original: Network, pruned: Network, slot: Slot) -> Integers | None:
    """Indices that ``pruned`` kept of ``original``; both know theirs relative to the same first network."""
    if slot not in pruned.kept:
        return None
    if slot not in original.kept:
        return pruned.kept[slot]
    return np.searchsorted(original.kept[slot], pruned.kept[slot])


def _error(marked: Any, expected: Any, found: Any, alive: Tensor) -> float:
    """Largest difference over the largest value; infinite where shapes differ; 0 for what is no tensor of numbers."""
    if isinstance(expected, (tuple, list)) and isinstance(marked, list):
        if not isinstance(found, (tuple, list)) or len(found) != len(expected):
            return float("inf")
        return max((_error(*item, alive) for item in zip(marked, expected, found, strict=True)), default=0.0)
    if not isinstance(marked, Marked) or not isinstance(expected, Tensor):
        return 0.0
    part = expected.detach()[np.ix_(*kept_of(marked, alive))] if expected.ndim else expected.detach()
    if not isinstance(found, Tensor) or part.shape != found.shape:
        return float("inf")
    if part.numel() == 0:
        return 0.0
    expected, got = part.double(), found.detach().double()
    difference = float(torch.where(expected == got, 0.0, expected - got).abs().max())  # infinities may be equal too
    scale = float(torch.where(expected.isinf(), 0.0, expected).abs().max())
    return difference / scale if scale > 0 else difference
