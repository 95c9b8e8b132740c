import msgspec
import pytest
from width_tables import a_group_table, a_latency_table

from edgeopt.latency.predictor import Predictor
from edgeopt.planning.width_program import GAP_RATIO, importance_losses
from edgeopt.planning.widths import (
    ESTIMATE_ERROR_RATIO,
    NOT_SMALL_ENOUGH,
    UNREACHED_NOTE,
    allocate,
    allocate_by_work,
    group_step,
    uniform_ratio,
    uniform_widths,
    uniform_widths_of_size,
)
from edgeopt.records.groups import ChannelGroup, Dimension, GroupTable, WeightShape


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
def test_the_parameter_limit_is_kept_at_multiples_of_the_step(ratio, step):
    table = a_table()
    widths = allocate_by_work(table, FULL * ratio, step)
    assert table.parameters(widths) <= FULL * ratio
    assert set(widths) <= {"a", "b"}
    assert all(width % step == 0 and width > 0 for width in widths.values())


@pytest.mark.parametrize("step", [1, 4])
def test_a_uniform_cut_is_the_largest_within_a_number_of_parameters(step):
    table = a_table()
    widths = uniform_widths_of_size(table, FULL * 0.4, step)
    assert set(widths) == {"a", "b", "c"}
    assert widths["c"] == 5  # frozen
    assert widths["a"] / 16 == pytest.approx(widths["b"] / 32, abs=step / 16)
    assert table.parameters(widths) <= FULL * 0.4
    larger = {"a": min(16, widths["a"] + step), "b": min(32, widths["b"] + step), "c": 5}
    assert table.parameters(larger) > FULL * 0.4


def test_a_uniform_cut_to_nothing_leaves_the_least_widths():
    assert uniform_widths_of_size(a_table(), 1, 4, {"b": 10}) == {"a": 4, "b": 12, "c": 5}


def test_nothing_is_removed_if_the_limit_is_already_kept():
    assert allocate_by_work(a_table(), FULL, 1) == {}


def test_the_less_important_group_loses_more_channels():
    spare_a = allocate_by_work(a_table(importance_a=100.0), FULL * 0.5, 1)
    spare_b = allocate_by_work(a_table(importance_b=100.0), FULL * 0.5, 1)
    assert spare_a.get("a", 16) > spare_b.get("a", 16)
    assert spare_a.get("b", 32) < spare_b.get("b", 32)


def test_no_group_goes_below_half_of_its_uniform_width():
    table = a_table(importance_a=1000.0, importance_b=1e-6)
    ratio = uniform_ratio(table, lambda widths: table.parameters(widths) <= FULL * 0.4)
    assert allocate_by_work(table, FULL * 0.4, 1)["b"] >= 0.5 * 32 * ratio


def test_the_uniform_ratio_reaches_the_limit():
    table = a_table()
    ratio = uniform_ratio(table, lambda widths: table.parameters(widths) <= FULL * 0.5)
    assert 0.9 * FULL * 0.5 <= table.parameters(uniform_widths(table, ratio, 1)) <= FULL * 0.5


def test_a_limit_that_cannot_be_reached_ends_at_the_smallest_widths():
    widths = allocate_by_work(a_table(), 1, 8)
    assert widths == {"a": 8, "b": 8}


def lost(table, widths):
    return sum(importance_losses(g)[g.channels - widths.get(g.name, g.channels)] for g in table.free)


PARAMETERS = a_group_table().parameters({})
CHOICES = [{"a": a, "b": b} for a in range(8, 65, 8) for b in range(8, 65, 8)]


@pytest.mark.parametrize("ratio", [0.8, 0.5, 0.25])
def test_the_quickest_of_the_widths_that_lose_about_the_least_importance_are_found(ratio):
    table, predictor = a_group_table(), Predictor(a_latency_table())
    found = allocate(table, 8, predictor, max_parameters=ratio * PARAMETERS, max_latency_ratio=None)
    fits = [widths for widths in CHOICES if table.parameters(widths) <= ratio * PARAMETERS]
    least = min(lost(table, widths) for widths in fits)
    good = [widths for widths in fits if lost(table, widths) <= (1 + ESTIMATE_ERROR_RATIO) * least]
    assert table.parameters(found.widths) <= ratio * PARAMETERS
    assert lost(table, found.widths) <= (1 + ESTIMATE_ERROR_RATIO) * (1 + GAP_RATIO) * least
    assert found.latency_ratio <= 1.01 * min(predictor.ratio(table.widths(widths)) for widths in good)
    assert found.latency_ratio == predictor.ratio(table.widths(found.widths))
    assert found.gap_ratio < 0.01


def test_the_loss_grows_without_bound_as_a_group_is_removed():
    group = ChannelGroup(name="a", channels=4, importance=(4.0, 1.0, 3.0, 2.0), frozen_by=None)
    assert importance_losses(group).tolist() == pytest.approx([0, 1 / 0.9, 3 / 0.7, 6 / 0.4])
    nothing = ChannelGroup(name="a", channels=3, importance=(0.0, 0.0, 0.0), frozen_by=None)
    assert importance_losses(nothing).tolist() == [0, 0, 0]


def test_widths_are_multiples_of_the_device_s_blocks():
    found = allocate(
        a_group_table(importance_a=0.1),
        8,
        Predictor(a_latency_table()),
        max_parameters=0.5 * PARAMETERS,
        max_latency_ratio=None,
    )
    assert found.widths.get("b", 64) % 16 == 0


def test_a_latency_limit_is_kept_even_if_the_parameter_limit_is_easy_to_keep():
    table, predictor = a_group_table(), Predictor(a_latency_table())
    free = allocate(table, 8, predictor, max_parameters=0.9 * PARAMETERS, max_latency_ratio=None)
    bound = allocate(table, 8, predictor, max_parameters=0.9 * PARAMETERS, max_latency_ratio=0.6)
    assert free.latency_ratio > 0.6
    assert bound.latency_ratio <= 0.6
    assert lost(table, bound.widths) > lost(table, free.widths)


def test_if_no_widths_keep_the_latency_limit_the_quickest_within_the_parameter_limit_are_used():
    table, predictor = a_group_table(), Predictor(a_latency_table())
    found = allocate(table, 8, predictor, max_parameters=0.5 * PARAMETERS, max_latency_ratio=0.01)
    assert table.parameters(found.widths) <= 0.5 * PARAMETERS
    assert (
        found.latency_ratio
        < allocate(table, 8, predictor, max_parameters=0.5 * PARAMETERS, max_latency_ratio=None).latency_ratio
    )


def test_a_latency_limit_that_no_widths_reach_is_said_with_both_numbers():
    table, predictor = a_group_table(), Predictor(a_latency_table())
    found = allocate(table, 8, predictor, max_parameters=0.5 * PARAMETERS, max_latency_ratio=0.01)
    assert UNREACHED_NOTE in found.notes[0]
    assert "it is 0.010 of the original's latency in fp32" in found.notes[0]
    assert f"the quickest take {found.latency_ratio:.3f}" in found.notes[0]
    assert "keep and min_widths" not in found.notes[0]
    reached = allocate(table, 8, predictor, max_parameters=0.9 * PARAMETERS, max_latency_ratio=0.6)
    assert reached.notes == ()
    bound = allocate(table, 8, predictor, max_parameters=PARAMETERS, max_latency_ratio=0.6, least={"a": 64, "b": 60})
    assert "nor of what keep and min_widths ask for" in bound.notes[0]
    neither = allocate(table, 8, predictor, max_parameters=0.5 * PARAMETERS, max_latency_ratio=0.6, least={"a": 60})
    assert neither.widths == {"b": 16}
    assert UNREACHED_NOTE in neither.notes[0]
    neither = allocate(table, 8, predictor, max_parameters=100, max_latency_ratio=0.1, least={"a": 50})
    assert neither.widths == {"a": 56, "b": 8}
    assert neither.notes[0] == NOT_SMALL_ENOUGH
    assert neither.latency_ratio == predictor.ratio(table.widths(neither.widths))
    assert UNREACHED_NOTE in neither.notes[1]


def test_work_is_counted_without_a_latency_table_or_with_another_network_s_table():
    table = a_group_table()
    assert allocate(table, 8, None, max_parameters=0.5 * PARAMETERS, max_latency_ratio=None).widths == allocate_by_work(
        table, 0.5 * PARAMETERS, 8
    )
    other = msgspec.structs.replace(a_latency_table(), wholes=(msgspec.structs.replace(
        a_latency_table().wholes[0], widths={"x": 3}),))  # fmt: skip
    found = allocate(table, 8, Predictor(other), max_parameters=0.5 * PARAMETERS, max_latency_ratio=None)
    assert found.widths == allocate_by_work(table, 0.5 * PARAMETERS, 8)
    assert "other groups" in found.notes[0]


def test_the_same_table_gives_the_same_widths():
    one, two = (
        allocate(
            a_group_table(), 8, Predictor(a_latency_table()), max_parameters=0.4 * PARAMETERS, max_latency_ratio=None
        )
        for _ in range(2)
    )
    assert one == two


def test_with_only_a_latency_limit_as_much_importance_as_possible_is_kept():
    table, predictor = a_group_table(), Predictor(a_latency_table())
    found = allocate(table, 8, predictor, max_parameters=None, max_latency_ratio=0.6)
    assert found.latency_ratio <= 0.6
    kept = [widths for widths in CHOICES if predictor.ratio(table.widths(widths)) <= 0.6]
    assert lost(table, found.widths) <= min(lost(table, widths) for widths in kept) * 1.01


def test_without_a_limit_nothing_is_removed():
    found = allocate(a_group_table(), 8, Predictor(a_latency_table()), max_parameters=None, max_latency_ratio=None)
    assert found.widths == {}


@pytest.mark.parametrize(
    ("channels", "unit", "in_convolution", "step"),
    [
        (64, 1, True, 8),  # channels of convolutions
        (6, 1, True, 8),
        (64, 1, False, 8),  # features
        (6, 1, False, 1),  # experts
        (12, 64, False, 1),  # heads
        (6, 20, False, 1),
        (12, 4, False, 2),
        (13, 8, True, 1),  # groups of a convolution
        (32, 4, True, 2),
        (4, 3, True, 1),
    ],
)
def test_a_group_shrinks_by_its_own_unit(channels, unit, in_convolution, step):
    group = ChannelGroup(
        name="g", channels=channels, importance=(1.0,) * channels, frozen_by=None, unit=unit,
        in_convolution=in_convolution,
    )  # fmt: skip
    assert group_step(group, 8) == step
    assert group_step(group, 1) == 1


def test_six_heads_can_become_four():
    """Projections of 6 heads of depth 32 to and from 64 features."""
    heads = ChannelGroup(name="h", channels=6, importance=(1.0,) * 6, frozen_by=None, unit=32)
    rows, fixed = Dimension(fixed=0, per_channel={"h": 32}), Dimension(fixed=64, per_channel={})
    weight = WeightShape(name="q", dims=(rows, fixed), macs_per_weight=1, values_per_weight=0)
    table = GroupTable(groups=(heads,), tensors=(weight,))
    assert allocate_by_work(table, 0.67 * 6 * 32 * 64, 8) == {"h": 4}


def test_no_group_goes_below_the_least_width_that_was_asked_for():
    table, predictor = a_group_table(importance_a=1e-3), Predictor(a_latency_table())
    for found in (
        allocate(table, 8, predictor, max_parameters=0.3 * PARAMETERS, max_latency_ratio=None, least={"a": 42}).widths,
        allocate_by_work(table, 0.3 * PARAMETERS, 8, {"a": 42}),
    ):
        assert found["a"] >= 48
        assert table.parameters(found) <= 0.3 * PARAMETERS
    kept = allocate(table, 8, predictor, max_parameters=0.3 * PARAMETERS, max_latency_ratio=None, least={"a": 64})
    assert "a" not in kept.widths
