"""Bilinear resizing as the samples of the bundle do it, and the three rules by which images become one size.

The filter is a triangle as wide as the pixels that one replaces, so that a smaller image is an average of the larger
one (antialiasing). Pillow's ``BILINEAR`` and PyTorch's ``interpolate(..., mode="bilinear", antialias=True)`` do the
same; results are within one of 255 levels of Pillow's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.records.preprocessing import ImagePreprocessing

_Pixels = NDArray[np.uint8]


def resize_image(pixels: _Pixels, height: int, width: int, *, antialias: bool = True) -> _Pixels:
    """Return an image of shape (height, width, channels) in another size.

    Args:
        pixels: The image.
        height: New one.
        width: New one.
        antialias: False interpolates between the nearest pixels only, as some libraries do.
    """
    rows = _weights(pixels.shape[0], height, antialias=antialias)
    columns = _weights(pixels.shape[1], width, antialias=antialias)
    wide = np.rint(np.einsum("xw,hwc->hxc", columns, pixels.astype(np.float64), optimize=True))
    whole = np.rint(np.einsum("yh,hxc->yxc", rows, wide, optimize=True))
    return np.asarray(whole.clip(0, 255), dtype=np.uint8)


def _weights(before: int, after: int, *, antialias: bool) -> NDArray[np.float64]:
    """Return the weight of each old pixel in each new one, of shape (after, before)."""
    step = before / after
    support = max(1.0, step) if antialias else 1.0
    centers = (np.arange(after) + 0.5) * step
    distances = np.abs(np.arange(before) + 0.5 - centers[:, None]) / support
    weights = np.maximum(0.0, 1.0 - distances)
    return np.asarray(weights / weights.sum(1, keepdims=True))


def fit_image(pixels: _Pixels, how: ImagePreprocessing) -> NDArray[Any]:
    """Return an image in the size of the network's input, by the rule of its preprocessing."""
    if how.height is None or how.width is None or (pixels.shape[:2] == (how.height, how.width) and how.crop_ratio == 1):
        return pixels
    height, width, target_height, target_width = *pixels.shape[:2], how.height, how.width
    if how.resize == "stretch":
        return resize_image(pixels, target_height, target_width)
    if how.resize == "pad":
        ratio = min(target_height / height, target_width / width)
        inner = resize_image(pixels, max(1, round(height * ratio)), max(1, round(width * ratio)))
        whole = np.zeros((target_height, target_width, pixels.shape[2]), np.uint8)
        top, left = (target_height - inner.shape[0]) // 2, (target_width - inner.shape[1]) // 2
        whole[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
        return whole
    if height * target_width >= width * target_height:
        cover_width = round(target_width / how.crop_ratio)
        cover_height = int(cover_width * height / width)
    else:
        cover_height = round(target_height / how.crop_ratio)
        cover_width = int(cover_height * width / height)
    covered = resize_image(pixels, cover_height, cover_width)
    top, left = round((cover_height - target_height) / 2), round((cover_width - target_width) / 2)
    return covered[top : top + target_height, left : left + target_width]
