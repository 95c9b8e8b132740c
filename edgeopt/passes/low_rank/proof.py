"""The proof of a factorized network: at full rank, each node computes the same as in the original."""

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
    original: Network,
    factorizations: Mapping[str, Factorization],
    result: Network,
    inputs: Sequence[Tensor],
    seed: int = 0,
) -> float:
    """Compare every node of the original with the same node after a factorization at full rank, in float64.

    The pairs use random directions, so no error can hide behind a special basis. The graph of ``result`` must equal
    the proven graph node by node; only its pairs are narrower.

    Args:
        original: The network before the factorization, with its weights.
        factorizations: Rank and form for each layer, by the name of its weight.
        result: The factorized network.
        inputs: One batch.
        seed: Seed of the random directions.

    Returns:
        The largest error of a node, relative to the largest value in it.

    Raises:
        ParityError: a node differs by more than ``PROOF_TOLERANCE``, or the graphs differ.
    """
    doubled = Network(copy.deepcopy(original.eval_module).double(), original.example_inputs)
    generator = torch.Generator().manual_seed(seed)
    pairs, full = {}, {}
    for name, layer in factorizable_layers(doubled.eval_module).items():
        if name in factorizations:
            form = factorizations[name].form
            matrix = as_matrix(doubled.parameters()[name].detach(), form)
            random = torch.randn(matrix.shape[1], matrix.shape[1], generator=generator, dtype=torch.float64)
            directions = torch.linalg.qr(random).Q
            pairs[name] = as_pair(matrix @ directions, directions.T, layer, form)
            full[name] = Factorization(rank=matrix.shape[1], form=form)
    proven = doubled.factorize(full, pairs)
    if _describe_graph(proven) != _describe_graph(result):
        raise ParityError(_STAGE, "the factorized graph differs from the graph that was proven.")
    for name, value in result.state().items():
        before = original.state().get(name)
        if before is not None and not torch.equal(before, value):
            raise ParityError(_STAGE, f"tensor '{name}' changed, but its layer was not factorized.")
    doubled_inputs = [tensor.double() if tensor.is_floating_point() else tensor.clone() for tensor in inputs]
    proven_values = execute(proven.eval_module, doubled_inputs)
    worst = 0.0
    for node, expected in execute(doubled.eval_module, doubled_inputs):
        if node.op == "get_attr":
            continue
        found = next(value for other, value in proven_values if other.name == node.name)
        for old, new in zip(_tensors(expected), _tensors(found), strict=True):
            if old.is_floating_point() and old.numel():
                difference = torch.where(old == new, 0.0, old - new)  # equal infinities, such as those of masks
                finite = old.nan_to_num(0.0, 0.0, 0.0)
                error = float(difference.abs().max() / finite.abs().max().clamp_min(1e-30))
                worst = max(worst, error)
                if not error <= PROOF_TOLERANCE:
                    raise ParityError(_STAGE, f"node '{node.name}' differs by {error:.2g} at full rank.")
    return worst


def _describe_graph(network: Network) -> str:
    """Return every node with its arguments."""
    return "\n".join(f"{node.name} {node.target} {node.args} {node.kwargs}" for node in network.eval_module.graph.nodes)


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [found for item in value for found in _tensors(item)] if isinstance(value, (tuple, list)) else []
