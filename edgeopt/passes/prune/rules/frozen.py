"""Operators that freeze their channels by nature, and the reason: no rule could let channels go through them."""

from __future__ import annotations

from typing import Any

from edgeopt.passes.aten import aten
from edgeopt.passes.prune.labels import Labels
from edgeopt.passes.prune.rules.call import Call, Layers, Rule

_FROZEN: dict[str, tuple[Any, ...]] = {
    "how many elements it returns depends on their values": (
        aten.nonzero, aten.argwhere, aten.masked_select, aten._unique2, aten.unique_consecutive, aten.unique_dim,
        aten.bincount, aten.histc, aten.combinations,
    ),
    "its values are positions": (
        aten.arange, aten.linspace, aten.logspace, aten.randperm, aten.tril_indices, aten.triu_indices, aten.one_hot,
    ),
    "refers to elements by their place in memory": (
        aten.as_strided, aten.as_strided_scatter, aten.empty_strided, aten.new_empty_strided, aten.resize_, aten.take,
        aten.put,
    ),
    "a number is read from it": (
        aten._local_scalar_dense, aten.item, aten.sym_numel, aten.sym_stride, aten.sym_storage_offset,
        aten.sym_is_contiguous,
    ),
    "its result depends on the whole matrix": (
        aten.linalg_det, aten._linalg_det, aten.linalg_inv_ex, aten.linalg_cholesky_ex, aten.linalg_qr,
        aten._linalg_svd, aten._linalg_eigh, aten.linalg_solve_triangular, aten._linalg_solve_ex, aten.linalg_pinv,
        aten.linalg_matrix_exp,
    ),
    "a single number has no channels": (aten.scalar_tensor,),
    "draws an index among all elements": (aten.multinomial,),
    "a gradient, which only training has": (
        aten._adaptive_avg_pool2d_backward, aten.avg_pool2d_backward, aten.convolution_backward,
        aten.embedding_dense_backward, aten.max_pool2d_with_indices_backward, aten.native_group_norm_backward,
        aten.native_layer_norm_backward,
    ),
}  # fmt: skip


def freeze_because(why: str) -> Rule:
    """Make the rule of an operator that freezes its channels by nature."""

    def rule(labels: Labels, call: Call) -> Layers:
        labels.freeze([layer for operand in call.operands for layer in operand.layers], why)
        return ()

    return rule


RULES: dict[Any, Rule] = {packet: freeze_because(why) for why, packets in _FROZEN.items() for packet in packets}
