"""``DataOptions``: how files of a folder become the inputs of a given ``.onnx``."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from edgeopt.records.base import Record

ImageLayout = Literal["nchw", "nhwc"]
ColorOrder = Literal["rgb", "bgr", "gray"]
IMAGE_LAYOUTS: tuple[ImageLayout, ...] = get_args(ImageLayout)
COLOR_ORDERS: tuple[ColorOrder, ...] = get_args(ColorOrder)


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
