"""Golden inputs as the files that an app reads, images and sounds, so that its own preprocessing is tested as well.

An input of the network goes in, and how such inputs are made; the image or the sound that gives it comes out.
"""

from __future__ import annotations

import io
import itertools
import math
import struct
import wave
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeopt.bundle.resize import fit_image, resize_image
from edgeopt.errors import DataError
from edgeopt.records.preprocessing import RESIZE_RULES, ImagePreprocessing, Preprocessing, SoundPreprocessing

_Array = NDArray[np.generic]
_Pixels = NDArray[np.uint8]

_LARGEST_BYTE = 255
_ROUNDING = 1.0
"""_Pixels may be this far outside of 0 to 255: a resampling filter may overshoot."""
_PCM_PEAK = 2**15
_STEP_RATIO = 0.25
_OFF_RATIO = 0.1
"""Of a step between two pixels: values closer than that to a pixel's are this pixel's."""
_OFF_SHARE = 0.05
"""Of values that may be between two pixels before the report mentions it."""
_RESIZED_RATIOS = (1.25, 1.75)
"""Height and width of the image that tests resizing, over those of the input: the sides differ, so each rule does."""
_COMPARED_PIXELS = 2**19
"""Of the images among which one is chosen: of large ones, one is enough."""
_KERNEL_MARGIN = 1.5
"""Other libraries may be this many times as far off as bilinear interpolation between four pixels is."""


class RawInput(NamedTuple):
    """An input of the network, and the files that give it."""

    values: _Array
    """Of exactly these files."""
    tolerance: float
    """Of these values: a quarter of a step between two pixels or two samples of a sound."""
    suffix: str
    """``.png`` or ``.wav``."""
    files: tuple[bytes, ...]
    """One for each sample."""
    is_rounded: bool
    """Whether the given values were between those that whole pixels give."""


class ResizedImage(NamedTuple):
    """An image of another size than the input's, and what preprocessing makes of it."""

    file: bytes
    """A PNG."""
    values: _Array
    """One sample."""
    tolerance: float
    """Mean absolute difference that another library's interpolation may make."""


def make_raw(name: str, values: _Array, how: Preprocessing) -> RawInput:
    """Return the files whose preprocessing gives an input, and the input that they give exactly.

    Args:
        name: Of the input, for errors.
        values: A batch of it, of shape (samples, ...).
        how: The preprocessing.

    Raises:
        DataError: no image or sound gives such values, so the preprocessing cannot be that of these inputs.
    """
    if isinstance(how, SoundPreprocessing):
        return _make_sounds(name, values, how)
    pixels = pixels_of(name, values, how)
    plain = msgspec.structs.replace(how, height=None, width=None, resize="stretch", crop_ratio=1.0)
    given = np.concatenate([input_of_pixels(one, plain) for one in pixels])
    off = np.abs(given.astype(np.float64) - values.astype(np.float64)) > _OFF_RATIO / how.scale * max(how.std)
    images = [_surrounded(one, how) for one in pixels]
    inputs = np.concatenate([input_of_pixels(one, how) for one in images]).astype(values.dtype)
    files = tuple(map(encode_png, images))
    return RawInput(inputs, _STEP_RATIO / how.scale / max(how.std), ".png", files, bool(off.mean() > _OFF_SHARE))


def pixels_of(name: str, values: _Array, how: ImagePreprocessing) -> _Pixels:
    """Return the images that give an input, of shape (samples, height, width, channels), in red, green and blue.

    Raises:
        DataError: no image gives such values.
    """
    channel_axis = 1 if how.layout == "nchw" else 3
    if (values.dtype == np.uint8) != (how.dtype == "uint8") or values.dtype.kind not in "fu":
        raise DataError(f"'{name}' is {values.dtype}, but its preprocessing says: {how.text}.")
    if values.ndim != 4 or values.shape[channel_axis] != how.channels:
        raise DataError(f"'{name}' has the shape {values.shape}, but its preprocessing says: {how.text}.")
    last = np.moveaxis(values, channel_axis, 3).astype(np.float64)
    if how.height is not None and last.shape[1:3] != (how.height, how.width):
        raise DataError(
            f"'{name}' has images of {last.shape[1]}x{last.shape[2]}, but its preprocessing says: {how.text}."
        )
    levels = (last * how.std + how.mean) * how.scale
    lowest, highest = float(levels.min(initial=0)), float(levels.max(initial=0))
    if not (lowest >= -_ROUNDING and highest <= _LARGEST_BYTE + _ROUNDING):
        raise DataError(
            f"'{name}' has values of {float(last.min()):.3g} to {float(last.max()):.3g}, which would be pixels of "
            f"{lowest:.4g} to {highest:.4g} by its preprocessing ({how.text}), not of 0 to 255."
        )
    pixels = np.rint(levels).clip(0, _LARGEST_BYTE).astype(np.uint8)
    return pixels[..., ::-1] if how.color == "bgr" else pixels


def _surrounded(pixels: _Pixels, how: ImagePreprocessing) -> _Pixels:
    """Return an image with a margin that preprocessing cuts off again, if it keeps only the middle of images."""
    if how.height is None or how.width is None or how.resize != "crop" or how.crop_ratio == 1:
        return pixels
    width = round(how.width / how.crop_ratio)
    height = math.ceil(width * how.height / how.width)
    top, left = round((height - how.height) / 2), round((width - how.width) / 2)
    margins = ((top, height - how.height - top), (left, width - how.width - left), (0, 0))
    return np.pad(pixels, margins, mode="edge")


def input_of_pixels(pixels: _Pixels, how: ImagePreprocessing) -> NDArray[Any]:
    """Return one image, in red, green and blue or grey and of any size, as a batch of one sample."""
    fitted = fit_image(pixels, how)
    ordered = fitted[..., ::-1] if how.color == "bgr" else fitted
    if how.dtype == "uint8":
        values: NDArray[Any] = ordered
    else:
        scaled = ordered.astype(np.float32) / np.float32(how.scale)
        values = (scaled - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
    return np.ascontiguousarray(np.moveaxis(values, 2, 0) if how.layout == "nchw" else values)[None]


def make_resized(images: Iterable[_Pixels], how: ImagePreprocessing) -> ResizedImage | None:
    """Return a larger version of an image, and the input that it gives; None if images keep their own size.

    Of several images it is the one that tells the rules of resizing best apart.
    """
    if how.height is None or how.width is None:
        return None
    images = list(itertools.islice(images, max(1, _COMPARED_PIXELS // (how.height * how.width))))
    tall, wide = _RESIZED_RATIOS
    larger = [resize_image(pixels, int(how.height * tall) + 1, int(how.width * wide) + 1) for pixels in images]
    found = [(pixels, input_of_pixels(pixels, how)) for pixels in larger]
    distances = [_distance_to_other_rules(pixels, values, how) for pixels, values in found]
    best = int(np.argmax(distances))
    pixels, values = found[best]
    between_pixels = resize_image(pixels, how.height, how.width, antialias=False).astype(np.float64)
    stretched = resize_image(pixels, how.height, how.width)
    kernel = float(np.abs(between_pixels - stretched).mean() + 0.5) / how.scale / min(how.std)
    tolerance = _KERNEL_MARGIN * kernel
    if distances[best]:
        tolerance = min(tolerance, distances[best] / 2)
    return ResizedImage(encode_png(pixels), values, tolerance)


def _distance_to_other_rules(pixels: _Pixels, values: NDArray[Any], how: ImagePreprocessing) -> float:
    """Return how far, on average, the input is from that of an app which resizes by the nearest other rule."""
    plain = [msgspec.structs.replace(how, resize=rule, crop_ratio=1.0) for rule in RESIZE_RULES]
    others = [other for other in plain if other != how]
    mine = values.astype(np.float64)
    return min(float(np.abs(input_of_pixels(pixels, other) - mine).mean()) for other in others)


def _make_sounds(name: str, values: _Array, how: SoundPreprocessing) -> RawInput:
    if values.ndim < 2 or values.size != values.shape[0] * values.shape[-1]:
        raise DataError(f"'{name}' has the shape {values.shape}, but its preprocessing says: {how.text}.")
    if how.samples is not None and values.shape[-1] != how.samples:
        raise DataError(f"'{name}' has {values.shape[-1]:,} samples, but its preprocessing says: {how.text}.")
    levels = values.reshape(len(values), -1).astype(np.float64) / how.peak * _PCM_PEAK
    largest = float(np.abs(levels).max(initial=0)) / _PCM_PEAK * how.peak
    if not largest <= how.peak * (1 + 1 / _PCM_PEAK):
        raise DataError(f"'{name}' has values up to {largest:.4g}, but its preprocessing says: {how.text}.")
    samples = np.rint(levels).clip(-_PCM_PEAK, _PCM_PEAK - 1).astype("<i2")
    inputs = (samples.astype(np.float64) / _PCM_PEAK * how.peak).astype(values.dtype).reshape(values.shape)
    files = tuple(encode_wav(one, how.sample_rate) for one in samples)
    is_rounded = bool((np.abs(samples - levels) > _OFF_RATIO).mean() > _OFF_SHARE)
    return RawInput(inputs, _STEP_RATIO * how.peak / _PCM_PEAK, ".wav", files, is_rounded)


def encode_wav(samples: NDArray[np.int16], rate: int) -> bytes:
    """Return a ``.wav`` of one channel and 16 bits."""
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return target.getvalue()


def encode_png(pixels: _Pixels) -> bytes:
    """Return a PNG of 8 bits a channel, grey or in red, green and blue, of pixels (height, width, channels)."""
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row begins with its filter: none
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
