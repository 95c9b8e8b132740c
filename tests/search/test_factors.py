"""The rule by which low rank enters a search."""

import pytest

from edgeopt.records.low_rank import Factor, FactorChoice, FactorLayer, FactorTable
from edgeopt.search.factors import LEAST_SAVED, NOT_SLOWER, decide


def a_layer(name, *, shape=(100, 100), saves=None):
    """A layer whose pair has ``saves`` fewer numbers; None has no smaller pair."""
    choice = (
        FactorChoice(factor=Factor(rank=8, form="pointwise"), output_loss_ratio=0.01, parameters=10_000 - saves)
        if saves
        else None
    )
    return FactorLayer(
        weight=name, shape=shape, input_shape=(100,), stride=(), padding=(), dilation=(), choices=(choice,)
    )


def a_table(*layers, parameters=40_000):
    return FactorTable(parameters=parameters, losses=(0.02,), layers=layers)


def test_what_counting_says_decides_whether_anything_is_timed():
    table = a_table(a_layer("a", saves=8_000), a_layer("b", saves=2_000), a_layer("c"))
    found = decide(table, 0, None)
    assert set(found.layers) == {"a", "b"}
    assert found.saved_ratio == pytest.approx(LEAST_SAVED)
    assert found.worth_it
    assert not decide(a_table(a_layer("a", saves=9_999)), 0, None).worth_it
    assert not decide(a_table(a_layer("c")), 0, None).layers


def test_a_pair_that_is_slower_or_was_not_timed_keeps_its_form():
    table = a_table(a_layer("fast", saves=8_000), a_layer("slow", saves=8_000), a_layer("unknown", saves=8_000))
    found = decide(table, 0, {"fast": (100.0, 50.0), "slow": (100.0, 101 * NOT_SLOWER)})
    assert set(found.layers) == {"fast"}
    assert found.kept == 2
    assert not found.worth_it
