import numpy as np
import pytest

from edgeopt.errors import ParityError
from edgeopt.export.parity import compare_arrays, unexplained_share

ONES = np.ones((2, 3), np.float32)


def test_the_largest_error_of_all_outputs_is_reported():
    found = compare_arrays([ONES, ONES * 4], [ONES, ONES * 5], stage="simplified", tolerance=None)
    assert (found.stage, found.max_abs_error, found.max_rel_error, found.tolerance) == ("simplified", 1.0, 0.25, None)


def test_equal_outputs_have_no_error():
    assert compare_arrays([ONES], [ONES], stage="exported", tolerance=0.0).max_rel_error == 0.0


def test_an_error_above_the_tolerance_names_the_output():
    with pytest.raises(ParityError, match=r"exported: output 1 is off by 0\.5 of its largest value; 0\.001 is allowed"):
        compare_arrays([ONES, ONES], [ONES, ONES * 1.5], stage="exported", tolerance=1e-3)


def test_an_output_of_zeros_is_compared_absolutely():
    assert compare_arrays([ONES * 0], [ONES * 1e-6], stage="exported", tolerance=1e-4).max_rel_error == pytest.approx(
        1e-6
    )


def test_another_shape_is_no_parity():
    with pytest.raises(ParityError, match=r"shape \(3,\) where the stage before gave \(2, 3\)"):
        compare_arrays([ONES], [ONES[0]], stage="exported", tolerance=None)


def test_another_number_of_outputs_is_no_parity():
    with pytest.raises(ParityError, match="gives 2 outputs where the stage before gave 1"):
        compare_arrays([ONES], [ONES, ONES], stage="exported", tolerance=None)


@pytest.mark.parametrize(("expected", "actual", "who"), [(1, np.nan, "has"), (np.inf, 1, "the stage before gave")])
def test_values_that_are_not_finite_are_no_parity_even_without_a_tolerance(expected, actual, who):
    with pytest.raises(ParityError, match=rf"output 0: {who} 6 of 6 values that are not finite"):
        compare_arrays([ONES * expected], [ONES * actual], stage="quantized", tolerance=None)


def test_whole_numbers_and_empty_outputs_compare():
    whole = np.arange(4)
    assert compare_arrays([whole, whole[:0]], [whole, whole[:0]], stage="exported", tolerance=0.0).max_abs_error == 0.0


@pytest.mark.parametrize(
    ("imitated", "share"), [(1.1, 0.0), (1.09, 0.1), (1.0, 1.0), (1.2, 1.0)], ids=["all", "most", "nothing", "twice"]
)
def test_what_an_imitation_of_int8_leaves_unexplained_is_a_share_of_what_int8_changes(imitated, share):
    found = unexplained_share([ONES, ONES], [ONES, ONES * imitated], [ONES, ONES * 1.1])
    assert found == pytest.approx(share, abs=1e-5)


def test_a_change_of_less_than_a_step_counts_as_one():
    assert unexplained_share([ONES], [ONES], [ONES * (1 + 1e-4)]) == pytest.approx(255e-4, rel=1e-2)
    assert unexplained_share([ONES * 0], [ONES * 0], [ONES * 0]) == 0.0
