"""The proof of a factored network: at full rank each node computes what the same node of the original computes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from edgeopt.errors import ParityError
from edgeopt.passes.low_rank.layers import as_matrix, as_pair, factorizable_layers
from edgeopt.passes.network import Network
from edgeopt.passes.prune.interpret import execute
from edgeopt.passes.prune.proof import PROOF_TOLERANCE
from edgeopt.records.low_rank import Factorization

_STAGE = "low-rank"


def verify_factorization(
    original: Network, factors: Mapping[str, Factorization], result: Network, inputs: Sequence[Tensor], seed: int = 0
) -> float:
    """Compare every node of the original with the same node of the network whose pairs have full rank, in float64.

    The pairs go through random directions, so nothing is owed to a basis in which an error would not show; and the
    graph that was proven is, node by node, the one of ``result``, whose pairs are narrower.

    Args:
        original: The network that was factored, with the weights that it had.
        factors: What was asked for.
        result: What came out.
        inputs: One batch.
        seed: Of the random directions.

    Returns:
        The largest error of a node, relative to the largest value in it.

    Raises:
        ParityError: a node differs by more than ``PROOF_TOLERANCE``, or the graphs differ.
    """
    doubled = Network(copy.deepcopy(original.eval_module).double(), original.example_inputs)
    generator = torch.Generator().manual_seed(seed)
    pairs, full = {}, {}
    for name, layer in factorizable_layers(doubled.eval_module).items():
        if name in factors:
            form = factors[name].form
            matrix = as_matrix(doubled.parameters()[name].detach(), form)
            random = torch.randn(matrix.shape[1], matrix.shape[1], generator=generator, dtype=torch.float64)
            across = torch.linalg.qr(random).Q
            pairs[name] = as_pair(matrix @ across, across.T, layer, form)
            full[name] = Factorization(rank=matrix.shape[1], form=form)
    proven = doubled.factorized(full, pairs)
    if _text(proven) != _text(result):
        raise ParityError(_STAGE, "the factored graph is not the one that was proven.")
    for name, value in result.state().items():
        before = original.state().get(name)
        if before is not None and not torch.equal(before, value):
            raise ParityError(_STAGE, f"tensor '{name}' changed, though its layer was not factored.")
    given = [tensor.double() if tensor.is_floating_point() else tensor.clone() for tensor in inputs]
    ours = execute(proven.eval_module, given)
    worst = 0.0
    for node, expected in execute(doubled.eval_module, given):
        if node.op == "get_attr":
            continue
        found = next(value for other, value in ours if other.name == node.name)
        for one, other in zip(_tensors(expected), _tensors(found), strict=True):
            if one.is_floating_point() and one.numel():
                error = float((one - other).abs().max() / one.abs().max().clamp_min(1e-30))
                worst = max(worst, error)
                if not error <= PROOF_TOLERANCE:
                    raise ParityError(_STAGE, f"node '{node.name}' differs by {error:.2g} at full rank.")
    return worst


def _text(network: Network) -> str:
    """Return every node with its arguments."""
    return "\n".join(f"{node.name} {node.target} {node.args} {node.kwargs}" for node in network.eval_module.graph.nodes)


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [found for item in value for found in _tensors(item)] if isinstance(value, (tuple, list)) else []
