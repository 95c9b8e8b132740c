"""A folder of images: resized, in the model's layout, and scaled as in training.

Pillow reads them; it is imported only here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError, InputError
from edgeopt.records.given_data import DataOptions
from edgeopt.tasks.onnx_data.samples import InputArrays
from edgeopt.tasks.onnx_data.specs import InputAxes, InputSpec

_CHANNELS = (1, 3)
_ArrayReader = Callable[[Path], list[InputArrays]]


class _Form(NamedTuple):
    """What the model takes."""

    channels_first: bool
    channels: int
    size: tuple[int, int] | None
    """Height and width; None: those of each image."""
    is_bgr: bool
    is_integer: bool
    scale: float
    """What pixels of 0 to 255 are divided by first."""
    mean: NDArray[np.float32]
    std: NDArray[np.float32]


def image_reader(
    first: Path, inputs: Sequence[InputSpec], axes: InputAxes, options: DataOptions
) -> tuple[_ArrayReader, str]:
    """Return what reads one image as the model's only input, without a batch, and a note on how it is prepared.

    Args:
        first: Named in errors.
        inputs: Of the model.
        axes: The batch of each.
        options: The user's.

    Raises:
        InputError: the model takes no images, an option does not fit it, or Pillow is missing.
    """
    if len(inputs) != 1:
        raise InputError(
            f"{first.parent} has images, but the model has the inputs {', '.join(spec.name for spec in inputs)}. "
            "Give a folder with an .npz for each sample, or a Python function (file.py:samples)."
        )
    form = _form_of(inputs[0], options)
    try:
        from PIL import Image, UnidentifiedImageError  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise InputError(f"reading images such as {first} takes Pillow: pip install pillow.") from error

    def read(path: Path) -> list[InputArrays]:
        try:
            with Image.open(path) as image:
                converted = image.convert("L" if form.channels == 1 else "RGB")
                if form.size is not None:
                    converted = converted.resize(form.size[::-1], Image.Resampling.BILINEAR)
                pixels = np.asarray(converted, dtype=np.uint8)
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} cannot be read as an image: {error}.") from error
        return [{inputs[0].name: _prepare(pixels, form)}]

    return read, _describe(form)


def _form_of(spec: InputSpec, options: DataOptions) -> _Form:
    dims = spec.dimensions
    if dims is None or len(dims) != 4:
        raise InputError(
            f"the model's input '{spec.name}' takes {spec.shown}, which is not a batch of images (4 dimensions). Give "
            "a folder of .npy files, one for each sample."
        )
    if spec.dtype.kind not in "fu" or (spec.dtype.kind == "u" and spec.dtype != np.uint8):
        raise InputError(f"the model's input '{spec.name}' is {spec.dtype.name}; images become float or uint8.")
    first = dims[1] in _CHANNELS
    if options.layout is None and (first == (dims[3] in _CHANNELS)):
        raise InputError(f"the model's input '{spec.name}' takes {spec.shown}: say --layout nchw or --layout nhwc.")
    first = first if options.layout is None else options.layout == "nchw"
    declared, sides = (dims[1], dims[2:]) if first else (dims[3], dims[1:3])
    channels = declared or (1 if options.color == "gray" else 3)
    if channels not in _CHANNELS or (options.color is not None and (options.color == "gray") != (channels == 1)):
        asked = f", but --color is {options.color}" if options.color else ""
        raise InputError(f"the model's input '{spec.name}' takes {spec.shown}, {channels} channels{asked}.")
    size = options.size or ((sides[0], sides[1]) if sides[0] and sides[1] else None)
    if size is not None and any(side not in (None, given) for side, given in zip(sides, size, strict=True)):
        raise InputError(f"--size {size[0]}x{size[1]} does not fit the model's input '{spec.name}', {spec.shown}.")
    is_integer = spec.dtype.kind == "u"
    if is_integer and (options.mean or options.std):
        raise InputError(f"--mean and --std are for float inputs; '{spec.name}' takes uint8 pixels as they are.")
    mean, std = options.mean or (0.0,), options.std or (1.0,)
    for name, values in (("--mean", mean), ("--std", std)):
        if len(values) not in (1, channels):
            raise InputError(f"{name} has {len(values)} numbers; give one, or {channels}, one for each channel.")
    scale = 1.0 if is_integer or max(map(abs, (*mean, *std))) > 1 else 255.0
    stats = (np.array(mean, np.float32), np.array(std, np.float32))
    return _Form(first, channels, size, options.color == "bgr", is_integer, scale, *stats)


def _prepare(pixels: NDArray[np.uint8], form: _Form) -> NDArray[Any]:
    """Return pixels of shape (height, width) or (height, width, channels) as one sample."""
    values: NDArray[Any] = pixels.reshape(*pixels.shape[:2], form.channels)
    values = values[..., ::-1] if form.is_bgr else values
    if not form.is_integer:
        values = ((values.astype(np.float32) / np.float32(form.scale)) - form.mean) / form.std
    return np.ascontiguousarray(np.moveaxis(values, -1, 0) if form.channels_first else values)


def _describe(form: _Form) -> str:
    size = "in their own sizes" if form.size is None else f"resized to {form.size[0]}x{form.size[1]} (bilinear)"
    colors = "gray" if form.channels == 1 else "BGR" if form.is_bgr else "RGB"
    if form.is_integer:
        return f"images {size}, {colors}, pixels of 0 to 255"
    scaled = "pixels of 0 to 1" if form.scale > 1 else "pixels of 0 to 255"
    shown = [", ".join(f"{value:.4g}" for value in values) for values in (form.mean, form.std)]
    return f"images {size}, {colors}, {scaled} less {shown[0]}, divided by {shown[1]}"
