"""One image file as pixels: decoded to 8 bits, upright, in colours or grey, fitted to a size, and scaled for a network.

Pillow reads them; it is imported only here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError, InputError
from edgeopt.records.preprocessing import ResizeRule

IMAGE_ENDINGS = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"))
"""Of files that are taken for images, in lower case."""
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_UNKNOWN_RANGE_MODES = ("I", "F")
_BITS_RATIO = 257
"""65,535 over 255."""

Pixels = NDArray[np.uint8]


class ImageFit(NamedTuple):
    """How images of any size become images of one size."""

    height: int
    width: int
    rule: ResizeRule = "stretch"
    kept_ratio: float = 1.0
    """With ``crop``, the part of the shorter side that is kept: 224 of 256 are 0.875."""


class PixelScaling(NamedTuple):
    """How bytes become the numbers that a network takes."""

    scale: float
    """What pixels of 0 to 255 are divided by first."""
    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    def apply(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Return scaled pixels; the channels are on the last axis."""
        return np.asarray(((pixels.astype(np.float32) / np.float32(self.scale)) - self.mean) / self.std)


def make_scaling(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int, *, prefix: str = ""
) -> PixelScaling:
    """Return the scaling that a user asks for.

    Args:
        mean: Subtracted from pixels of 0 to 1, or of 0 to 255 if one of the numbers of both is above 1.
        std: What pixels are divided by after that.
        channels: Of the images; there is one number, or one for each.
        prefix: Of the options' names in errors.

    Raises:
        InputError: there is another number of them, or pixels would be divided by zero.
    """
    mean, std = tuple(mean or (0.0,)), tuple(std or (1.0,))
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise InputError(
                f"{prefix}{name} has {len(values)} numbers; give one, or {channels}, one for each channel."
            )
    if 0 in std:
        raise InputError(f"{prefix}std has a zero, which pixels cannot be divided by.")
    scale = 1.0 if max(map(abs, (*mean, *std))) > 1 else 255.0
    return PixelScaling(scale, np.array(mean, np.float32), np.array(std, np.float32))


def check_pillow(path: Path) -> None:
    """Check that images can be read.

    Raises:
        InputError: Pillow is missing.
    """
    try:
        import PIL.Image  # type: ignore[import-not-found, unused-ignore] # noqa: F401
    except ImportError as error:
        raise InputError(f"reading images such as {path} takes Pillow: pip install pillow.") from error


def read_image(path: Path, channels: int, fit: ImageFit | None = None) -> Pixels:
    """Return the pixels of a file, upright as its EXIF data say, of shape (height, width, channels).

    16 bits become 8 (divided by 257); palettes, CMYK and other modes become colours or grey; a second image of a file
    and transparency do not count.

    Args:
        path: The file.
        channels: 3 for red, green and blue; 1 for grey.
        fit: To which size; None keeps that of the file.

    Raises:
        DataError: the file is damaged or not an image, or its range of pixels is not known.
    """
    check_pillow(path)
    from PIL import Image, UnidentifiedImageError  # type: ignore[import-not-found, unused-ignore]

    try:
        with Image.open(path) as image:
            converted = _fitted(_converted(image, channels, path), fit)
            return np.asarray(converted, dtype=np.uint8).reshape(converted.height, converted.width, channels)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}. Repair it, or take it out.") from error


def _converted(image: Any, channels: int, path: Path) -> Any:
    """Return a Pillow image as 8-bit colours or grey, upright."""
    from PIL import Image, ImageOps

    is_png = image.format == "PNG"  # some versions of Pillow open 16 bits of grey as 32
    image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BIT_MODES or (image.mode == "I" and is_png):
        pixels = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((pixels + _BITS_RATIO // 2) // _BITS_RATIO).astype(np.uint8))
    elif image.mode in _UNKNOWN_RANGE_MODES:
        kind = "32-bit whole numbers" if image.mode == "I" else "floating-point numbers"
        raise DataError(f"{path} has pixels that are {kind}, of no known range. Save it with 8 or 16 bits.")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return image.convert("L" if channels == 1 else "RGB")


def _fitted(image: Any, fit: ImageFit | None) -> Any:
    """Return an image of the wanted size; ``crop`` rounds as torchvision's ``Resize`` and ``CenterCrop`` do."""
    from PIL import Image

    if fit is None:
        return image
    size, bilinear = (fit.width, fit.height), Image.Resampling.BILINEAR
    if fit.rule == "stretch":
        return image.resize(size, bilinear)
    if fit.rule == "pad":
        ratio = min(fit.width / image.width, fit.height / image.height)
        inner = image.resize([max(1, round(side * ratio)) for side in image.size], bilinear)
        whole = Image.new(image.mode, size)
        whole.paste(inner, ((fit.width - inner.width) // 2, (fit.height - inner.height) // 2))
        return whole
    if image.height * fit.width >= image.width * fit.height:
        width = round(fit.width / fit.kept_ratio)
        height = int(width * image.height / image.width)
    else:
        height = round(fit.height / fit.kept_ratio)
        width = int(height * image.width / image.height)
    left, top = round((width - fit.width) / 2), round((height - fit.height) / 2)
    return image.resize((width, height), bilinear).crop((left, top, left + fit.width, top + fit.height))
