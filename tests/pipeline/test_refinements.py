"""The uniform cut at the size of a network that keeps the score: tried if it is predicted to be quicker."""

from types import SimpleNamespace

import pytest
from stub_builds import a_stub_build

from edgeopt.pipeline.artifacts.latency_table import LatencyLimit
from edgeopt.pipeline.search import refinements
from edgeopt.pipeline.search.refinements import uniform_cut
from edgeopt.records.groups import ChannelGroup, Dimension, GroupTable, WeightShape
from edgeopt.records.latency import NoLatencyTable

ORIGINAL = SimpleNamespace(key=None, parameters=None)
NO_TABLE = LatencyLimit(NoLatencyTable(reason="nothing can be timed"), None)


def a_table(early=32, late=32, macs=(100, 1)):
    """Two layers in a row, 3 -> early -> late; the first works a hundred times as much for each weight."""
    dims = [
        Dimension(fixed=3, per_channel={}),
        *(Dimension(fixed=0, per_channel={name: 1}) for name in ("early", "late")),
    ]
    groups = [("early", early), ("late", late)]
    return GroupTable(
        groups=tuple(
            ChannelGroup(name=name, channels=count, importance=(1.0,) * count, frozen_by=None) for name, count in groups
        ),
        tensors=(
            WeightShape(name="w1", dims=(dims[1], dims[0]), macs_per_weight=macs[0], values_per_weight=0),
            WeightShape(name="w2", dims=(dims[2], dims[1]), macs_per_weight=macs[1], values_per_weight=0),
        ),
    )


@pytest.fixture
def cut_beside(monkeypatch):
    """Return the uniform cut beside a network of these widths."""

    def find(limit=NO_TABLE, key="pruned", **widths):
        found = a_table(**widths)
        network = SimpleNamespace(key=key, parameters=found.parameters(found.widths()))
        tables = {None: a_table(), key: found}
        monkeypatch.setattr(refinements, "group_table_of", lambda build, one, importance: (tables[one.key], None))
        monkeypatch.setattr(refinements, "importance_of", lambda build: None)
        monkeypatch.setattr(refinements, "cut_steps", lambda build, prune: (prune.widths,))
        monkeypatch.setattr(refinements, "Prune", SimpleNamespace)
        return uniform_cut(a_stub_build(width_rules=None), network, ORIGINAL, limit), network

    monkeypatch.setattr(refinements, "least_widths", lambda table, rules: {})
    return find


def test_a_network_that_keeps_the_slow_layer_wide_gets_a_uniform_rival_of_its_size(cut_beside):
    rival, network = cut_beside(early=32, late=4)
    (widths,) = rival.steps
    assert widths["early"] == widths["late"] < 32
    assert a_table().parameters(a_table().widths(widths)) <= network.parameters
    assert rival.parent is None


def test_a_network_that_is_quicker_than_its_uniform_cut_has_no_rival(cut_beside):
    assert cut_beside(early=4, late=32)[0] is None


def test_without_a_choice_of_widths_or_a_cut_there_is_no_rival(cut_beside):
    assert cut_beside(limit=None, early=32, late=4)[0] is None
    assert cut_beside(key=None, early=32, late=4)[0] is None
