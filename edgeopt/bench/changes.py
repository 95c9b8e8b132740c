"""Which nodes gained or lost time between two files of one network: profiles in, rows out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from edgeopt.bench.nodes import NodeTime
from edgeopt.records.measurement import NodeChange

FAMILIES = {
    "QGemm": "Gemm",
    "MatMulInteger": "MatMul",
    "MatMulIntegerToFloat": "MatMul",
    "DynamicQuantizeMatMul": "MatMul",
    "MatMulNBits": "MatMul",
    "DynamicQuantizeLSTM": "LSTM",
    "ConvInteger": "Conv",
}
"""Integer operators by the float operator in whose place they are; ``QLinearX`` and ``FusedX`` stand for ``X``."""


def node_changes(against: Sequence[NodeTime], nodes: Sequence[NodeTime]) -> list[NodeChange]:
    """Match the nodes of two profiles and return the changes, largest first.

    A node is matched by its name and operator. Where a name is missing on one side (an exporter that counts its nodes,
    a fusion, a quantized operator), the time goes to a row of its operator: so no time is lost, and a replaced operator
    shows as one that lost all and one that took its place.

    Example: ``Conv a 5, Conv b 3`` against ``Conv a 2, QLinearConv b 1`` gives ``Conv a 5 → 2``, ``Conv (others) 3 →
    0`` and ``QLinearConv (others) 0 → 1``.
    """
    sides = tuple(Counter((node.name, node.operator) for node in side) for side in (against, nodes))
    both = {key for key in sides[0] if key[0] and sides[0][key] == sides[1][key]}
    times: list[Counter[tuple[str, str]]] = [Counter(), Counter()]
    counts: list[Counter[tuple[str, str]]] = [Counter(), Counter()]
    for side, profile in enumerate((against, nodes)):
        for node in profile:
            key = (node.name, node.operator)
            key = key if key in both else ("", node.operator)
            times[side][key] += node.ns  # type: ignore[assignment]
            counts[side][key] += 1
    changes = [
        NodeChange(
            name=key[0],
            operator=key[1],
            nodes=(counts[0][key], counts[1][key]),
            against_ns=float(times[0][key]),
            ns=float(times[1][key]),
        )
        for key in dict.fromkeys((*times[0], *times[1]))
    ]
    return sorted(changes, key=lambda change: -abs(change.gained_ns))


def layer_changes(against: Sequence[NodeTime], nodes: Sequence[NodeTime]) -> list[NodeChange]:
    """Match the layers of a float file with those of its integer form, and return the changes, largest loss first.

    Operators and names differ between them, and so does the order of the axes. What stays is what a layer makes: nodes
    are matched by the operator that they stand for and the sizes of their output, in any order; those of one kind are
    one row.

    Example: ``Conv → 1x64x14x14 50`` against ``QLinearConv → 1x14x14x64 60`` and ``QuantizeLinear → 1x1x28x28 8``
    gives ``Conv → QLinearConv 1x64x14x14 50 → 60`` and ``QuantizeLinear 1x1x28x28 0 → 8``.
    """
    kinds: dict[tuple[str, tuple[int, ...]], list[list[NodeTime]]] = {}
    for side, profile in enumerate((against, nodes)):
        for node in profile:
            shape = max(node.outputs, key=math.prod, default=[])
            both = kinds.setdefault((_family(node.operator), tuple(sorted(shape))), [[], []])
            both[side].append(node)
    changes = []
    for before, after in kinds.values():
        first = (before or after)[0]
        operators = dict.fromkeys(node.operator for node in (*before, *after))
        changes.append(
            NodeChange(
                name="",
                operator=" → ".join(operators),
                shape=tuple(max(first.outputs, key=math.prod, default=[])),
                nodes=(len(before), len(after)),
                against_ns=float(sum(node.ns for node in before)),
                ns=float(sum(node.ns for node in after)),
            )
        )
    return sorted(changes, key=lambda change: change.gained_ns)


def _family(operator: str) -> str:
    return FAMILIES.get(operator, operator.removeprefix("QLinear").removeprefix("Fused"))
