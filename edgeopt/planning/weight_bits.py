"""How many bits each weight gets, so that a file is as small as it can be at the same noise.

In: the noise that each weight adds at the network's outputs in few bits (``BitStudy``). Out: bits by weight. A bit less
is four times the noise, so the noise at any number of bits follows from one measurement, and the noise of several
weights is taken to add up. This is the classical allocation of bits at a given distortion (Shoham and Gersho, 1988).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeopt.planning.width_program import Costs, WidthProgram
from edgeopt.records.quantization import BitStudy
from edgeopt.records.recipe import StoredBits

_NOISE_PER_BIT = 4.0
"""A bit less makes steps twice as long, and the power of their errors four times as large."""
MIN_NOISE_RATIO = 0.05
"""Of the mean noise for each value: what a weight is taken to add at least, because other samples may use it more. So
no weight has more than about two bits less than it would have if all were alike."""
UNUSED_NOISE = 1e-11
"""Over the signal: a weight that adds no more was not used by the samples, as that of a state that is always zero."""


def noise_at(study: BitStudy, bits: float, studied_bits: int) -> float:
    """Return the noise over the signal at the outputs if every weight had that many bits.

    Args:
        study: Of the network.
        bits: May be between two whole numbers.
        studied_bits: In which the study measured.
    """
    return float(sum(weight.noise_ratio for weight in study.noises) * _NOISE_PER_BIT ** (studied_bits - bits))


def allocate_bits(
    study: BitStudy, max_noise: float, studied_bits: int, widths: Sequence[StoredBits]
) -> tuple[tuple[str, StoredBits], ...]:
    """Return the bits of each weight with which a file is smallest and its noise stays within a limit.

    Args:
        study: Of the network.
        max_noise: Over the signal, in power.
        studied_bits: In which the study measured.
        widths: That a weight may have; 8 is one of them.

    Returns:
        Name and bits of each weight, in the study's order; a weight that the samples did not use has 8 bits. If even
        the most bits are too noisy, all have these.
    """
    mean = sum(weight.noise_ratio for weight in study.noises) / sum(weight.values for weight in study.noises)
    options = {
        str(index): [one for one in sorted(widths) if one >= 8 or weight.is_packed]
        if weight.noise_ratio > UNUSED_NOISE
        else [8]
        for index, weight in enumerate(study.noises)
    }
    noise, size = Costs(options), Costs(options)
    for (name, choices), weight in zip(options.items(), study.noises, strict=True):
        bits = np.array(choices, np.float64)
        least = MIN_NOISE_RATIO * mean * weight.values
        used = max(weight.noise_ratio, least) if len(choices) > 1 else 0.0
        noise.add(name, used * _NOISE_PER_BIT ** (studied_bits - bits))
        size.add(name, bits * weight.values)
    found = WidthProgram(options, []).solve(size, [(noise, max_noise)])
    chosen = found.widths if found is not None else {name: max(choices) for name, choices in options.items()}
    by_bits: dict[int, StoredBits] = {width: width for width in widths}
    return tuple((weight.weight, by_bits[chosen[str(index)]]) for index, weight in enumerate(study.noises))
