"""The proof of merged branches: in float64, each node that is left computes the same as before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from edgeopt.errors import ParityError
from edgeopt.passes.network import Network
from edgeopt.passes.prune.float64 import float64_graph, new_tensors_in_float64, to_float64
from edgeopt.passes.prune.interpret import execute
from edgeopt.passes.prune.proof import PROOF_TOLERANCE

_STAGE = "merge branches"
_STORED_TOLERANCE = 1e-4
"""Of the weights as they are stored, in float32: rounding adds up over some ten layers."""


MERGED_NOTE = "became one convolution each before anything was measured, except the baseline"
"""In the note on a merge."""
UNMERGED_NOTE = "parallel branches were not merged"
"""The beginning of the note on a merge that was off by more than rounding."""


def merge_note(count: int, error: float) -> str:
    """Return what the report says about a merge.

    Args:
        count: Sums of parallel branches.
        error: The result of ``verify_merge``.
    """
    sums = f"{count} sums of parallel branches" if count > 1 else "1 sum of parallel branches"
    return f"{sums} {MERGED_NOTE}; in float64, no node differs by more than {error:.0e}"


def verify_merge(original: Network, merged: Network, inputs: Sequence[Tensor]) -> float:
    """Compare every node that is left after a merge with the same node before it, in float64.

    The merge is repeated in float64, where only rounding may differ; then the merged network itself is compared, whose
    weights were rounded to float32.

    Args:
        original: The network before the merge, with its weights.
        merged: The result of ``Network.merge_branches``, not trained since.
        inputs: One batch.

    Returns:
        The largest error of a node in the repeated merge, relative to the largest value in it.

    Raises:
        ParityError: a node differs by more than rounding; the message names it.
    """
    doubled = tuple(to_float64(tensor) for tensor in inputs)
    with new_tensors_in_float64():
        before = _in_float64(original.eval_module)
        proven = Network(before, doubled).merge_branches(doubled)
        error = _largest_error(before, proven.eval_module, doubled, PROOF_TOLERANCE)
        _largest_error(before, _in_float64(merged.eval_module), doubled, _STORED_TOLERANCE)
    return error


def _in_float64(module: fx.GraphModule) -> fx.GraphModule:
    """Return a copy that computes in float64, also where the module casts to float32."""
    copied: fx.GraphModule = to_float64(float64_graph(module))
    return copied


def _largest_error(before: fx.GraphModule, after: fx.GraphModule, inputs: Sequence[Tensor], tolerance: float) -> float:
    left = {node.name for node in after.graph.nodes if node.op in ("call_function", "output")}
    values = execute(after, [tensor.clone() for tensor in inputs])
    worst = 0.0
    for node, expected in execute(before, [tensor.clone() for tensor in inputs]):
        if node.name not in left or node.op not in ("call_function", "output"):
            continue
        found = next(value for other, value in values if other.name == node.name)
        for old, new in zip(_tensors(expected), _tensors(found), strict=True):
            error = _relative_error(old, new)
            if not error <= tolerance:
                raise ParityError(
                    _STAGE,
                    f"node '{node.name}' differs by {error:.2g} in float64 after parallel branches were merged; "
                    f"{tolerance:.0e} is allowed. Please report the architecture.",
                )
            worst = max(worst, error)
    return worst


def _relative_error(old: Tensor, new: Tensor) -> float:
    if old.shape != new.shape:
        return float("inf")
    if not old.is_floating_point() or not old.numel():
        return 0.0 if torch.equal(old, new) else float("inf")
    difference = float(torch.where(old == new, 0.0, old - new).abs().max())
    return difference / max(float(old.nan_to_num(0.0, 0.0, 0.0).abs().max()), 1e-30)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [found for item in items for found in _tensors(item)] if isinstance(value, tuple | list | dict) else []
