from itertools import product

import numpy as np
import pytest
from width_tables import FULL, A, B, a_group_table, a_latency_table

from edgeopt.latency.predictor import Predictor
from edgeopt.planning.width_program import (
    GAP_RATIO,
    MAX_OPTIONS,
    Costs,
    WidthProgram,
    latency_costs,
    list_widths,
    weight_costs,
)
from edgeopt.records.groups import Dimension

OPTIONS = {"a": [8, 16, 24, 32, 40, 48, 56, 64], "b": [8, 16, 24, 32, 40, 48, 56, 64], "c": [5]}
EVERY = [dict(zip(OPTIONS, widths, strict=True)) for widths in product(*OPTIONS.values())]


def total_cost(costs, widths):
    """Add up the costs of a choice."""
    index = {name: OPTIONS[name].index(width) for name, width in widths.items()}
    total = costs.constant + sum(table[index[name]] for name, table in costs.unary.items())
    return total + sum(table[index[one], index[two]] for (one, two), table in costs.pairs.items())


def losses(scale_a=1.0, scale_b=1.0):
    lost = Costs(OPTIONS)
    lost.add("a", scale_a * np.array([64.0 - width for width in OPTIONS["a"]]) ** 2)
    lost.add("b", scale_b * np.array([64.0 - width for width in OPTIONS["b"]]) ** 2)
    return lost


def test_costs_equal_the_parameters_and_the_predicted_time_at_every_choice():
    table, predictor = a_group_table(), Predictor(a_latency_table())
    parameters, latency = weight_costs(table, OPTIONS), latency_costs(predictor, OPTIONS)
    for widths in EVERY:
        assert total_cost(parameters, widths) == pytest.approx(table.parameters(widths))
        assert total_cost(latency, widths) == pytest.approx(predictor.ns(widths))


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("scale_b", [0.2, 1.0, 5.0])
def test_no_choice_is_better_than_the_one_found(ratio, scale_b):
    table, predictor, lost = a_group_table(), Predictor(a_latency_table()), losses(1.0, scale_b)
    parameters, latency = weight_costs(table, OPTIONS), latency_costs(predictor, OPTIONS)
    limits = [(parameters, ratio * table.parameters(FULL)), (latency, 0.7 * predictor.ns(FULL))]
    found = WidthProgram(OPTIONS, [("a", "b")]).solve(lost, limits)
    allowed = [widths for widths in EVERY if all(total_cost(costs, widths) <= limit for costs, limit in limits)]
    best = min(total_cost(lost, widths) for widths in allowed)
    assert found.widths in allowed
    assert best <= total_cost(lost, found.widths) <= best * (1 + 2 * GAP_RATIO)
    assert found.gap_ratio <= GAP_RATIO


def test_nothing_is_found_if_no_choice_keeps_the_limits():
    parameters = weight_costs(a_group_table(), OPTIONS)
    assert WidthProgram(OPTIONS, [("a", "b")]).solve(losses(), [(parameters, 10.0)]) is None


def test_a_group_on_both_sides_of_a_product_is_squared():
    costs = Costs(OPTIONS)
    costs.add_product(2.0, A, A)
    assert list(costs.unary["a"]) == [2.0 * width**2 for width in OPTIONS["a"]]


def test_fixed_parts_of_sizes_are_included():
    costs = Costs(OPTIONS)
    costs.add_product(1.0, Dimension(fixed=3, per_channel={"a": 1}), Dimension(fixed=2, per_channel={"b": 4}))
    for widths in EVERY:
        assert total_cost(costs, widths) == (3 + widths["a"]) * (2 + 4 * widths["b"])


def test_the_two_groups_of_a_pair_may_come_in_any_order():
    costs, table = Costs(OPTIONS), np.arange(64.0).reshape(8, 8)
    costs.add_pair("b", "a", table)
    costs.add_product(1.0, B, A)
    assert costs.pairs["a", "b"][2, 5] == table[5, 2] + OPTIONS["a"][2] * OPTIONS["b"][5]


def test_the_widths_to_choose_from_are_multiples_from_the_minimum_on_and_the_full_width():
    assert list_widths(20, 5, 8) == [8, 16, 20]
    assert list_widths(8, 8, 8) == [8]
    many = list_widths(1024, 32, 8)
    assert len(many) <= MAX_OPTIONS
    assert (many[0], many[-1]) == (32, 1024)
    assert all(width % 8 == 0 for width in many)
    assert many[1] - many[0] < many[-1] - many[-2]
