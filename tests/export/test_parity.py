import numpy as np
import pytest

from edgeopt.errors import ParityError
from edgeopt.export.parity import (
    MAX_WIDE_TOLERANCE,
    ROUNDING_FACTOR,
    compare_arrays,
    unexplained_ratio,
    widen_tolerance,
)

ONES = np.ones((2, 3), np.float32)


def test_the_largest_error_of_all_outputs_is_reported():
    found = compare_arrays([ONES, ONES * 4], [ONES, ONES * 5], stage="simplified", tolerance=None)
    assert (found.stage, found.max_abs_error, found.max_rel_error, found.tolerance) == ("simplified", 1.0, 0.25, None)


def test_the_error_of_each_named_output_is_the_largest_of_all_batches():
    found = compare_arrays(
        [ONES, ONES, ONES, ONES], [ONES, ONES * 1.5, ONES * 1.1, ONES], stage="final", tolerance=None, names=("a", "b")
    )
    assert found.by_output == pytest.approx({"a": 0.1, "b": 0.5})


def test_equal_outputs_have_no_error():
    assert compare_arrays([ONES], [ONES], stage="exported", tolerance=0.0).max_rel_error == 0.0


def test_an_error_above_the_tolerance_names_the_output():
    with pytest.raises(ParityError, match=r"exported: output 1 is off by 0\.5 of its largest value; 0\.001 is allowed"):
        compare_arrays([ONES, ONES], [ONES, ONES * 1.5], stage="exported", tolerance=1e-3)


def test_an_output_of_zeros_is_compared_absolutely():
    assert compare_arrays([ONES * 0], [ONES * -1e-6], stage="exported", tolerance=1e-4).max_rel_error == pytest.approx(
        1e-6
    )


def test_small_probabilities_are_compared_as_exactly_as_a_runtime_computes_them():
    small, off = np.float32([7e-6, 1e-8]), np.float32([7.03e-6, 0])
    assert compare_arrays([small], [off], stage="exported", tolerance=1e-3).max_rel_error == 0
    for expected, actual in ((small, small * 1.1), (-small, -off), (np.float32([0.5]), np.float32([0.501]))):
        with pytest.raises(ParityError):
            compare_arrays([expected], [actual], stage="exported", tolerance=1e-3)


def test_a_different_shape_is_an_error():
    with pytest.raises(ParityError, match=r"output 0 has shape \(3,\); the network's has \(2, 3\)"):
        compare_arrays([ONES], [ONES[0]], stage="exported", tolerance=None)


def test_a_different_number_of_outputs_is_an_error():
    with pytest.raises(ParityError, match="has 2 outputs; the network has 1"):
        compare_arrays([ONES], [ONES, ONES], stage="exported", tolerance=None)


@pytest.mark.parametrize(("expected", "actual", "owner"), [(1, np.nan, ""), (np.inf, 1, "of the network ")])
def test_values_that_are_not_finite_are_an_error_even_without_a_tolerance(expected, actual, owner):
    with pytest.raises(ParityError, match=rf"output 0 {owner}has 6 of 6 values that are not finite"):
        compare_arrays([ONES * expected], [ONES * actual], stage="quantized", tolerance=None)


def test_integers_and_empty_outputs_can_be_compared():
    integers = np.arange(4)
    assert (
        compare_arrays(
            [integers, integers[:0]], [integers, integers[:0]], stage="exported", tolerance=0.0
        ).max_abs_error
        == 0.0
    )


@pytest.mark.parametrize(
    ("imitated", "expected"), [(1.1, 0.0), (1.09, 0.1), (1.0, 1.0), (1.2, 1.0)], ids=["all", "most", "nothing", "twice"]
)
def test_the_unexplained_ratio_is_the_share_of_the_change_by_int8_that_is_not_reproduced(imitated, expected):
    ratio = unexplained_ratio([ONES, ONES], [ONES, ONES * imitated], [ONES, ONES * 1.1])
    assert ratio == pytest.approx(expected, abs=1e-5)


def test_a_change_of_less_than_a_step_counts_as_one_step():
    assert unexplained_ratio([ONES], [ONES], [ONES * (1 + 1e-4)]) == pytest.approx(255e-4, rel=1e-2)
    assert unexplained_ratio([ONES * 0], [ONES * 0], [ONES * 0]) == 0.0


@pytest.mark.parametrize(
    ("rounding", "expected"), [(0.0, 1e-3), (1e-6, 1e-3), (2e-3, 2e-3 * ROUNDING_FACTOR), (0.5, MAX_WIDE_TOLERANCE)]
)
def test_the_tolerance_grows_with_the_networks_own_rounding_up_to_a_limit(rounding, expected):
    assert widen_tolerance(1e-3, rounding) == expected


def test_the_tolerance_of_one_output_does_not_widen_that_of_another():
    expected, found = [ONES, ONES], [ONES * 1.004, ONES]
    parity = compare_arrays(expected, found, stage="made", tolerance=1e-3, names=("a", "b"), rounding={"a": 1e-3})
    assert parity.tolerance == pytest.approx(1e-3 * ROUNDING_FACTOR)
    with pytest.raises(ParityError, match="output 1 is off"):
        compare_arrays(expected, found[::-1], stage="made", tolerance=1e-3, names=("a", "b"), rounding={"a": 1e-3})
