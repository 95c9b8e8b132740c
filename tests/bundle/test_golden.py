"""Golden arrays survive the way through raw bytes, and have their tolerances."""

import numpy as np
import pytest
from builders import a_recipe

from edgeopt.bundle.golden import (
    FLOAT16_TOLERANCE_RATIO,
    FLOAT_TOLERANCE_RATIO,
    INT8_TOLERANCE_RATIO,
    read_golden,
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
    [entry] = write_golden(tmp_path, {"a/b: c": array}, {}, ratio=0.1)
    found = read_golden(tmp_path, entry)
    assert found.dtype == array.dtype.newbyteorder("<")
    np.testing.assert_array_equal(found, array)
    assert entry.tolerance is None


def test_the_tolerance_of_an_output_depends_on_its_largest_value_and_integers_are_exact(tmp_path):
    outputs = {"x": np.array([-4.0, 1.0]), "zero": np.zeros(2), "label": np.array([7])}
    entries = write_golden(tmp_path, {}, outputs, ratio=0.1)
    assert [entry.tolerance for entry in entries] == [pytest.approx(0.4), 0.1, 0.0]


def test_a_coarser_number_format_gets_a_larger_tolerance():
    float16 = Recipe(torch_steps=(), graph_steps=(Float16(),), seed=0, parent=None)
    ratios = [tolerance_ratio(recipe) for recipe in (a_recipe(), float16, a_recipe(int8=True))]
    assert ratios == [FLOAT_TOLERANCE_RATIO, FLOAT16_TOLERANCE_RATIO, INT8_TOLERANCE_RATIO]
    assert ratios == sorted(ratios)
    given = [tolerance_ratio(a_recipe(), types) for types in (("float32",), ("bfloat16", "float32"), ("int8",))]
    assert given == ratios


def test_a_file_of_another_length_is_a_readable_error(tmp_path):
    [entry] = write_golden(tmp_path, {"x": np.zeros(4, np.float32)}, {}, ratio=0.1)
    (tmp_path / entry.file).write_bytes(b"123")
    with pytest.raises(DataError, match="has 3 bytes, but the manifest says 16"):
        read_golden(tmp_path, entry)
    (tmp_path / entry.file).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_golden(tmp_path, entry)
