"""A bundle checked again: the batch that is measured."""

import numpy as np
import pytest

from edgeopt.pipeline.verify.check import take_samples_of


@pytest.mark.parametrize(
    ("shape", "given", "taken"),
    [
        (("n", 3), (8, 3), (2, 3)),
        (("n", 3), (1, 3), (2, 3)),
        (("batch", "length"), (8, 5), (2, 5)),
        (("length", "batch", 4), (5, 8, 4), (5, 2, 4)),
        ((24, 3), (24, 3), (24, 3)),
        ((5, 5), (5, 5), (5, 5)),
        ((), (), ()),
    ],
)
def test_a_batch_has_as_many_samples_as_are_measured(shape, given, taken):
    array = np.arange(np.prod(given, dtype=int)).reshape(given)
    found = take_samples_of(array, shape, 2)
    assert found.shape == taken
    if taken == given:
        assert np.array_equal(found, array)
