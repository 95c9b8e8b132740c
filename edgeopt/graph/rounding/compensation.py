"""Rounds a layer's weights one input at a time, and lets the weights that are still exact make up for each error.

What counts is the error of the layer's output over the calibration samples, ``E[|(Wq - W) x|^2]``, which depends on the
inputs only by their second moments ``H = E[x x^T]``. After an input's weights are rounded, the best correction of the
others is known in closed form: GPTQ (Frantar et al., 2023, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", section 3.3, with its Cholesky form and the order of its option ``act_order``). The grid is
given, so the file keeps its bytes.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Moments = NDArray[np.float64]
"""``(groups, depth, depth)``: sums of products of a layer's inputs, over samples."""
_DAMPING_RATIO = 0.01
"""Of the mean diagonal, added to it: inputs that the samples never excite would have no inverse."""
_PANEL = 128
"""Inputs whose corrections are applied to the rest at once; the result is the same, matrix products are faster."""
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
    best_error, best = None, largest
    for step, kept in itertools.product(steps, _KEPT_RATIOS):
        scale = np.where(largest != 0, step * kept, 1.0).astype(np.float32).astype(np.float64)
        grid = Grid(scale, np.zeros(()), low, high)
        error = (((grid.restore(grid.round(weights)) - weights) ** 2) * power).sum(2, keepdims=True)
        best = scale if best_error is None else np.where(error < best_error, scale, best)
        best_error = error if best_error is None else np.minimum(error, best_error)
    return Grid(best, np.zeros(()), low, high)


def round_with_compensation(weights: _Floats, grid: Grid, moments: Moments) -> _Floats:
    """Return integers on a grid that change the layer's output little. Weights that are zero stay zero.

    Args:
        weights: ``(groups, outputs, depth)``; each group has its own inputs.
        grid: The values that they may take.
        moments: Of the inputs of each group.
    """
    depth = weights.shape[2]
    scale, zero = (np.broadcast_to(part, weights.shape) for part in (grid.scale, grid.zero))
    diagonal = np.diagonal(moments, axis1=1, axis2=2)
    order = np.argsort(-diagonal.mean(0), kind="stable")
    left = weights[:, :, order].astype(np.float64)
    factor = _factorize_inverse(moments[:, order][:, :, order])
    integers = np.empty_like(left)
    for start in range(0, depth, _PANEL):
        end = min(start + _PANEL, depth)
        errors = np.empty((*left.shape[:2], end - start))
        for column in range(start, end):
            one = Grid(scale[:, :, order[column]], zero[:, :, order[column]], grid.low, grid.high)
            is_zero = weights[:, :, order[column]] == 0
            integers[:, :, column] = np.where(is_zero, one.zero, one.round(left[:, :, column]))
            error = left[:, :, column] - one.restore(integers[:, :, column])
            errors[:, :, column - start] = error / factor[:, None, column, column]
            left[:, :, column + 1 : end] -= (
                errors[:, :, column - start, None] * factor[:, None, column, column + 1 : end]
            )
        left[:, :, end:] -= errors @ factor[:, start:end, end:]
    found = np.empty_like(integers)
    found[:, :, order] = integers
    return found


def _factorize_inverse(moments: Moments) -> Moments:
    """Return the upper Cholesky factor of the damped moments' inverse."""
    depth = moments.shape[1]
    mean = np.trace(moments, axis1=1, axis2=2) / depth
    damping = np.where(mean > 0, mean * _DAMPING_RATIO, 1.0)
    inverse = np.linalg.inv(moments + damping[:, None, None] * np.eye(depth))
    lower = np.linalg.cholesky((inverse + inverse.swapaxes(1, 2)) / 2)
    return np.asarray(lower.swapaxes(1, 2), np.float64)


def output_error(weights: _Floats, rounded: _Floats, moments: Moments) -> float:
    """Return the sum of squared errors of a layer's outputs over the samples behind the moments."""
    difference = rounded.astype(np.float64) - weights
    return float(((difference @ moments) * difference).sum())
