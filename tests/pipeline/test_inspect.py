"""Times of channel groups: from a latency table in the workspace, or from a profile in PyTorch."""

import msgspec
import pytest

from edgeopt.pipeline.inspect import attribute_profile_time, attribute_table_time, find_latency_table
from edgeopt.records.groups import ChannelGroup, Dimension, GroupTable, WeightShape
from edgeopt.records.latency import LatencyTable, Layer, LayerTime, NetworkTime
from edgeopt.store.keys import Key
from edgeopt.store.ledger import Ledger


def test_times_come_from_a_latency_table_of_the_same_network(tmp_path):
    group = ChannelGroup(name="conv", channels=8, importance=(1.0,) * 8, frozen_by=None)
    table = GroupTable(groups=(group,), tensors=())
    follows = Dimension(fixed=0, per_channel={"conv": 1})
    layers = tuple(
        Layer(name=name, operator="Conv", shape=name, dimensions=dims, times=(LayerTime(sizes=sizes, ns=ns),))
        for name, dims, sizes, ns in (("a", (follows,), (8,), 30.0), ("b", (), (), 10.0))
    )
    known = LatencyTable(
        device="d", runtime="1.0", precision="int8", threads=1, batch_size=1, layers=layers,
        wholes=(NetworkTime(widths={"conv": 8}, ns=40.0),), seconds=1.0,
    )  # fmt: skip
    other = msgspec.structs.replace(known, wholes=(NetworkTime(widths={"conv": 9}, ns=40.0),))
    assert find_latency_table(tmp_path, table) is None
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.put(Key("latency-table", "same"), known)
    ledger.put(Key("latency-table", "other"), other)
    ledger.close()
    found = find_latency_table(tmp_path, table)
    assert found == known
    assert attribute_table_time(found) == {"conv": pytest.approx(0.75)}


def test_the_time_of_a_layer_between_two_groups_counts_for_both():
    both = (Dimension(fixed=0, per_channel={"a": 1}), Dimension(fixed=0, per_channel={"b": 1}))
    tensors = tuple(
        WeightShape(name=name, dims=dims, macs_per_weight=1, values_per_weight=0)
        for name, dims in (("ab", both), ("a", both[:1]), ("untimed", both))
    )
    ratios = attribute_profile_time(GroupTable(groups=(), tensors=tensors), {"ab": 60.0, "a": 20.0}, 100.0)
    assert ratios == {"a": pytest.approx(0.8), "b": pytest.approx(0.6)}
