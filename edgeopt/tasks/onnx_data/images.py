"""A folder of images: resized, in the model's layout, and scaled as in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import InputError
from edgeopt.records.preprocessing import DataOptions, ImagePreprocessing, Preprocessing
from edgeopt.tasks.image_files import ImageFit, PixelScaling, check_pillow, make_scaling, read_image
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
    scaling: PixelScaling | None
    """None: the model takes bytes."""


def image_reader(
    first: Path, inputs: Sequence[InputSpec], axes: InputAxes, options: DataOptions
) -> tuple[_ArrayReader, Callable[[], dict[str, Preprocessing]]]:
    """Return what reads one image as the model's only input, without a batch, and what says how it is made.

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
    check_pillow(first)
    fit = None if form.size is None else ImageFit(*form.size)

    def read(path: Path) -> list[InputArrays]:
        return [{inputs[0].name: _prepare(read_image(path, form.channels, fit), form)}]

    return read, lambda: {inputs[0].name: _preprocessing(form, options)}


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
    scaling = None if is_integer else make_scaling(options.mean, options.std, channels, prefix="--")
    return _Form(first, channels, size, options.color == "bgr", scaling)


def _prepare(pixels: NDArray[np.uint8], form: _Form) -> NDArray[Any]:
    """Return pixels of shape (height, width, channels) as one sample."""
    values: NDArray[Any] = pixels[..., ::-1] if form.is_bgr else pixels
    values = values if form.scaling is None else form.scaling.apply(values)
    return np.ascontiguousarray(np.moveaxis(values, -1, 0) if form.channels_first else values)


def _preprocessing(form: _Form, options: DataOptions) -> ImagePreprocessing:
    height, width = form.size or (None, None)
    size = ImagePreprocessing(
        height=height,
        width=width,
        color="gray" if form.channels == 1 else "bgr" if form.is_bgr else "rgb",
        layout="nchw" if form.channels_first else "nhwc",
    )
    if form.scaling is None:
        return msgspec.structs.replace(size, scale=1.0, dtype="uint8")
    mean, std = options.mean or (0.0,), options.std or (1.0,)
    return msgspec.structs.replace(size, scale=form.scaling.scale, mean=mean, std=std)
