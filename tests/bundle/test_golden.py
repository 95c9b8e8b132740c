"""Golden arrays survive the way through raw bytes, and have their tolerances."""

import numpy as np
import pytest
from builders import a_recipe
from tiny_bundles import a_golden

from edgeopt.bundle.golden import (
    FLOAT16_TOLERANCE_RATIO,
    FLOAT_TOLERANCE_RATIO,
    INT8_TOLERANCE_RATIO,
    find_answers,
    measured_tolerance,
    read_golden,
    spread_of,
    tolerance_ratio,
    write_golden,
)
from edgeopt.errors import DataError
from edgeopt.records.recipe import Float16, Recipe


@pytest.mark.parametrize(
    "array",
    [
        np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4),
        np.arange(6, dtype=np.int64).reshape(3, 2).T,
        np.array(3.5, dtype=np.float16),
        np.array([[True, False]]),
        np.arange(4, dtype=">i4"),
        np.zeros((0, 5), dtype=np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_are_read_back_as_they_were_written(tmp_path, array):
    [entry] = write_golden(tmp_path, a_golden({"a/b: c": array}, {}))
    found = read_golden(tmp_path, entry)
    assert found.dtype == array.dtype.newbyteorder("<")
    np.testing.assert_array_equal(found, array)
    assert entry.tolerance is None


def test_the_tolerance_of_an_output_depends_on_its_largest_value_and_integers_are_exact(tmp_path):
    outputs = {"x": np.array([-4.0, 1.0]), "zero": np.zeros(2), "label": np.array([7])}
    entries = write_golden(tmp_path, a_golden({}, outputs, ratio=0.1))
    assert [entry.tolerance for entry in entries] == [pytest.approx(0.4), 0.1, 0.0]


def test_a_coarser_number_format_gets_a_larger_tolerance():
    float16 = Recipe(torch_steps=(), graph_steps=(Float16(),), seed=0, parent=None)
    ratios = [tolerance_ratio(recipe) for recipe in (a_recipe(), float16, a_recipe(int8=True))]
    assert ratios == [FLOAT_TOLERANCE_RATIO, FLOAT16_TOLERANCE_RATIO, INT8_TOLERANCE_RATIO]
    assert ratios == sorted(ratios)
    given = [tolerance_ratio(a_recipe(), types) for types in (("float32",), ("bfloat16", "float32"), ("int8",))]
    assert given == ratios


def test_a_measured_tolerance_is_twice_the_spread_within_what_the_number_format_allows():
    output = np.array([[10.0, -2.0]])
    found = [measured_tolerance(output, spread, INT8_TOLERANCE_RATIO) for spread in (0.0, 0.2, 5.0)]
    assert found == [pytest.approx(10 / 127), pytest.approx(0.4), pytest.approx(1.0)]
    assert measured_tolerance(output, 0.0, FLOAT_TOLERANCE_RATIO) == pytest.approx(1e-3)
    assert measured_tolerance(np.array([3]), 0.0, INT8_TOLERANCE_RATIO) == 0
    assert measured_tolerance(np.array([3]), 0.01, INT8_TOLERANCE_RATIO) == 0.02  # a share


def test_of_whole_numbers_a_measured_share_may_differ(tmp_path):
    classes = np.zeros((1, 10, 10), np.int64)
    other = classes.copy()
    other[0, 0, 0] = 3
    assert spread_of(classes, other) == 0.01
    golden = a_golden({}, {"map": classes})._replace(tolerances={"map": 0.02})
    [entry] = write_golden(tmp_path, golden)
    assert (entry.tolerance, entry.different_ratio) == (0.0, 0.02)


def test_answers_are_the_classes_that_no_allowed_difference_changes():
    output = np.array([[0.0, 3.0, 1.0], [2.0, 1.9, 0.0], [5.0, 0.0, 1.0]])
    found = find_answers("y", output, 1, ("ape", "bat", "cow"), tolerance=0.1)
    assert [(answer.sample, answer.class_index, answer.label) for answer in found] == [(0, 1, "bat"), (2, 0, "ape")]
    assert [answer.label for answer in find_answers("y", output, 1, (), 0.1)] == [None, None]
    assert find_answers("y", np.zeros((2, 3, 4)), 1, (), 0.1) == ()  # a class map


def test_a_file_of_another_length_is_a_readable_error(tmp_path):
    [entry] = write_golden(tmp_path, a_golden({"x": np.zeros(4, np.float32)}, {}))
    (tmp_path / entry.file).write_bytes(b"123")
    with pytest.raises(DataError, match="has 3 bytes, but the manifest says 16"):
        read_golden(tmp_path, entry)
    (tmp_path / entry.file).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_golden(tmp_path, entry)
