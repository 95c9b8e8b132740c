"""How images and sounds become inputs: what a user says of the files of a given ``.onnx``, and the same for an app."""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec
from msgspec.structs import force_setattr

from edgeopt.records.base import Record

ImageLayout = Literal["nchw", "nhwc"]
ColorOrder = Literal["rgb", "bgr", "gray"]
IMAGE_LAYOUTS: tuple[ImageLayout, ...] = get_args(ImageLayout)
COLOR_ORDERS: tuple[ColorOrder, ...] = get_args(ColorOrder)
ResizeRule = Literal["crop", "stretch", "pad"]
"""``crop``: the shorter side is resized, and the middle is cut out; ``stretch``: each side is resized; ``pad``: all of
the image is resized, and black added at two sides."""
RESIZE_RULES: tuple[ResizeRule, ...] = get_args(ResizeRule)
ImageType = Literal["float32", "uint8"]
Alignment = Literal["start", "middle"]
_IMAGE_TYPES: tuple[ImageType, ...] = get_args(ImageType)
_ALIGNMENTS: tuple[Alignment, ...] = get_args(Alignment)
_COLOR_WORDS = {"rgb": "RGB", "bgr": "BGR", "gray": "grey"}


def _check_words(record: Record, **known: tuple[str, ...]) -> None:
    for name, words in known.items():
        if getattr(record, name) not in words:
            raise ValueError(f"{name} is {getattr(record, name)!r}; it has to be one of {', '.join(words)}")


def _convert_numbers(record: Record, kind: type[int] | type[float], *names: str) -> None:
    """Make plain numbers of those of numpy and PyTorch, which a manifest cannot hold."""
    for name in names:
        value = getattr(record, name)
        if value is None:
            continue
        try:
            number = kind(value)
        except (TypeError, ValueError):
            number = None
        if number is None or number != value:
            raise ValueError(f"{name} is {value!r}; it has to be a {'whole ' if kind is int else ''}number")
        force_setattr(record, name, number)


def _as_floats(name: str, value: Any) -> tuple[float, ...]:
    """Return one number, a sequence or an array as plain numbers."""
    try:
        return tuple(map(float, value)) if hasattr(value, "__len__") else (float(value),)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {value!r:.80}; it has to be a number, or one for each channel") from error


def _check_positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} is {value}; it has to be above 0")


class ImagePreprocessing(Record, frozen=True, kw_only=True, tag_field="kind", tag="image"):
    """An image of 8 bits a channel becomes an input: ``(pixel / scale - mean) / std``.

    Raises:
        ValueError: a number is not positive where it has to be, or there is another number of channels than of means.
    """

    height: int | None = None
    """To which images are resized; None: they keep their own size."""
    width: int | None = None
    resize: ResizeRule = "stretch"
    """How an image of another size becomes one of this size; bilinear, over all pixels that one replaces."""
    crop_ratio: float = 1.0
    """With ``crop``, the part of the shorter side that is kept: 224 of 256 are 0.875."""
    color: ColorOrder = "rgb"
    """Order of the channels."""
    layout: ImageLayout = "nchw"
    """Whether channels come before height and width or after them."""
    scale: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    """One, or one for each channel, in the order of ``color``; subtracted after the division by ``scale``."""
    std: tuple[float, ...] = (1.0,)
    dtype: ImageType = "float32"
    """``uint8``: the network takes pixels as they are; ``float32`` stands for other floats as well."""

    def __post_init__(self) -> None:
        _check_words(self, resize=RESIZE_RULES, color=COLOR_ORDERS, layout=IMAGE_LAYOUTS, dtype=_IMAGE_TYPES)
        _convert_numbers(self, float, "scale", "crop_ratio")
        _convert_numbers(self, int, "height", "width")
        for name in ("mean", "std"):
            values = _as_floats(name, getattr(self, name))
            if len(values) not in (1, self.channels):
                raise ValueError(f"{name} has {len(values)} numbers; give one, or {self.channels} (one a channel)")
            force_setattr(self, name, values)
        if (self.height is None) != (self.width is None):
            raise ValueError("give both height and width, or neither")
        if self.dtype == "uint8":
            if (*self.mean, *self.std) != (0.0, 1.0):
                raise ValueError("uint8 inputs are pixels as they are: leave mean and std out")
            force_setattr(self, "scale", 1.0)
        _check_positive(scale=self.scale, std=min(self.std), height=self.height, width=self.width)
        if not 0 < self.crop_ratio <= 1 or (self.crop_ratio < 1 and self.resize != "crop"):
            raise ValueError(
                f"crop_ratio is {self.crop_ratio}; it has to be above 0 and at most 1, and goes with resize='crop'"
            )

    @property
    def channels(self) -> int:
        """1 for grey images, otherwise 3."""
        return 1 if self.color == "gray" else 3

    @property
    def text(self) -> str:
        """The same for people."""
        height, width = (self.height or "height", self.width or "width")
        sides = (
            f"{self.channels}, {height}, {width}" if self.layout == "nchw" else f"{height}, {width}, {self.channels}"
        )
        parts = [f"{_COLOR_WORDS[self.color]} image, upright", self._size_text, self.scaling_text]
        return f"{', '.join(parts)}, shape (batch, {sides}), {self.dtype}"

    @property
    def _size_text(self) -> str:
        if self.height is None or self.width is None:
            return "in its own size"
        size = f"{self.width}x{self.height}"
        if self.resize == "stretch":
            return f"resized to {size} (bilinear)"
        if self.resize == "pad":
            return f"resized to fit into {size} (bilinear), with black at both sides"
        width, height = (round(side / self.crop_ratio) for side in (self.width, self.height))
        return f"resized to cover {width}x{height} (bilinear), its middle {size} cut out"

    @property
    def scaling_text(self) -> str:
        """How pixels become numbers, for people."""
        scaled = "pixels of 0 to 255" if self.scale == 1 else "pixels of 0 to 1"
        if self.scale not in (1, 255):
            scaled = f"pixels divided by {self.scale:g}"
        if self.dtype == "uint8":
            return scaled
        shown = [", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std)]
        return f"{scaled} less {shown[0]}, divided by {shown[1]}"


class SoundPreprocessing(Record, frozen=True, kw_only=True, tag_field="kind", tag="sound"):
    """A sound of one channel becomes an input: its samples, of which the largest possible is ``peak``.

    Raises:
        ValueError: a number is not positive.
    """

    sample_rate: int
    """Samples a second."""
    samples: int | None = None
    """How many one input has: longer sounds are cut, shorter ones filled with zeros; None: any number."""
    align: Alignment = "start"
    """Which part of a longer sound is kept, and where a shorter one is put."""
    peak: float = 1.0
    """32768 for samples as 16-bit files have them."""

    def __post_init__(self) -> None:
        _check_words(self, align=_ALIGNMENTS)
        _convert_numbers(self, int, "sample_rate", "samples")
        _convert_numbers(self, float, "peak")
        _check_positive(sample_rate=self.sample_rate, samples=self.samples, peak=self.peak)

    @property
    def text(self) -> str:
        """The same for people."""
        length = "of any length" if self.samples is None else f"{self.samples:,} samples (the {self.align})"
        values = "-1 to 1" if self.peak == 1 else f"-{self.peak:g} to {self.peak:g}"
        return f"sound of one channel, {self.sample_rate:,} samples a second, {length}, values of {values}"


Preprocessing = ImagePreprocessing | SoundPreprocessing


class DataOptions(Record, frozen=True):
    """What the user said; None leaves it to the model and the files."""

    mean: tuple[float, ...] | None = None
    """Subtracted from pixels of 0 to 1, or of 0 to 255 if one of these numbers is above 1; one, or one per channel."""
    std: tuple[float, ...] | None = None
    """What pixels are divided by after that."""
    size: tuple[int, int] | None = None
    """Height and width to which images are resized."""
    layout: ImageLayout | None = None
    """Whether channels come before height and width or after them."""
    color: ColorOrder | None = None
    """Order of the channels; red, green, blue by default."""
    states: dict[str, str] = msgspec.field(default_factory=dict)
    """Input that is a state to the output that gives its next value."""
    sizes: dict[str, tuple[int, ...]] = msgspec.field(default_factory=dict)
    """Shapes of inputs, for sizes that neither the model nor the files say: those of ``--shape``."""

    def with_sizes(self, sizes: dict[str, tuple[int, ...]]) -> DataOptions:
        """Return the same options with the shapes of ``--shape``."""
        return msgspec.structs.replace(self, sizes=sizes)

    @property
    def for_images(self) -> tuple[str, ...]:
        """The options that only images need, as the command line calls them."""
        given = {"--mean": self.mean, "--std": self.std, "--size": self.size, "--layout": self.layout}
        return tuple(name for name, value in (*given.items(), ("--color", self.color)) if value is not None)

    @property
    def given(self) -> tuple[str, ...]:
        """The options that were given, as the command line calls them."""
        return (*self.for_images, *(("--state",) if self.states else ()))
