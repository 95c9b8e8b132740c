"""The search for bits by weight: between a number of bits that loses the score and one that keeps it."""

import pytest
from builders import a_recipe

from edgeopt.pipeline.search.variants.mixed_bits import MORE_BITS, bits_of_all, search_levels
from edgeopt.records.recipe import Quantize, QuantizeDynamic, StoreWeights

STATIC = Quantize(activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=32)


def search(lowest_good, fails, keeps):
    """Return the level that is found, and those tried, if every level from ``lowest_good`` on keeps the score."""
    tried = []

    def at(level):
        tried.append(level)
        return level

    return search_levels(at, lambda level: level >= lowest_good, fails, keeps), tried


@pytest.mark.parametrize(("lowest_good", "expected"), [(4.0, 4.25), (4.3, 4.5), (4.6, 4.75), (4.9, 5), (5.5, None)])
def test_the_level_between_two_numbers_of_bits_is_found_in_three_files(lowest_good, expected):
    found, tried = search(lowest_good, 4, 5)
    assert found == expected
    assert len(tried) == len(set(tried)) <= 3


def test_if_eight_bits_lose_too_much_more_are_tried_and_then_as_few_of_them_as_do():
    assert search(8.7, 8, None)[0] == 8.75
    assert search(9.4, 8, None)[0] == 9.5
    assert search(20, 8, None) == (None, list(MORE_BITS))


def with_steps(*steps):
    recipe = a_recipe()
    return type(recipe)(torch_steps=(), graph_steps=steps, seed=0, parent=None)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((STATIC,), 8),
        ((StoreWeights(weight_bits=5, samples=32),), 5),
        ((STATIC, StoreWeights()), 8),
        ((StoreWeights(bits_of=(("w", 4),)),), None),
        ((QuantizeDynamic(reduce_range=True, weight_bits=4), StoreWeights(weight_bits=4)), 4),
        ((QuantizeDynamic(reduce_range=True),), None),  # its cells have 8 bits, whatever is asked for
        ((), None),
    ],
)
def test_the_bits_that_all_weights_of_a_file_have(steps, expected):
    assert bits_of_all(with_steps(*steps)) == expected


def test_trained_bits_stay():
    import msgspec

    assert bits_of_all(with_steps(msgspec.structs.replace(STATIC, calibration="trained"))) is None
