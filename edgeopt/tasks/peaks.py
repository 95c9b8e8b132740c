"""Boxes from the outputs of an anchor-free detector, without non-maximum suppression (Zhou et al., 2019, CenterNet).

A detector gives two maps for each image, with one place for each square of ``stride`` pixels:

- a heat-map ``(classes, height, width)`` of logits: how likely the centre of an object of a class lies in the place;
- sides ``(4, height, width)``: natural logarithms of the distances from the middle of the place to the left, top, right
  and bottom of that object's box, in strides. Logarithms, because an error counts by its ratio to the box, in int8 too.

An object is a place of the heat-map that is as high as its eight neighbours. Apps decode the same way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LOG_SIDES = (-4.0, 6.0)
"""Logarithms of sides are clipped to this range."""
MIN_SCORE = 0.01
"""Peaks with a lower probability are dropped."""
SHOWN_SCORE = 0.3
"""An app shows no boxes with a lower probability, if the task doesn't say otherwise: the usual value for such maps."""
MAX_PEAKS = 100
"""Of an image, the highest."""

_Floats = NDArray[np.floating]


def decode_peaks(heatmap: _Floats, sides: _Floats, stride: int) -> list[dict[str, NDArray[np.generic]]]:
    """Return the boxes of each image, the highest score first.

    Of equal neighbours, as int8 gives them, the first in reading order counts: a flat peak is one object.

    Args:
        heatmap: Logits ``(batch, classes, height, width)``.
        sides: ``(batch, 4, height, width)``.
        stride: Pixels from one place to the next.

    Returns:
        For each image ``boxes`` (N, 4), left, top, right and bottom in pixels, ``scores`` (N,), probabilities, and
        ``labels`` (N,).
    """
    scores = 1 / (1 + np.exp(-np.clip(heatmap.astype(np.float64), -60, 60)))
    reach = stride * np.exp(np.clip(sides.astype(np.float64), *LOG_SIDES))
    found = []
    for image, is_peak in zip(range(len(scores)), _peaks(heatmap) & (scores >= MIN_SCORE), strict=True):
        labels, rows, columns = np.nonzero(is_peak)
        best = np.argsort(-scores[image, labels, rows, columns], kind="stable")[:MAX_PEAKS]
        labels, rows, columns = labels[best], rows[best], columns[best]
        left, top, right, bottom = reach[image, :, rows, columns].T
        x, y = (columns + 0.5) * stride, (rows + 0.5) * stride
        boxes = np.stack([x - left, y - top, x + right, y + bottom], 1)
        found.append({"boxes": boxes, "scores": scores[image, labels, rows, columns], "labels": labels})
    return found


def _peaks(heatmap: _Floats) -> NDArray[np.bool_]:
    """Tell which values are higher than the neighbours before them, and not lower than those after them."""
    height, width = heatmap.shape[-2:]
    padded = np.pad(heatmap, [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=-np.inf)
    is_peak = np.ones(heatmap.shape, dtype=bool)
    for number in range(9):
        row, column = divmod(number, 3)
        neighbour = padded[..., row : row + height, column : column + width]
        is_peak &= heatmap > neighbour if number < 4 else heatmap >= neighbour
    return is_peak
