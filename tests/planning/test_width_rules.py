"""Globs of layers that keep their channels, or at least some of them."""

import pytest

from edgeopt.errors import ConfigError
from edgeopt.planning.width_rules import check_rules, least_widths, matches, notes_without_effect
from edgeopt.records.groups import ChannelGroup, Dimension, GroupTable, WeightShape
from edgeopt.records.width_rules import WidthRules

NAMES = ("stem.conv.weight", "stem.norm.weight", "body.0.weight", "body.0.bias", "head.fc.weight", "head.fc.bias")


def a_group(name, channels, frozen_by=None):
    return ChannelGroup(name=name, channels=channels, importance=(1.0,) * channels, frozen_by=frozen_by)


def size(fixed=0, **per_channel):
    return Dimension(fixed=fixed, per_channel=per_channel)


def a_weight(name, *dims, output_dim=0):
    return WeightShape(name=name, dims=dims, macs_per_weight=1, values_per_weight=0, output_dim=output_dim)


def a_table():
    """3 -> s (32) -> two groups of body, 16 and 48, concatenated -> 10 classes, and a recurrent layer of 24."""
    return GroupTable(
        groups=(
            a_group("s", 32), a_group("x", 16), a_group("y", 48), a_group("classes", 10, "the model's output"),
            a_group("h", 24),
        ),
        tensors=(
            a_weight("stem.conv.weight", size(s=1), size(3)),
            a_weight("stem.norm.weight", size(s=1)),
            a_weight("body.0.weight", size(x=1, y=1), size(s=1)),
            a_weight("up.weight", size(x=1, y=1), size(s=1), output_dim=1),
            a_weight("head.fc.weight", size(classes=1), size(x=1, y=1)),
            a_weight("gru.weight_ih_l0", size(h=3), size(7), output_dim=None),
        ),
    )  # fmt: skip


@pytest.mark.parametrize("glob", ["head.*", "head", "head.fc", "head.fc.weight", "*.fc.*", "h*d.f?.weight"])
def test_a_glob_matches_a_tensor_or_a_module_around_it(glob):
    assert matches(glob, "head.fc.weight")
    assert not matches(glob, "body.0.weight")


def test_tensors_that_are_kept_keep_every_dimension():
    assert least_widths(a_table(), WidthRules(keep=("head.*",))) == {"x": 16, "y": 48}
    assert least_widths(a_table(), WidthRules(keep=("body",))) == {"s": 32, "x": 16, "y": 48}
    assert least_widths(a_table(), WidthRules(keep=("stem.norm.weight",))) == {"s": 32}


def test_a_least_width_counts_output_channels():
    assert least_widths(a_table(), WidthRules(min_widths={"stem.*": 16})) == {"s": 16}
    assert least_widths(a_table(), WidthRules(min_widths={"stem.*": 1000})) == {"s": 32}
    assert least_widths(a_table(), WidthRules(min_widths={"body.*": 32})) == {"x": 8, "y": 24}
    assert least_widths(a_table(), WidthRules(min_widths={"up": 5})) == {"s": 5}
    assert least_widths(a_table(), WidthRules(min_widths={"gru": 8})) == {"h": 8}
    assert least_widths(a_table(), WidthRules(min_widths={"head.fc": 4})) == {}


def test_the_stricter_of_two_rules_counts():
    rules = WidthRules(keep=("stem.norm.*",), min_widths={"stem.*": 8, "stem.conv": 12})
    assert least_widths(a_table(), rules) == {"s": 32}
    assert least_widths(a_table(), WidthRules(min_widths={"stem.*": 8, "stem.conv": 12})) == {"s": 12}


@pytest.mark.parametrize("rules", [WidthRules(keep=("heads.*",)), WidthRules(min_widths={"heads.*": 4})])
def test_a_glob_that_matches_nothing_is_refused_with_the_nearest_names(rules):
    with pytest.raises(ConfigError, match=r"my source: 'heads\.\*' matches no parameter or module .* are head, "):
        check_rules(rules, NAMES, "my source")


def test_a_least_width_below_one_is_refused():
    with pytest.raises(ConfigError, match=r"the least width of 'head' is 0; it has to be 1 or more"):
        check_rules(WidthRules(min_widths={"head": 0}), NAMES, "my source")


def test_a_glob_of_parameters_that_are_not_in_the_pruned_network_gets_a_note():
    assert notes_without_effect(a_table(), WidthRules(keep=("stem", "branch.*"))) == (
        "'branch.*' has no effect: its parameters are not in the network that is pruned",
    )


def test_joined_rules_add_up():
    one = WidthRules(keep=("a",), min_widths={"b": 1, "c": 2})
    assert one.joined(WidthRules(keep=("a", "d"), min_widths={"b": 3})) == WidthRules(
        keep=("a", "d"), min_widths={"b": 3, "c": 2}
    )
