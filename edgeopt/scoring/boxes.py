"""Detected boxes as sets: those that a file and the baseline both find, with the same class and at the same place.

An output of boxes has one axis with four numbers in pixels and then the scores of classes in 0..1 (as detectors give
them before non-maximum suppression), or one score and the number of a class (after it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.records.scoring import OutputScore

_SCORE_LIMIT = 0.25
"""Boxes with a lower score are not detected; the usual limit of detectors."""
_SAME_PLACE_IOU = 0.5
_MIN_BOXES = 8
"""An output with fewer rows is a table."""
_MIN_PIXELS = 4.0
"""Boxes reach further than this; probabilities do not."""

_Floats = NDArray[np.float64]


class _Boxes(NamedTuple):
    corners: _Floats
    """Left, top, right, bottom; shape (boxes, 4)."""
    classes: NDArray[np.int64]


class BoxForm(NamedTuple):
    """How an output writes boxes."""

    axis: int
    """Along which a box and its scores are; counted with the batch."""
    has_corners: bool
    """Whether a box is left, top, right and bottom instead of centre, width and height."""


def find_box_form(batches: Sequence[NDArray[Any]]) -> BoxForm | None:
    """Return how an output writes boxes; None if it does not look like any.

    Args:
        batches: The output over the data, the samples on axis 0.
    """
    if any(batch.ndim != 3 or batch.dtype.kind != "f" for batch in batches):
        return None
    for axis in (1, 2):
        rows = [np.moveaxis(batch, axis, -1) for batch in batches]
        if all(map(_look_like_boxes, rows)):
            return BoxForm(axis, all(bool((batch[..., 2:4] >= batch[..., :2]).all()) for batch in rows))
    return None


def _look_like_boxes(rows: NDArray[Any]) -> bool:
    if rows.shape[-1] < 5 or rows.shape[1] < _MIN_BOXES or not np.isfinite(rows).all():
        return False
    pixels, rest = rows[..., :4], rows[..., 4:]
    if float(pixels.max(initial=0)) < _MIN_PIXELS or float(pixels[..., :2].max()) < _MIN_PIXELS:
        return False
    scores = rest[..., :1] if _has_class_numbers(rows) else rest
    return bool(scores.min() >= -1e-3 and scores.max() <= 1 + 1e-3)


def _has_class_numbers(rows: NDArray[Any]) -> bool:
    """Tell whether a row is a box, its score and the number of its class."""
    last = rows[..., 5] if rows.shape[-1] == 6 else np.zeros(0)
    return bool(last.size and (last == np.rint(last)).all())


def shared_boxes(part: OutputScore, output: NDArray[Any], labels: NDArray[Any]) -> _Floats:
    """Return for each sample twice the number of boxes that both detect, over the number of all; 1 without any."""
    found, truth = (np.moveaxis(array, part.class_axis, -1).astype(np.float64) for array in (output, labels))
    is_final = _has_class_numbers(truth)
    shares = []
    for mine, theirs in zip(found, truth, strict=True):
        shares.append(_share(*(_detect(rows, is_final, part.has_corners) for rows in (mine, theirs))))
    return np.array(shares, dtype=np.float64)


def count_boxes(part: OutputScore, batches: Sequence[NDArray[Any]]) -> int:
    """Return how many boxes an output detects over the data."""
    count = 0
    for batch in batches:
        rows = np.moveaxis(batch, part.class_axis, -1).astype(np.float64)
        is_final = _has_class_numbers(rows)
        count += sum(len(_detect(sample, is_final, part.has_corners).classes) for sample in rows)
    return count


def _detect(rows: _Floats, is_final: bool, has_corners: bool) -> _Boxes:
    """Return the boxes of one sample whose score is high enough and that no better one of their class overlaps."""
    rows = rows[np.isfinite(rows).all(1)]
    scores = rows[:, 4] if is_final else rows[:, 4:].max(1)
    kept = np.flatnonzero(scores > _SCORE_LIMIT)
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    classes = (rows[kept, 5] if is_final else rows[kept, 4:].argmax(1)).astype(np.int64)
    first, second = rows[kept, :2], rows[kept, 2:4]
    corners = np.concatenate([first, second] if has_corners else [first - second / 2, first + second / 2], axis=1)
    chosen: list[int] = []
    for index in range(len(kept)):
        same = [one for one in chosen if classes[one] == classes[index]]
        if not same or _overlaps(corners[index], corners[same]).max() < _SAME_PLACE_IOU:
            chosen.append(index)
    return _Boxes(corners[chosen], classes[chosen])


def _overlaps(box: _Floats, others: _Floats) -> _Floats:
    """Return the intersection over union of a box with each of the others."""
    size = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    both = size.clip(0, None).prod(1)
    areas = (others[:, 2:] - others[:, :2]).clip(0, None).prod(1) + (box[2:] - box[:2]).clip(0, None).prod()
    return np.asarray(both / np.maximum(areas - both, 1e-12), dtype=np.float64)


def _share(mine: _Boxes, theirs: _Boxes) -> float:
    if not len(mine.classes) + len(theirs.classes):
        return 1.0
    free, both = set(range(len(theirs.classes))), 0
    for corners, kind in zip(mine.corners, mine.classes, strict=True):
        fitting = [index for index in free if theirs.classes[index] == kind]
        if fitting:
            overlaps = _overlaps(corners, theirs.corners[fitting])
            if overlaps.max() >= _SAME_PLACE_IOU:
                free.discard(fitting[int(overlaps.argmax())])
                both += 1
    return 2 * both / (len(mine.classes) + len(theirs.classes))
