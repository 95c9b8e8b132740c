"""The rule by which low-rank factorization enters a search."""

import pytest

from edgeopt.planning.low_rank_rule import MAX_PAIR_TIME_RATIO, MIN_SAVED_RATIO, choose_layers
from edgeopt.records.low_rank import Factorization, LowRankChoice, LowRankLayer, LowRankTable


def a_layer(name, *, shape=(100, 100), saves=None):
    """A layer whose pair has ``saves`` fewer parameters; None for a layer without a smaller pair."""
    choice = (
        LowRankChoice(factor=Factorization(rank=8, form="pointwise"), output_loss_ratio=0.01, parameters=10_000 - saves)
        if saves
        else None
    )
    return LowRankLayer(
        weight=name, shape=shape, input_shape=(100,), stride=(), padding=(), dilation=(), choices=(choice,)
    )


def a_table(*layers, parameters=40_000):
    return LowRankTable(parameters=parameters, losses=(0.02,), layers=layers)


def test_counting_parameters_decides_whether_anything_is_timed():
    table = a_table(a_layer("a", saves=8_000), a_layer("b", saves=2_000), a_layer("c"))
    found = choose_layers(table, 0, None)
    assert set(found.layers) == {"a", "b"}
    assert found.saved_ratio == pytest.approx(MIN_SAVED_RATIO)
    assert found.is_worth_training
    assert not choose_layers(a_table(a_layer("a", saves=9_999)), 0, None).is_worth_training
    assert not choose_layers(a_table(a_layer("c")), 0, None).layers


def test_a_layer_whose_pair_is_slower_or_was_not_timed_stays_as_it_is():
    table = a_table(a_layer("fast", saves=8_000), a_layer("slow", saves=8_000), a_layer("unknown", saves=8_000))
    found = choose_layers(table, 0, {"fast": (100.0, 50.0), "slow": (100.0, 101 * MAX_PAIR_TIME_RATIO)})
    assert set(found.layers) == {"fast"}
    assert found.slower_count == 2
    assert not found.is_worth_training
