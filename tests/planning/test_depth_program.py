"""Branches in the program over widths: costs at zero, groups that go together, and choices next to all others."""

from itertools import product

import msgspec
import pytest
from width_tables import FULL, a_group_table, a_latency_table

from edgeopt.latency.predictor import Predictor
from edgeopt.planning.width_program import (
    GAP_RATIO,
    WidthProgram,
    branch_losses,
    importance_costs,
    importance_losses,
    latency_costs,
    weight_costs,
)
from edgeopt.planning.width_rules import protected_branches
from edgeopt.planning.widths import allocate, groups_left_out, removable_branches
from edgeopt.records.groups import Branch, ChannelGroup, Dimension, GroupTable, WeightShape
from edgeopt.records.width_rules import WidthRules

OPTIONS = {"s": [8, 16], "a": [0, 4, 8], "b": [0, 2, 6], "c": [5]}
EVERY = [dict(zip(OPTIONS, widths, strict=True)) for widths in product(*OPTIONS.values())]
ALLOWED = [widths for widths in EVERY if (widths["a"] == 0) == (widths["b"] == 0)]


def dims(*sizes):
    """Return dimensions: a number is fixed, a name follows a group."""
    return tuple(
        Dimension(fixed=size, per_channel={}) if isinstance(size, int) else Dimension(fixed=0, per_channel={size: 1})
        for size in sizes
    )


def a_table(loss=4.0, half_loss=2.0):
    """A stream ``s`` and around it a branch s -> a -> b -> s, with a norm of the stream and a scalar in it."""
    shapes = {"in": ("s", 3), "w1": ("a", "s"), "w2": ("b", "a"), "w3": ("s", "b"), "norm": ("s",), "scale": (1,)}
    return GroupTable(
        groups=(
            *(
                ChannelGroup(name=name, channels=channels, importance=(1.0,) * channels, frozen_by=None)
                for name, channels in (("s", 16), ("a", 8), ("b", 6))
            ),
            ChannelGroup(name="c", channels=5, importance=(), frozen_by="sort"),
        ),
        tensors=tuple(
            WeightShape(name=name, dims=dims(*sizes), macs_per_weight=2, values_per_weight=0)
            for name, sizes in shapes.items()
        ),
        branches=(
            Branch(
                name="block", groups=("a", "b"), tensors=("norm", "scale", "w1", "w2", "w3"), loss=loss,
                half_loss=half_loss,
            ),
        ),
    )  # fmt: skip


def total_cost(costs, widths):
    index = {name: OPTIONS[name].index(width) for name, width in widths.items()}
    total = costs.constant + sum(table[index[name]] for name, table in costs.unary.items())
    return total + sum(table[index[one], index[two]] for (one, two), table in costs.pairs.items())


def test_weights_of_a_branch_that_is_left_out_count_nothing():
    table = a_table()
    costs = weight_costs(table, OPTIONS)
    for widths in ALLOWED:
        assert total_cost(costs, widths) == table.parameters(widths)
    assert table.parameters({"s": 16, "a": 0, "b": 0, "c": 5}) == 16 * 3
    assert table.macs({"s": 16, "a": 0, "b": 0, "c": 5}) == 2 * 16 * 3


def test_what_a_branch_costs_is_scaled_by_what_half_of_all_branches_costs_in_both_measures():
    table = a_table(loss=4.0, half_loss=2.0)
    (a, b) = (importance_losses(group) for group in table.groups[1:3])
    assert branch_losses(table) == {"block": pytest.approx((a[4] + b[3]) * 4.0 / 2.0)}
    lost = importance_costs(table, OPTIONS)
    at_zero = total_cost(lost, {"s": 16, "a": 0, "b": 0, "c": 5})
    assert at_zero == pytest.approx(branch_losses(table)["block"])


WITHOUT_ZERO = {name: [width for width in widths if width] for name, widths in OPTIONS.items()}


@pytest.mark.parametrize("half_loss", [0.0, -0.1])
def test_a_branch_whose_half_costs_nothing_is_not_offered(half_loss):
    assert removable_branches(a_table(half_loss=half_loss), WITHOUT_ZERO) == []


def test_a_branch_that_costs_more_than_all_else_together_is_not_offered():
    assert [branch.name for branch in removable_branches(a_table(), WITHOUT_ZERO)] == ["block"]
    assert removable_branches(a_table(loss=1e6), WITHOUT_ZERO) == []


@pytest.mark.parametrize("glob", ["w2", "norm", "scale", "w*"])
def test_a_branch_with_a_tensor_that_a_rule_is_about_stays(glob):
    table = a_table()
    assert protected_branches(table, WidthRules(keep=("in",), min_widths={})) == set()
    assert protected_branches(table, WidthRules(keep=(glob,), min_widths={})) == {"block"}
    assert protected_branches(table, WidthRules(keep=(), min_widths={glob: 1})) == {"block"}
    assert removable_branches(table, WITHOUT_ZERO, {"block"}) == []


def test_groups_that_went_with_branches_are_told_from_others():
    table = msgspec.structs.replace(
        a_table(),
        branches=(Branch(name="block", groups=("a", "b"), frozen_groups=("c",), tensors=(), loss=1.0, half_loss=1.0),),
    )
    left, rest = (tuple(table.groups[index] for index in some) for some in ((0, 3), (0,)))
    assert groups_left_out(table, table) == set()
    assert groups_left_out(table, msgspec.structs.replace(table, groups=rest)) == {"a", "b", "c"}
    assert (
        groups_left_out(table, msgspec.structs.replace(table, groups=left)) is None
    )  # its frozen group went elsewhere
    wide = msgspec.structs.replace(table.groups[0], channels=17)
    assert groups_left_out(table, msgspec.structs.replace(table, groups=(wide, *table.groups[1:]))) is None


def test_without_widths_that_reach_the_latency_limit_no_branch_is_left_out_in_vain():
    table, predictor = with_branch(1e-4), Predictor(a_latency_table())
    found = allocate(table, 8, predictor, max_parameters=0.3 * table.parameters({}), max_latency_ratio=0.01)
    assert found.widths["a"] > 0
    assert any("predicted to reach the latency limit" in note for note in found.notes)


@pytest.mark.parametrize("loss", [0.1, 1.0, 4.0, 50.0])
@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.7])
def test_the_program_finds_the_best_of_all_choices(loss, ratio):
    table = a_table(loss=loss)
    size, lost = weight_costs(table, OPTIONS), importance_costs(table, OPTIONS)
    limit = ratio * table.parameters({})
    found = WidthProgram(OPTIONS, sorted(size.pairs), [("a", "b")]).solve(lost, [(size, limit)])
    fitting = [widths for widths in ALLOWED if table.parameters(widths) <= limit]
    assert found.widths in fitting
    best = min(total_cost(lost, widths) for widths in fitting)
    assert total_cost(lost, found.widths) <= best * (1 + 2 * GAP_RATIO) + 1e-9


def with_branch(loss):
    """Return the table of two layers in a row in which ``a`` is a branch of its own."""
    branch = Branch(name="block", groups=("a",), tensors=("w1",), loss=loss, half_loss=1.0)
    return msgspec.structs.replace(a_group_table(), branches=(branch,))


def test_layers_of_a_branch_that_is_left_out_take_no_time():
    table, predictor = with_branch(1.0), Predictor(a_latency_table())
    options = {"a": [0, 8, 64], "b": [8, 64], "c": [5]}
    costs = latency_costs(predictor, options)
    for widths in (dict(zip(options, some, strict=True)) for some in product(*options.values())):
        index = {name: options[name].index(width) for name, width in widths.items()}
        total = costs.constant + sum(values[index[name]] for name, values in costs.unary.items())
        total += sum(values[index[one], index[two]] for (one, two), values in costs.pairs.items())
        assert total == pytest.approx(predictor.ns(widths))
    assert predictor.ns({"a": 0, "b": 64, "c": 5}) < predictor.ns({"a": 8, "b": 64, "c": 5}) < predictor.ns(FULL)
    assert table.left_out({"a": 0}) == table.branches


@pytest.mark.parametrize(("loss", "is_left_out"), [(1e-4, True), (1e6, False)])
def test_a_branch_goes_if_that_costs_less_than_narrow_layers(loss, is_left_out):
    table, predictor = with_branch(loss), Predictor(a_latency_table())
    limit = 0.3 * table.parameters({})
    found = allocate(table, 8, predictor, max_parameters=limit, max_latency_ratio=None)
    assert (found.widths.get("a") == 0) is is_left_out
    assert any("left out whole" in note and "block" in note for note in found.notes) is is_left_out
    assert table.parameters(found.widths) <= limit


def test_widths_of_a_network_without_a_branch_are_chosen_by_the_table_of_the_original():
    table, predictor = a_group_table(), Predictor(a_latency_table())
    rest = msgspec.structs.replace(
        table,
        groups=table.groups[1:],
        tensors=(msgspec.structs.replace(table.tensors[1], dims=table.tensors[1].dims[:1]),),
    )
    found = allocate(rest, 8, predictor, max_parameters=32, max_latency_ratio=None, left_out={"a"})
    assert found.widths == {"b": 32}
    assert found.latency_ratio == pytest.approx(predictor.ns({"a": 0, "b": 32, "c": 5}) / predictor.original_ns)
