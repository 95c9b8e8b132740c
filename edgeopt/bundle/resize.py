"""Bilinear resizing as the samples of the bundle do it, and the three rules by which images become one size.

The filter is a triangle as wide as the pixels that one replaces, so that a smaller image is an average of the larger
one (antialiasing). Pillow's ``BILINEAR`` and PyTorch's ``interpolate(..., mode="bilinear", antialias=True)`` do the
same; results are within one of 255 levels of Pillow's.
"""

from __future__ import annotations

import math
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
    wide = _resize_columns(pixels, width, antialias=antialias)
    turned = _resize_columns(wide.swapaxes(0, 1), height, antialias=antialias)
    return np.ascontiguousarray(turned.swapaxes(0, 1))


def _resize_columns(pixels: _Pixels, width: int, *, antialias: bool) -> _Pixels:
    """Return an image of shape (height, width, channels) with another width, rounded to whole levels."""
    before = pixels.shape[1]
    step = before / width
    support = max(1.0, step) if antialias else 1.0
    centers = (np.arange(width) + 0.5) * step
    first = np.floor(centers - support).astype(np.int64)
    taps = first[:, None] + np.arange(math.ceil(2 * support) + 1)
    weights = np.maximum(0.0, 1.0 - np.abs(taps + 0.5 - centers[:, None]) / support)
    weights[(taps < 0) | (taps >= before)] = 0.0
    weights /= weights.sum(1, keepdims=True)
    total = np.zeros((pixels.shape[0], width, pixels.shape[2]))
    for tap, weight in zip(taps.clip(0, before - 1).T, weights.T, strict=True):
        total += weight[:, None] * pixels[:, tap]
    return np.rint(total).clip(0, 255).astype(np.uint8)


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
