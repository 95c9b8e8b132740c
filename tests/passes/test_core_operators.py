"""Each of ATen's core operators has exactly one decision."""

import pytest

from edgeopt.passes.aten import aten
from edgeopt.passes.prune import rules
from edgeopt.passes.prune.core_operators import core_operators, decided_core_operators
from edgeopt.passes.tracing import native_norms

FAMILIES = (
    rules.complex_values,
    rules.contraction,
    rules.distances,
    rules.elementwise,
    rules.frozen,
    rules.movement,
    rules.normalization,
    rules.picking,
    rules.recurrent,
    rules.reductions,
    rules.writing,
)


def test_the_list_is_torchs_own():
    assert len(core_operators()) > 150
    assert {"add", "convolution", "scatter", "_fft_r2c"} <= core_operators().keys()


def test_every_core_operator_is_decided():
    assert [name for name, decision in decided_core_operators().items() if decision is None] == []


def test_an_operator_has_one_decision():
    assert sum(len(family.RULES) for family in FAMILIES) == len(rules.RULES)
    assert not native_norms.PLAIN.keys() & rules.RULES.keys()


@pytest.mark.parametrize(
    ("other", "plain"),
    [
        (aten.masked_fill_.Scalar, aten.masked_fill.Scalar),
        (aten.add_.Tensor, aten.add.Tensor),
        (aten.squeeze_.dim, aten.squeeze.dim),
        (aten.permute_copy.default, aten.permute.default),
    ],
)
def test_operators_in_place_and_copies_have_the_rule_of_their_plain_form(other, plain):
    assert rules.rule_for(other) is rules.rule_for(plain) is not None
