"""The proof of a pruned network: each node computes the same as in the original with the lost channels at zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from edgeopt.errors import ParityError, StepError
from edgeopt.passes.branches.residual import left_out
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import Groups
from edgeopt.passes.prune.depth import split_zeros
from edgeopt.passes.prune.float64 import float64_graph, new_tensors_in_float64, to_float64
from edgeopt.passes.prune.interpret import execute
from edgeopt.passes.prune.labels import Marked
from edgeopt.passes.prune.masked import Masked, Sharpened
from edgeopt.passes.prune.proof_weights import ProofWeights
from edgeopt.passes.prune.resize import kept_indices
from edgeopt.task.values import flat_outputs

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
    Everything runs in float64, with the tensors of ``ProofWeights``.

    Args:
        original: The network before pruning, with its weights.
        groups: The result of ``analyse``.
        keep: The kept channels, by group.
        pruned: The result of ``prune``, not trained since.
        inputs: One batch of the size that ``original`` was traced with; random numbers are fine. With 16 samples,
            hardly any channel is zero after a ReLU for all.
        seed: Seed of the random values.

    Returns:
        The largest error of a node, relative to the largest value in it.

    Raises:
        ParityError: a node differs by more than ``PROOF_TOLERANCE`` or cannot run; the message names it.
        StepError: the original itself cannot run in float64.
    """
    keep, branches = split_zeros(original, groups, keep)
    alive = groups.alive(keep)
    full, small = float64_graph(original.eval_module), float64_graph(pruned.eval_module)
    weights = ProofWeights(original, pruned, groups.kept(keep), seed)
    doubled = [to_float64(tensor) for tensor in inputs]
    reference = Masked(full, groups.marks, alive, {branch.sum: branch.operand for branch in branches})
    sharpened = Sharpened(small, reference.multipliers, reference.given)
    reference.fetch_attr, sharpened.fetch_attr = weights.of_original, weights.of_pruned  # type: ignore[method-assign]
    gone = left_out(full.graph, small.graph) if branches else set()
    worst = 0.0
    with new_tensors_in_float64():
        expected_values = _run_original(full, [tensor.clone() for tensor in doubled], reference)
        pruned_values = execute(small, [tensor.clone() for tensor in doubled], sharpened)
        for node, expected in expected_values:
            if node.name in gone:
                continue
            found = _value_at(pruned_values, node)
            if node.op == "output":  # nothing of it is cut, but it may be wired to another node
                error = _outputs_error(expected, found, alive)
            else:
                error = _relative_error(groups.marks.values.get(node.name), expected, found, alive)
            if not error <= PROOF_TOLERANCE:
                raise ParityError(
                    "prune",
                    f"the pruned network differs from the original at node '{node.name}' ({node.target}): relative "
                    f"error {error:.2g}, allowed {PROOF_TOLERANCE:.0e}. A rule in edgeopt/passes/prune/rules is wrong "
                    "for this node; please report the architecture.",
                )
            worst = max(worst, error)
    return worst


def _run_original(full: fx.GraphModule, inputs: list[Tensor], reference: Masked) -> Iterator[tuple[fx.Node, Any]]:
    """Run the masked original and yield each node with its value."""
    node = None
    try:
        for node, value in execute(full, inputs, reference):
            yield node, value
    except RuntimeError as error:
        following = "its first operator" if node is None else f"'{node.next.name}' ({node.next.target})"
        raise StepError(
            "prune",
            f"the cut cannot be proven, because the network does not run in float64 at {following}: {error}. "
            "Write that operator with others that take float64.",
        ) from error


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


def _outputs_error(expected: Any, found: Any, alive: Tensor) -> float:
    """Return the largest relative error of all outputs."""
    old, new = flat_outputs(expected), flat_outputs(found)
    if len(old) != len(new):
        return float("inf")
    tensors = [(one, other) for one, other in zip(old, new, strict=True) if isinstance(one, Tensor)]
    return max((_relative_error(Marked(tuple(one.shape)), one, other, alive) for one, other in tensors), default=0.0)


def _relative_error(marked: Any, expected: Any, found: Any, alive: Tensor) -> float:
    """Return the largest difference over the largest value: infinite if shapes differ, 0 if it is not a tensor.

    Of an operator with several results, those that are used are compared where they are taken.
    """
    if not isinstance(marked, Marked) or not isinstance(expected, Tensor):
        return 0.0
    if marked.places is not None:  # positions among the channels that are left are other numbers
        expected = (alive[marked.places].cumsum(0) - 1)[expected]
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
