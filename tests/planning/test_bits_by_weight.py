"""Bits by weight: as few bytes as a noise allows, and none that other samples would pay for."""

import itertools

import msgspec
import numpy as np
import pytest

from edgeopt.planning.weight_bits import allocate_bits, noise_at
from edgeopt.records.quantization import BitStudy, WeightNoise

STUDIED = 5
WIDTHS = (3, 4, 5, 6, 8)


def a_study(*weights):
    """Return the study of weights, each given as its number of values and its noise in power."""
    return BitStudy(
        noises=tuple(
            WeightNoise(weight=f"w{index}", values=values, noise_ratio=noise)
            for index, (values, noise) in enumerate(weights)
        )
    )


def bits_at(study, level, widths=WIDTHS):
    return [bits for _, bits in allocate_bits(study, noise_at(study, level, STUDIED), STUDIED, widths)]


def total_noise(study, bits):
    return sum(one.noise_ratio * 4.0 ** (STUDIED - width) for one, width in zip(study.noises, bits, strict=True))


def test_weights_that_are_alike_have_the_same_bits():
    study = a_study(*[(1000, 1e-3)] * 4)
    assert [bits_at(study, level) for level in (3, 4, 5, 6, 8)] == [[level] * 4 for level in (3, 4, 5, 6, 8)]


def test_a_weight_that_disturbs_more_for_its_size_has_more_bits():
    bits = bits_at(a_study((1000, 1e-2), (1000, 1e-4), (50_000, 1e-2)), 5)
    assert bits[0] > bits[2] > bits[1] or bits[0] > bits[1] == bits[2]
    assert bits[0] >= 6


@pytest.mark.parametrize("seed", range(5))
def test_no_other_bits_are_much_fewer_at_that_noise(seed):
    random = np.random.default_rng(seed)
    study = a_study(*[(int(random.integers(1000, 5000)), float(10 ** random.uniform(-3, -2))) for _ in range(5)])
    limit = noise_at(study, 5, STUDIED)
    found = bits_at(study, 5)
    assert total_noise(study, found) <= limit

    def size(bits):
        return sum(one.values * width for one, width in zip(study.noises, bits, strict=True))

    best = min(size(bits) for bits in itertools.product(WIDTHS, repeat=5) if total_noise(study, bits) <= limit)
    assert size(found) <= 1.1 * best
    assert size(found) <= size([5] * 5)


def test_a_weight_that_no_sample_uses_keeps_eight_bits():
    assert bits_at(a_study((1000, 1e-3), (1000, 0.0)), 4, (*WIDTHS, 16)) == [4, 8]


def test_a_weight_that_these_samples_hardly_use_has_not_much_less_than_the_others():
    assert bits_at(a_study((1000, 1e-3), (1000, 1e-9)), 6)[1] >= 4


def test_a_weight_that_cannot_be_packed_has_eight_bits_or_more():
    study = a_study((1000, 1e-3), (1000, 1e-3))
    inner = msgspec.structs.replace(study.noises[1], is_packed=False)
    assert bits_at(BitStudy(noises=(study.noises[0], inner)), 5)[1] == 8


def test_above_eight_bits_only_the_weights_that_need_it_have_more():
    bits = bits_at(a_study((1000, 1e-1), (100_000, 1e-4)), 9, (*WIDTHS, 16))
    assert bits == [16, 8]
