"""Rounds a layer's weights one input at a time, and lets the weights that are still exact make up for each error.

What counts is the error of the layer's output over the calibration samples, ``E[|(Wq - W) x|^2]``, which depends on the
inputs only by their second moments ``H = E[x x^T]``. After an input's weights are rounded, the best correction of the
others is known in closed form: GPTQ (Frantar et al., 2023, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", section 3.3, with its Cholesky form and the order of its option ``act_order``). The grid is
given, so the file keeps its bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Moments = NDArray[np.float64]
"""``(groups, depth, depth)``: sums of products of a layer's inputs, over samples."""
_DAMPING_RATIO = 0.01
"""Of the mean diagonal, added to it: inputs that the samples never excite would have no inverse."""
_PANEL = 128
"""Inputs whose corrections are applied to the rest at once; the result is the same, matrix products are faster."""
_SMALL = 32
"""Matrices up to this size are inverted by NumPy."""
_CACHED_VALUES = 1 << 14
"""Of float64, with as many temporary ones."""
_KEPT_RATIOS = np.linspace(1.0, 0.5, 11)
"""Parts of a row's range to try."""
_Floats = NDArray[Any]


class Grid(NamedTuple):
    """The values that weights may take: ``(integer - zero) * scale``. Arrays broadcast to the weights' shape."""

    scale: _Floats
    zero: _Floats
    low: int
    high: int

    def round(self, weights: _Floats) -> _Floats:
        """Return the nearest integers."""
        return np.asarray(np.clip(np.rint(weights / self.scale) + self.zero, self.low, self.high))

    def restore(self, integers: _Floats) -> _Floats:
        """Return the weights that integers stand for."""
        return np.asarray((integers - self.zero) * self.scale)


def find_grid(weights: _Floats, moments: Moments | None, bits: int, *, any_sign: bool = False) -> Grid:
    """Return a grid of few bits whose scale for each row has the smallest error, inputs taken as independent.

    Args:
        weights: ``(groups, outputs, depth)``.
        moments: Of the inputs of each group; None: all inputs are taken to be alike.
        bits: Of each weight.
        any_sign: Whether scales may be negative, so that a row's largest weight may take the one integer more that
            there is below zero.
    """
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    largest = np.take_along_axis(weights, np.abs(weights).argmax(2)[..., None], 2)
    steps = [np.abs(largest) / high]
    if any_sign:
        steps += [largest / low, -largest / low]
    power = np.ones(()) if moments is None else np.diagonal(moments, axis1=1, axis2=2)[:, None, :]
    best = np.empty_like(largest, np.float64)
    for rows in _slices(weights):
        own, best_error = weights[:, rows].astype(np.float64), None
        for step, kept in itertools.product(steps, _KEPT_RATIOS):
            scale = np.where(largest[:, rows] != 0, step[:, rows] * kept, 1.0).astype(np.float32).astype(np.float64)
            grid = Grid(scale, np.zeros(()), low, high)
            error = (((grid.restore(grid.round(own)) - own) ** 2) * power).sum(2, keepdims=True)
            is_better = best_error is None or error < best_error
            best[:, rows] = np.where(is_better, scale, best[:, rows])
            best_error = error if best_error is None else np.minimum(error, best_error)
    return Grid(best, np.zeros(()), low, high)


def _slices(weights: _Floats) -> Iterator[slice]:
    """Yield slices of the outputs whose weights fit into a processor's cache."""
    count = max(1, _CACHED_VALUES // (weights.shape[0] * weights.shape[2]))
    for start in range(0, weights.shape[1], count):
        yield slice(start, start + count)


def round_with_compensation(weights: _Floats, grid: Grid, moments: Moments) -> _Floats:
    """Return integers on a grid that change the layer's output little. Weights that are zero stay zero.

    Args:
        weights: ``(groups, outputs, depth)``; each group has its own inputs.
        grid: The values that they may take.
        moments: Of the inputs of each group.
    """
    depth = weights.shape[2]
    by_input = weights.swapaxes(1, 2)  # below, arrays are (groups, depth, outputs): an input's weights are adjacent
    scale, zero = (np.broadcast_to(part, weights.shape).swapaxes(1, 2) for part in (grid.scale, grid.zero))
    diagonal = np.diagonal(moments, axis1=1, axis2=2)
    order = np.argsort(-diagonal.mean(0), kind="stable")
    left = by_input[:, order].astype(np.float64)
    factor = _factorize_inverse(moments[:, order][:, :, order])
    integers = np.empty_like(left)
    for start in range(0, depth, _PANEL):
        end = min(start + _PANEL, depth)
        errors = np.empty((len(left), end - start, left.shape[2]))
        for index in range(start, end):
            one = Grid(scale[:, order[index]], zero[:, order[index]], grid.low, grid.high)
            is_zero = by_input[:, order[index]] == 0
            integers[:, index] = np.where(is_zero, one.zero, one.round(left[:, index]))
            error = (left[:, index] - one.restore(integers[:, index])) / factor[:, index, index, None]
            errors[:, index - start] = error
            left[:, index + 1 : end] -= factor[:, index, index + 1 : end, None] * error[:, None]
        left[:, end:] -= factor[:, start:end, end:].swapaxes(1, 2) @ errors
    found = np.empty_like(integers)
    found[:, order] = integers
    return found.swapaxes(1, 2)


def _factorize_inverse(moments: Moments) -> Moments:
    """Return the upper Cholesky factor of the damped moments' inverse.

    It is the inverse of the upper triangular ``U`` with ``U U^T = moments``, which is the Cholesky factor of the
    moments in reverse order.
    """
    depth = moments.shape[1]
    mean = np.trace(moments, axis1=1, axis2=2) / depth
    damping = np.where(mean > 0, mean * _DAMPING_RATIO, 1.0)
    damped = moments + damping[:, None, None] * np.eye(depth)
    return _invert_upper(np.linalg.cholesky(damped[:, ::-1, ::-1])[:, ::-1, ::-1])


def _invert_upper(matrices: _Floats) -> Moments:
    """Return the inverses of upper triangular matrices, by halves."""
    size = matrices.shape[1]
    if size <= _SMALL:
        return np.asarray(np.triu(np.linalg.inv(matrices)))
    half = size // 2
    first, last = _invert_upper(matrices[:, :half, :half]), _invert_upper(matrices[:, half:, half:])
    found = np.zeros_like(matrices)
    found[:, :half, :half], found[:, half:, half:] = first, last
    found[:, :half, half:] = -first @ matrices[:, :half, half:] @ last
    return found
