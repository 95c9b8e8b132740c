"""Group tables and latency tables of a synthetic network whose times are all known."""

import math

from edgeopt.records.groups import ChannelGroup, Dimension, GroupTable, WeightShape
from edgeopt.records.latency import LatencyTable, Layer, LayerTime, NetworkTime

BLOCK = 16
FULL = {"a": 64, "b": 64, "c": 5}
PROBES = [FULL, *({"a": a, "b": b, "c": 5} for a, b in [(8, 48), (16, 16), (24, 64), (32, 8), (40, 24), (48, 56),
                                                       (56, 32), (64, 40), (8, 16), (16, 56), (32, 32)])]  # fmt: skip
A, B = (Dimension(fixed=0, per_channel={name: 1}) for name in "ab")


def count_blocks(size):
    return math.ceil(size / BLOCK)


def first_ns(a):
    return 2_000.0 + 3_000.0 * count_blocks(a)


def second_ns(a, b):
    return 1_000.0 + 40.0 * a * count_blocks(b)


def network_ns(widths):
    return 5_000.0 + first_ns(widths["a"]) + second_ns(widths["a"], widths["b"])


def a_latency_table(probes=PROBES):
    """Two layers, 3 -> a -> b, whose outputs are computed in blocks of 16 channels."""
    layers = (
        ("one", (A,), [((w["a"],), first_ns(w["a"])) for w in probes]),
        ("two", (A, B), [((w["a"], w["b"]), second_ns(w["a"], w["b"])) for w in probes]),
    )
    return LatencyTable(
        device="test", runtime="1.32.0", precision="fp32", threads=1, batch_size=1,
        layers=tuple(
            Layer(name=name, operator="Conv", shape=name, dimensions=dimensions,
                  times=tuple(LayerTime(sizes=sizes, ns=ns) for sizes, ns in times))
            for name, dimensions, times in layers
        ),
        wholes=tuple(NetworkTime(widths=widths, ns=network_ns(widths)) for widths in probes),
        seconds=1.0,
    )  # fmt: skip


def a_group_table(importance_a=1.0, importance_b=1.0):
    """The weights of those layers: (a, 3) and (b, a); importance rises along each group's channels."""
    fixed = Dimension(fixed=3, per_channel={})
    return GroupTable(
        groups=(
            ChannelGroup(name="a", channels=64, importance=tuple(importance_a * (i + 1) for i in range(64)),
                         frozen_by=None),
            ChannelGroup(name="b", channels=64, importance=tuple(importance_b * (i + 1) for i in range(64)),
                         frozen_by=None),
            ChannelGroup(name="c", channels=5, importance=(), frozen_by="sort"),
        ),
        tensors=(
            WeightShape(name="w1", dims=(A, fixed), macs_per_weight=1, values_per_weight=0),
            WeightShape(name="w2", dims=(B, A), macs_per_weight=1, values_per_weight=0),
        ),
    )  # fmt: skip
