import pytest

from edgeopt.records.groups import ChannelGroup, Dimension, GroupTable, WeightShape
from edgeopt.search.allocate import allocate, uniform_ratio, uniform_widths


def a_table(importance_a=1.0, importance_b=1.0):
    """Two layers in a row, 3 -> a (16) -> b (32) -> 10, and a frozen group."""
    fixed = [Dimension(fixed=size, per_channel={}) for size in (3, 10)]
    a, b = (Dimension(fixed=0, per_channel={name: 1}) for name in "ab")
    return GroupTable(
        groups=(
            ChannelGroup(name="a", channels=16, importance=(importance_a,) * 16, frozen_by=None),
            ChannelGroup(
                name="b", channels=32, importance=tuple(importance_b * (i + 1) for i in range(32)), frozen_by=None
            ),
            ChannelGroup(name="c", channels=5, importance=(), frozen_by="sort"),
        ),
        tensors=(
            WeightShape(name="w1", dims=(a, fixed[0]), macs_per_weight=1, values_per_weight=0),
            WeightShape(name="w2", dims=(b, a), macs_per_weight=1, values_per_weight=0),
            WeightShape(name="w3", dims=(fixed[1], b), macs_per_weight=1, values_per_weight=0),
        ),
    )


FULL = 16 * 3 + 32 * 16 + 10 * 32


@pytest.mark.parametrize("ratio", [0.9, 0.5, 0.3])
@pytest.mark.parametrize("step", [1, 4, 8])
def test_the_target_is_kept_at_multiples_of_the_step(ratio, step):
    table = a_table()
    widths = allocate(table, FULL * ratio, step)
    assert table.parameters(widths) <= FULL * ratio
    assert set(widths) <= {"a", "b"}
    assert all(width % step == 0 and width > 0 for width in widths.values())


def test_nothing_goes_where_the_target_is_met():
    assert allocate(a_table(), FULL, 1) == {}


def test_the_less_important_group_loses_more():
    spare_a = allocate(a_table(importance_a=100.0), FULL * 0.5, 1)
    spare_b = allocate(a_table(importance_b=100.0), FULL * 0.5, 1)
    assert spare_a.get("a", 16) > spare_b.get("a", 16)
    assert spare_a.get("b", 32) < spare_b.get("b", 32)


def test_no_group_goes_below_half_of_its_uniform_width():
    table = a_table(importance_a=1000.0, importance_b=1e-6)
    ratio = uniform_ratio(table, FULL * 0.4)
    assert allocate(table, FULL * 0.4, 1)["b"] >= 0.5 * 32 * ratio


def test_the_uniform_ratio_reaches_the_target():
    table = a_table()
    assert table.parameters(uniform_widths(table, uniform_ratio(table, FULL * 0.5), 1)) == pytest.approx(
        FULL * 0.5, rel=0.1
    )


def test_a_target_that_cannot_be_reached_ends_at_the_floors():
    widths = allocate(a_table(), 1, 8)
    assert widths == {"a": 8, "b": 8}
