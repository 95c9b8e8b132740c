"""Boxes of objects from a map of classes: each connected region of a class is an object."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

_NEIGHBOURS = np.ones((3, 3), dtype=bool)
"""Pixels that touch at a corner are connected."""


def find_boxes(labels: NDArray[np.integer], classes: Sequence[int], min_area: int) -> dict[str, Tensor]:
    """Return the boxes of the regions of some classes.

    Args:
        labels: Class of each pixel, ``(height, width)``.
        classes: Those with objects; the first one gets the label 0, and so on.
        min_area: Pixels of an object. A smaller region is a crowd: it need not be found, and finding it is not wrong.

    Returns:
        ``boxes`` (N, 4), left, top, right and bottom in pixels, float32; ``labels`` (N,), int64; ``iscrowd`` (N,).
    """
    boxes, kinds, crowds = [], [], []
    for kind, number in enumerate(classes):
        regions, _ = ndimage.label(labels == number, _NEIGHBOURS)
        areas = np.bincount(regions.reshape(-1))[1:]
        for (rows, columns), area in zip(ndimage.find_objects(regions), areas, strict=True):
            boxes.append((columns.start, rows.start, columns.stop, rows.stop))
            kinds.append(kind)
            crowds.append(area < min_area)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(kinds, dtype=torch.int64),
        "iscrowd": torch.tensor(crowds, dtype=torch.bool),
    }
