"""How images and sounds become inputs: what a user says of the files of a given ``.onnx``, and the same for an app."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from edgeopt.records.base import Record

ImageLayout = Literal["nchw", "nhwc"]
ColorOrder = Literal["rgb", "bgr", "gray"]
IMAGE_LAYOUTS: tuple[ImageLayout, ...] = get_args(ImageLayout)
COLOR_ORDERS: tuple[ColorOrder, ...] = get_args(ColorOrder)
ResizeRule = Literal["crop", "stretch", "pad"]
"""``crop``: the shorter side is resized, and the middle is cut out; ``stretch``: each side is resized; ``pad``: all of
the image is resized, and black added at two sides."""
RESIZE_RULES: tuple[ResizeRule, ...] = get_args(ResizeRule)
_COLOR_WORDS = {"rgb": "RGB", "bgr": "BGR", "gray": "grey"}


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
    """One, or one for each channel, in the order of ``color``."""
    std: tuple[float, ...] = (1.0,)
    dtype: Literal["float32", "uint8"] = "float32"

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(
                    f"{name} has {len(values)} numbers; give one, or {self.channels}, one for each channel"
                )
        if (self.height is None) != (self.width is None):
            raise ValueError("give both height and width, or neither")
        positive = {"scale": self.scale, "crop_ratio": self.crop_ratio, "std": min(self.std)}
        positive |= {"height": self.height or 1, "width": self.width or 1}
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"{name} is {value}; it has to be above 0")
        if self.crop_ratio > 1:
            raise ValueError(f"crop_ratio is {self.crop_ratio}; it has to be at most 1")

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
    align: Literal["start", "middle"] = "start"
    """Which part of a longer sound is kept, and where a shorter one is put."""
    peak: float = 1.0
    """32768 for samples as 16-bit files have them."""

    def __post_init__(self) -> None:
        positive = {"sample_rate": self.sample_rate, "samples": self.samples or 1, "peak": self.peak}
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"{name} is {value}; it has to be above 0")

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
