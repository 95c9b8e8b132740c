"""The latency of a whole network at any widths, from a ``LatencyTable``.

A layer's kernel works on blocks of channels, and takes another way where its output has less than one: int8
convolutions to 8 channels were slower than the same to 24. So the time of a layer with ``x`` input and ``y`` output
channels is fitted as a sum, with no negative part but the constant one, of

    1,  x,  y,  X,  Y,  S,  X Y,  X S        X, Y = x, y in whole blocks,  S = (y is less than a block)

The blocks are the device's own: those that predict left-out times best, one pair for all layers of an operator. The
whole is the sum of its layers, scaled and shifted as the measured wholes say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from edgeopt.records.latency import LatencyTable, Layer

_Floats = NDArray[np.float64]

INPUT_STEPS = (1, 4, 8, 16, 32)
OUTPUT_STEPS = (1, 4, 8, 16, 32)
BETTER_STEP_RATIO = 0.97
"""A coarser step is taken where it leaves less than this share of the finer one's error: noise must not invent one."""
FLOOR_NS = 1000.0
"""Added to every time before the fit: errors below it count absolutely, above it relatively. Times of nodes that do
next to nothing may come out below zero when the profiler's own time is taken off."""
MIN_WHOLE_TIMES = 4


class Steps(NamedTuple):
    """Widths at which an operator's kernels become slower."""

    input: int
    output: int


def features(sizes: Sequence[int], steps: Steps) -> list[float]:
    """Return what a layer's time is a sum of, at the sizes of its dimensions: of its input first, of its output last.

    A layer with one dimension has it on both sides. One with more than two (a concatenation) is linear in each.
    """
    if not sizes:
        return [1.0]
    if len(sizes) > 2:
        return [1.0, *map(float, sizes)]
    x, y = sizes[0], sizes[-1]
    wide, high, low = -(-x // steps.input), -(-y // steps.output), int(y < steps.output)
    return [float(part) for part in (1, x, y, wide, high, low, wide * high, wide * low)]


def fit_layer(rows: _Floats, times: _Floats) -> _Floats:
    """Return coefficients that give the times with the least relative error; only the first may be negative."""
    shifted = np.maximum(times + FLOOR_NS, FLOOR_NS / 2)
    scale = np.maximum(np.abs(rows).max(axis=0), 1e-12)
    found: _Floats = nnls(rows / scale / shifted[:, None], np.ones(len(times)))[0] / scale
    found[0] -= FLOOR_NS
    return found


def left_out_errors(rows: _Floats, times: _Floats) -> _Floats:
    """Return for each time the error, in its own share, of the fit to all the others."""
    errors = np.empty(len(times))
    for index in range(len(times)):
        others = np.arange(len(times)) != index
        guess = rows[index] @ fit_layer(rows[others], times[others])
        errors[index] = (guess - times[index]) / (max(times[index], 0.0) + FLOOR_NS)
    return errors


@dataclass(frozen=True)
class Predictor:
    """Predicts latencies of one network on one device."""

    table: LatencyTable

    @cached_property
    def steps(self) -> dict[str, Steps]:
        """The device's steps for each kind of operator."""
        kinds: dict[str, list[Layer]] = {}
        for layer in self.table.layers:
            kinds.setdefault(_kind(layer), []).append(layer)
        return {kind: _best_steps(layers) for kind, layers in kinds.items()}

    @cached_property
    def _coefficients(self) -> list[_Floats]:
        return [fit_layer(_rows(layer, self.steps[_kind(layer)]), _times(layer)) for layer in self.table.layers]

    @cached_property
    def _whole(self) -> tuple[float, float]:
        """Factor and constant between the sum of the layers and the whole."""
        wholes = np.array([one.ns for one in self.table.wholes])
        sums = np.array([self._sum(one.widths) for one in self.table.wholes])
        if len(wholes) < MIN_WHOLE_TIMES or np.ptp(sums) < 1e-9:
            return float(wholes[0] / sums[0]), 0.0
        rows = np.stack([sums, np.ones(len(sums))], axis=1) / wholes[:, None]
        factor, constant = np.linalg.lstsq(rows, np.ones(len(wholes)), rcond=None)[0]
        return (float(factor), float(constant)) if factor > 0 else (float(np.median(wholes / sums)), 0.0)

    def layer_ns(self, index: int, sizes: Sequence[int]) -> float:
        """Return a layer's share of the whole's time, at the sizes of its dimensions."""
        row = features(sizes, self.steps[_kind(self.table.layers[index])])
        return self._whole[0] * float(np.dot(row, self._coefficients[index]))

    def slopes_ns(self, index: int) -> list[float]:
        """Return by how much a layer of more than two dimensions slows down for each channel more of each."""
        return [self._whole[0] * float(slope) for slope in self._coefficients[index][1:]]

    def _sum(self, widths: Mapping[str, int]) -> float:
        total = 0.0
        for layer, coefficients in zip(self.table.layers, self._coefficients, strict=True):
            sizes = [dimension.size(widths) for dimension in layer.dimensions]
            total += float(np.dot(features(sizes, self.steps[_kind(layer)]), coefficients))
        return total

    def ns(self, widths: Mapping[str, int]) -> float:
        """Return the predicted time of one run on one batch, at the widths of all groups."""
        factor, constant = self._whole
        return factor * self._sum(widths) + constant

    def ratio(self, widths: Mapping[str, int]) -> float:
        """Return the predicted time over the original's, which was measured; it is fitted less well than the rest."""
        return self.ns(widths) / self.original_ns

    @property
    def original_ns(self) -> float:
        """The original's measured time."""
        return self.table.wholes[0].ns

    @property
    def constant_ns(self) -> float:
        """What the whole takes beside its layers."""
        return self._whole[1]


def _kind(layer: Layer) -> str:
    """Return which layers have their steps in common."""
    return f"{layer.operator}/{len(layer.dimensions)}"


def _rows(layer: Layer, steps: Steps) -> _Floats:
    return np.array([features(time.sizes, steps) for time in layer.times])


def _times(layer: Layer) -> _Floats:
    return np.array([time.ns for time in layer.times])


def _best_steps(layers: Sequence[Layer]) -> Steps:
    best, least = Steps(1, 1), np.inf
    for output, wide in product(OUTPUT_STEPS, INPUT_STEPS):
        steps = Steps(wide, output)
        error = sum(float(np.abs(left_out_errors(_rows(layer, steps), _times(layer))).sum()) for layer in layers)
        if error < BETTER_STEP_RATIO * least:
            best, least = steps, error
        if len(layers[0].dimensions) not in (1, 2):
            break
    return best
