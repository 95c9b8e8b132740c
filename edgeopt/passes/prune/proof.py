"""The proof of a pruned network: each node computes the same as in the original with the lost channels at zero."""

from __future__ import annotations

import copy
import itertools
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
from edgeopt.passes.prune.resize import CREATORS, kept_indices, take_indices
from edgeopt.passes.prune.rules.call import unused_results

PROOF_TOLERANCE = 1e-9
"""In float64, rounding over some ten thousand additions stays below 1e-11; a wrong index gives an error near 1."""


def verify_pruning(
    original: Network,
    groups: Groups,
    keep: Mapping[str, Sequence[int]],
    pruned: Network,
    inputs: Sequence[Tensor],
    seed: int = 0,
) -> float:
    """Compare every node of a network that was just pruned with the kept part of the same node in the masked original.

    Comparing only the outputs would hide errors in channels of little weight; comparing every node hides hardly any.
    Everything runs in float64. Tensors with a single value (newly initialized norms and heads) cannot show a swapped
    index, so they get random values in both networks.

    Args:
        original: The network before pruning, with its weights.
        groups: The result of ``analyse``.
        keep: The kept channels, by group.
        pruned: The result of ``prune``, not trained since.
        inputs: One batch; random numbers are fine. With 16 samples, hardly any channel is zero after a ReLU for all.
        seed: Seed of the random values.

    Returns:
        The largest error of a node, relative to the largest value in it.

    Raises:
        ParityError: a node differs by more than ``PROOF_TOLERANCE`` or cannot run; the message names it.
    """
    alive = groups.alive(keep)
    full, small = _to_float64(original), _to_float64(pruned)
    _fill_constants(full, small, original, pruned, seed)
    for (name, dim), indices in groups.kept(keep).items():
        tensor = operator.attrgetter(name)(full).data
        lost = np.setdiff1d(np.arange(tensor.shape[dim]), indices)
        tensor.index_fill_(dim, torch.from_numpy(lost), 0.0)
    doubled = [_widen(tensor) for tensor in inputs]
    reference = Masked(full, groups.marks, alive)
    expected_values = execute(full, [tensor.clone() for tensor in doubled], reference)
    same_numbers = Sharpened(small, reference.multipliers, reference.drawn)
    pruned_values = execute(small, [tensor.clone() for tensor in doubled], same_numbers)
    worst = 0.0
    for node, expected in expected_values:
        found = _value_at(pruned_values, node)
        error = _relative_error(groups.marks.values.get(node.name), _without_unused(node, expected), found, alive)
        if not error <= PROOF_TOLERANCE:
            raise ParityError(
                "prune",
                f"the pruned network differs from the original at node '{node.name}' ({node.target}): relative error "
                f"{error:.2g}, allowed {PROOF_TOLERANCE:.0e}. A rule in edgeopt/passes/prune/rules is wrong for this "
                "node; please report the architecture.",
            )
        worst = max(worst, error)
    return worst


def _value_at(pruned_values: Iterator[tuple[fx.Node, Any]], node: fx.Node) -> Any:
    """Run the pruned network up to a node of the original and return that node's value."""
    try:
        return next((value for other, value in pruned_values if other.name == node.name), None)
    except RuntimeError as error:
        raise ParityError(
            "prune",
            f"the pruned network cannot run at node '{node.name}' ({node.target}): {error}. A rule in "
            "edgeopt/passes/prune/rules is wrong for this node; please report the architecture.",
        ) from error


def _to_float64(network: Network) -> fx.GraphModule:
    """Copy a network's graph in float64; casts to float32 and new float32 tensors become float64 too."""
    module = copy.deepcopy(network.eval_module)
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        tensor.data = _widen(tensor.data)
    for node in module.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, _widen_dtype)
        node.kwargs = fx.node.map_aggregate(node.kwargs, _widen_dtype)
        if getattr(node.target, "overloadpacket", None) in CREATORS and node.kwargs.get("dtype") is None:
            node.update_kwarg("dtype", torch.float64)
    return module


def _widen(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def _widen_dtype(argument: Any) -> Any:
    return _WIDER.get(argument, argument) if isinstance(argument, torch.dtype) else argument


_WIDER = {torch.float32: torch.float64, torch.complex64: torch.complex128}


def _fill_constants(full: fx.GraphModule, small: fx.GraphModule, original: Network, pruned: Network, seed: int) -> None:
    """Give every tensor with a single value random values, the same in both networks.

    Zeros (biases, running means) get small values: large ones would leave channels at zero after a ReLU, and hide
    errors.
    """
    random = torch.Generator().manual_seed(seed)
    for name in dict.fromkeys(tensor_names(full).values()):
        tensor: Tensor = operator.attrgetter(name)(full).data
        if not tensor.is_floating_point() or tensor.numel() < 2 or bool((tensor != tensor.reshape(-1)[0]).any()):
            continue
        spread = 1.0 if bool(tensor.any()) else 0.1
        tensor += spread * (torch.rand(tensor.shape, generator=random, dtype=tensor.dtype) + 0.1)
        kept = {dim: _kept_of_original(original, pruned, (name, dim)) for dim in range(tensor.ndim)}
        cut = take_indices(tensor, {dim: indices for dim, indices in kept.items() if indices is not None})
        operator.attrgetter(name)(small).data.copy_(cut)


def _kept_of_original(original: Network, pruned: Network, slot: Slot) -> Integers | None:
    """Return the indices of ``original`` that ``pruned`` kept; both store theirs relative to the same first network."""
    if slot not in pruned.kept:
        return None
    if slot not in original.kept:
        return pruned.kept[slot]
    return np.searchsorted(original.kept[slot], pruned.kept[slot])


def _without_unused(node: fx.Node, value: Any) -> Any:
    """Drop the results that nothing reads: the index of a maximum may be another one among the channels left."""
    unused = unused_results(node)
    return [None if at in unused else result for at, result in enumerate(value)] if unused else value


def _relative_error(marked: Any, expected: Any, found: Any, alive: Tensor) -> float:
    """Return the largest difference over the largest value: infinite if shapes differ, 0 if it is not a tensor."""
    if isinstance(expected, (tuple, list)) and isinstance(marked, list):
        if not isinstance(found, (tuple, list)) or len(found) != len(expected):
            return float("inf")
        return max((_relative_error(*item, alive) for item in zip(marked, expected, found, strict=True)), default=0.0)
    if not isinstance(marked, Marked) or not isinstance(expected, Tensor):
        return 0.0
    part = expected.detach()[np.ix_(*kept_indices(marked, alive))] if expected.ndim else expected.detach()
    if not isinstance(found, Tensor) or part.shape != found.shape:
        return float("inf")
    if part.numel() == 0:
        return 0.0
    wide = torch.complex128 if part.is_complex() else torch.float64
    expected, actual = part.to(wide), found.detach().to(wide)
    # equal infinities count as no difference
    difference = float(torch.where(expected == actual, 0.0, expected - actual).abs().max())
    scale = float(torch.where(expected.isinf(), 0.0, expected).abs().max())
    return difference / scale if scale > 0 else difference
