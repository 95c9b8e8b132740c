"""Which nodes gained or lost time between two files of one network: profiles in, rows out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from edgeopt.bench.nodes import NodeTime
from edgeopt.records.base import Record


class Change(Record, frozen=True, kw_only=True):
    """A node that both files have, or what all other nodes of an operator take together."""

    name: str
    """Of the node; empty for nodes that only one of the files has."""
    operator: str
    nodes: tuple[int, int]
    """How many it stands for, in the other file and in this one."""
    against_ns: float
    ns: float

    @property
    def gained_ns(self) -> float:
        """What this file saves; negative where it loses."""
        return self.against_ns - self.ns


def node_changes(against: Sequence[NodeTime], nodes: Sequence[NodeTime]) -> list[Change]:
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
        Change(
            name=key[0],
            operator=key[1],
            nodes=(counts[0][key], counts[1][key]),
            against_ns=float(times[0][key]),
            ns=float(times[1][key]),
        )
        for key in dict.fromkeys((*times[0], *times[1]))
    ]
    return sorted(changes, key=lambda change: -abs(change.gained_ns))
