"""The latency of a whole network at any widths: a ``LatencyTable`` in, predicted nanoseconds out.

A layer's kernel works on blocks of channels and uses slower code if its output has less than one block: int8
convolutions to 8 channels were slower than the same to 24. So the time of a layer with ``x`` input and ``y`` output
channels is fitted as a sum of these terms, with non-negative coefficients except the constant's:

    1,  x,  y,  X,  Y,  S,  X Y,  X S        X, Y = x, y in whole blocks,  S = (y is less than a block)

Block sizes are properties of the device: the sizes that predict left-out times best, one pair for all layers of an
operator. The time of a network is the sum of its layers, scaled and shifted to fit the whole networks that were timed.
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

INPUT_BLOCK_SIZES = (1, 4, 8, 16, 32)
OUTPUT_BLOCK_SIZES = (1, 4, 8, 16, 32)
MAX_COARSER_ERROR_RATIO = 0.97
"""A larger block is chosen if its error is below this ratio of the smaller one's, so that noise doesn't suggest one."""
FLOOR_NS = 1000.0
"""Added to every time before the fit: below it errors count absolutely, above it relatively. Times of nodes that do
next to nothing may become negative when the profiler's overhead is subtracted."""
MIN_NETWORK_TIMES = 4


class BlockSizes(NamedTuple):
    """Channels per block of an operator's kernels: at multiples of these widths they become slower."""

    input: int
    output: int


def expand_terms(sizes: Sequence[int], blocks: BlockSizes) -> list[float]:
    """Return the terms of a layer's time at the sizes of its dimensions, the input's first and the output's last.

    A single dimension counts for both sides. With more than two (a concatenation), the time is linear in each.
    """
    if not sizes:
        return [1.0]
    if len(sizes) > 2:
        return [1.0, *map(float, sizes)]
    x, y = sizes[0], sizes[-1]
    x_blocks, y_blocks, is_small = -(-x // blocks.input), -(-y // blocks.output), int(y < blocks.output)
    return [float(term) for term in (1, x, y, x_blocks, y_blocks, is_small, x_blocks * y_blocks, x_blocks * is_small)]


def fit_layer(rows: _Floats, times: _Floats) -> _Floats:
    """Return the coefficients with the least relative error of the times; only the first may be negative."""
    shifted = np.maximum(times + FLOOR_NS, FLOOR_NS / 2)
    scale = np.maximum(np.abs(rows).max(axis=0), 1e-12)
    coefficients: _Floats = nnls(rows / scale / shifted[:, None], np.ones(len(times)))[0] / scale
    coefficients[0] -= FLOOR_NS
    return coefficients


def leave_one_out_errors(rows: _Floats, times: _Floats) -> _Floats:
    """Return for each time the relative error of a fit to all other times."""
    errors = np.empty(len(times))
    for index in range(len(times)):
        others = np.arange(len(times)) != index
        predicted = rows[index] @ fit_layer(rows[others], times[others])
        errors[index] = (predicted - times[index]) / (max(times[index], 0.0) + FLOOR_NS)
    return errors


@dataclass(frozen=True)
class Predictor:
    """Predicts latencies of one network on one device."""

    table: LatencyTable

    @cached_property
    def block_sizes(self) -> dict[str, BlockSizes]:
        """The device's block sizes for each kind of operator."""
        kinds: dict[str, list[Layer]] = {}
        for layer in self.table.layers:
            kinds.setdefault(_kind(layer), []).append(layer)
        return {kind: _best_block_sizes(layers) for kind, layers in kinds.items()}

    @cached_property
    def _coefficients(self) -> list[_Floats]:
        return [fit_layer(_rows(layer, self.block_sizes[_kind(layer)]), _times(layer)) for layer in self.table.layers]

    @cached_property
    def _scale(self) -> tuple[float, float]:
        """Factor and constant from the sum of the layers' times to the time of the network."""
        networks = np.array([network.ns for network in self.table.wholes])
        sums = np.array([self._sum(network.widths) for network in self.table.wholes])
        if len(networks) < MIN_NETWORK_TIMES or np.ptp(sums) < 1e-9:
            return float(networks[0] / sums[0]), 0.0
        rows = np.stack([sums, np.ones(len(sums))], axis=1) / networks[:, None]
        factor, constant = np.linalg.lstsq(rows, np.ones(len(networks)), rcond=None)[0]
        return (float(factor), float(constant)) if factor > 0 else (float(np.median(networks / sums)), 0.0)

    def layer_ns(self, index: int, sizes: Sequence[int]) -> float:
        """Return a layer's part of the network's time, at the sizes of its dimensions."""
        row = expand_terms(sizes, self.block_sizes[_kind(self.table.layers[index])])
        return self._scale[0] * float(np.dot(row, self._coefficients[index]))

    def slopes_ns(self, index: int) -> list[float]:
        """Return by how much one more channel of each dimension slows down a layer of more than two dimensions."""
        return [self._scale[0] * float(slope) for slope in self._coefficients[index][1:]]

    def _sum(self, widths: Mapping[str, int]) -> float:
        total = 0.0
        for layer, coefficients in zip(self.table.layers, self._coefficients, strict=True):
            if is_gone(layer, widths):
                continue
            sizes = [dimension.size(widths) for dimension in layer.dimensions]
            total += float(np.dot(expand_terms(sizes, self.block_sizes[_kind(layer)]), coefficients))
        return total

    def ns(self, widths: Mapping[str, int]) -> float:
        """Return the predicted time of one run on one batch, at the widths of all groups."""
        factor, constant = self._scale
        return factor * self._sum(widths) + constant

    def ratio(self, widths: Mapping[str, int]) -> float:
        """Return the predicted time over the original's measured time."""
        return self.ns(widths) / self.original_ns

    @property
    def original_ns(self) -> float:
        """The original's measured time."""
        return self.table.wholes[0].ns

    @property
    def constant_ns(self) -> float:
        """The part of the network's time that is in no layer."""
        return self._scale[1]


def is_gone(layer: Layer, widths: Mapping[str, int]) -> bool:
    """Tell whether a layer is in a branch that is left out: it has channels of a group without any."""
    return any(widths[name] == 0 for dimension in layer.dimensions for name in dimension.per_channel)


def _kind(layer: Layer) -> str:
    """Return a key that is equal for layers that share block sizes."""
    return f"{layer.operator}/{len(layer.dimensions)}"


def _rows(layer: Layer, blocks: BlockSizes) -> _Floats:
    return np.array([expand_terms(time.sizes, blocks) for time in layer.times])


def _times(layer: Layer) -> _Floats:
    return np.array([time.ns for time in layer.times])


def _best_block_sizes(layers: Sequence[Layer]) -> BlockSizes:
    best, min_error = BlockSizes(1, 1), np.inf
    for output_size, input_size in product(OUTPUT_BLOCK_SIZES, INPUT_BLOCK_SIZES):
        blocks = BlockSizes(input_size, output_size)
        error = sum(float(np.abs(leave_one_out_errors(_rows(layer, blocks), _times(layer))).sum()) for layer in layers)
        if error < MAX_COARSER_ERROR_RATIO * min_error:
            best, min_error = blocks, error
        if len(layers[0].dimensions) not in (1, 2):
            break
    return best
