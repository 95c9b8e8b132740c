"""Where two files of one network differ in time: two profiles in, one row for each matched node or layer out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from edgeopt.bench.nodes import NodeTime
from edgeopt.records.measurement import NodeChange

FLOAT_OPERATORS = {
    "QGemm": "Gemm",
    "MatMulInteger": "MatMul",
    "MatMulIntegerToFloat": "MatMul",
    "DynamicQuantizeMatMul": "MatMul",
    "MatMulNBits": "MatMul",
    "DynamicQuantizeLSTM": "LSTM",
    "ConvInteger": "Conv",
}
"""Integer operator to the float operator that it replaces; ``QLinearX`` and ``FusedX`` stand for ``X``."""


def match_nodes(against: Sequence[NodeTime], nodes: Sequence[NodeTime]) -> list[NodeChange]:
    """Match the nodes of two profiles and return the changes, largest first.

    Nodes are matched by name and operator. If a name is missing on one side (an exporter that counts its nodes, a
    fusion, a quantized operator), the node's time goes to a row for its operator. So no time is lost, and a replaced
    operator shows as one row that lost all its time and one row that took its place.

    Example: ``Conv a 5, Conv b 3`` against ``Conv a 2, QLinearConv b 1`` gives ``Conv a 5 → 2``, ``Conv (others) 3 →
    0`` and ``QLinearConv (others) 0 → 1``.
    """
    occurrences = tuple(Counter((node.name, node.operator) for node in side) for side in (against, nodes))
    matched = {key for key in occurrences[0] if key[0] and occurrences[0][key] == occurrences[1][key]}
    rows: dict[tuple[str, str], tuple[list[NodeTime], list[NodeTime]]] = {}
    for side, profile in enumerate((against, nodes)):
        for node in profile:
            key = (node.name, node.operator)
            row = rows.setdefault(key if key in matched else ("", node.operator), ([], []))
            row[side].append(node)
    changes = [
        NodeChange(
            name=name,
            operator=operator,
            nodes=(len(before), len(after)),
            against_ns=_sum_ns(before),
            ns=_sum_ns(after),
        )
        for (name, operator), (before, after) in rows.items()
    ]
    return sorted(changes, key=lambda change: -abs(change.gained_ns))


def match_layers(against: Sequence[NodeTime], nodes: Sequence[NodeTime]) -> list[NodeChange]:
    """Match the layers of a float file with those of its integer version and return the changes, largest loss first.

    Operators, names and the order of the axes differ between the two files; a layer's output sizes don't. So nodes are
    matched by the float operator that they stand for and their output sizes in any order. Nodes that agree in both
    share one row.

    Example: ``Conv → 1x64x14x14 50`` against ``QLinearConv → 1x14x14x64 60`` and ``QuantizeLinear → 1x1x28x28 8``
    gives ``Conv → QLinearConv 1x64x14x14 50 → 60`` and ``QuantizeLinear 1x1x28x28 0 → 8``.
    """
    rows: dict[tuple[str, tuple[int, ...]], tuple[list[NodeTime], list[NodeTime]]] = {}
    for side, profile in enumerate((against, nodes)):
        for node in profile:
            shape = max(node.outputs, key=math.prod, default=[])
            row = rows.setdefault((_float_operator(node.operator), tuple(sorted(shape))), ([], []))
            row[side].append(node)
    changes = []
    for before, after in rows.values():
        first = (before or after)[0]
        operators = dict.fromkeys(node.operator for node in (*before, *after))
        changes.append(
            NodeChange(
                name="",
                operator=" → ".join(operators),
                shape=tuple(max(first.outputs, key=math.prod, default=[])),
                nodes=(len(before), len(after)),
                against_ns=_sum_ns(before),
                ns=_sum_ns(after),
            )
        )
    return sorted(changes, key=lambda change: change.gained_ns)


def _sum_ns(nodes: Sequence[NodeTime]) -> float:
    return float(sum(node.ns for node in nodes))


def _float_operator(operator: str) -> str:
    return FLOAT_OPERATORS.get(operator, operator.removeprefix("QLinear").removeprefix("Fused"))
