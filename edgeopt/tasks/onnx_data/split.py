"""Which samples train, which calibrate int8, and which select; no sample that trains or calibrates selects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.tasks.onnx_data.samples import GivenSamples, SampleGroup
from edgeopt.tasks.onnx_data.specs import InputAxes

TRAINING_RATIO = 0.6
"""Share of the samples that trains, if there are enough; those that calibrate are among them."""
MIN_TRAINING_SAMPLES = 256
"""Fewer do not show a network what it has to do."""
_CALIBRATION_RATIO = 0.2
"""Share of the samples that calibrates int8 if none train."""
_MAX_CALIBRATION_SAMPLES = 384
"""More do not change the ranges."""
_MIN_SAMPLES = 32
"""Fewest that calibrate, and fewest that select; if there are too few for both, all of them do both."""

_PART_SAMPLES = 16
"""Fewest neighbours that some are taken from at random."""

_Groups = tuple[SampleGroup, ...]


class SampleSplit(NamedTuple):
    """The samples by what they are for."""

    training: _Groups
    """Empty if there are too few."""
    calibrating: _Groups
    selecting: _Groups

    @property
    def is_shared(self) -> bool:
        """Whether the same samples calibrate and select, because there are too few for both."""
        return self.calibrating is self.selecting


def samples_in(groups: Sequence[SampleGroup]) -> int:
    """Return the number of samples of several groups."""
    return sum(group.samples for group in groups)


def samples_needed_to_train() -> int:
    """Return how many samples a user has to give so that enough of them train."""
    return math.ceil(MIN_TRAINING_SAMPLES / TRAINING_RATIO)


def split_by_use(samples: GivenSamples, *, batch: int, trains: bool, are_sequences: bool) -> SampleSplit:
    """Split samples evenly: they may be sorted by class, or take turns.

    Args:
        samples: All of them.
        batch: The batch size that the graph fixes, or 1.
        trains: Whether samples may train.
        are_sequences: Whether a sample is a sequence of many steps, of which few are enough.
    """
    count, least = samples.samples, 1 if are_sequences else _MIN_SAMPLES
    wanted = int(count * TRAINING_RATIO) // batch * batch
    if trains and wanted >= MIN_TRAINING_SAMPLES:
        training, selecting = _divide(samples.groups, samples.axes, wanted)
        return SampleSplit(training, calibrating_part(training, samples.axes, batch), selecting)
    wanted = min(_MAX_CALIBRATION_SAMPLES, max(least, int(count * _CALIBRATION_RATIO)))
    wanted = -(-wanted // batch) * batch
    if wanted > count - max(least, batch):
        return SampleSplit((), samples.groups, samples.groups)
    return SampleSplit((), *_divide(samples.groups, samples.axes, wanted))


def calibrating_part(training: _Groups, axes: InputAxes, batch: int = 1) -> _Groups:
    """Return the samples among those that train that calibrate int8, taken evenly.

    Args:
        training: The samples that train.
        axes: The batch of each input.
        batch: The batch size that the graph fixes, or 1.
    """
    most = min(samples_in(training), -(-_MAX_CALIBRATION_SAMPLES // batch) * batch)
    return _divide(training, axes, most)[0]


def describe_use(training: int, calibrating: int, selecting: int) -> str:
    """Return how many samples are for what, in words."""
    calibrates = f"{calibrating} {'of them' if training else 'inputs'} calibrate int8"
    return f"{f'{training} inputs train, ' if training else ''}{calibrates}, {selecting} others select"


def _divide(groups: _Groups, axes: InputAxes, wanted: int) -> tuple[_Groups, _Groups]:
    """Return as many samples as wanted, and the others: some at random from each of many equal parts.

    So sorted samples are taken evenly, and of samples whose classes take turns not always the same classes.
    """
    count, rng = samples_in(groups), np.random.default_rng(0)
    chosen = np.zeros(count, dtype=bool)
    parts = max(1, min(wanted, count // _PART_SAMPLES))
    edges = np.arange(parts + 1) * count // parts
    taken = edges * wanted // count  # so no part has to give more than it has
    for start, end, number in zip(edges, edges[1:], np.diff(taken), strict=False):
        chosen[rng.choice(np.arange(start, end), number, replace=False)] = True
    ends = np.cumsum([group.samples for group in groups])[:-1]
    shares = list(zip(groups, np.split(chosen, ends), strict=True))
    return _keep(shares, axes), _keep([(group, ~mine) for group, mine in shares], axes)


def _keep(shares: Sequence[tuple[SampleGroup, NDArray[np.bool_]]], axes: InputAxes) -> _Groups:
    return tuple(group.take(np.flatnonzero(mine), axes) for group, mine in shares if mine.any())
