"""Tasks from a trained network and a folder of images by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeopt.errors import DataError, TaskError
from edgeopt.records.preprocessing import COLOR_ORDERS, RESIZE_RULES, ColorOrder, ImagePreprocessing, ResizeRule
from edgeopt.records.scoring import ScoreKind
from edgeopt.tasks.class_folders import FolderPart, LabelledFile, find_class_folders
from edgeopt.tasks.classification import Classification
from edgeopt.tasks.image_files import ImageFit, Pixels, check_pillow, make_scaling, read_image
from edgeopt.tasks.ready.augment import change_views

_EXAMPLES = 8
_CALIBRATION_IMAGES = 512
_LEAST_CROP_RATIO = 0.7
"""Smallest part of each side that a random crop keeps."""
_MIB = 2**20

_Pair = tuple[Tensor, Tensor]


class ImageFolder(Classification):
    """A ``Task`` of a folder of images by class; ``edgeopt.image_folder`` says what its arguments mean."""

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        folder: str | Path,
        *,
        size: int | tuple[int, int],
        resize: ResizeRule = "crop",
        crop_ratio: float = 1.0,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        color: ColorOrder = "rgb",
        classes: Sequence[str] = (),
        flip: bool = True,
        crop: bool = True,
        batch_size: int = 64,
        memory_mb: float = 1024.0,
        **options: Any,
    ) -> None:
        self.folder = Path(folder)
        self._fit = _check_fit(size, resize, crop_ratio)
        if color not in COLOR_ORDERS:
            raise TaskError(f"color is {color!r}; it has to be one of {', '.join(COLOR_ORDERS)}.")
        if batch_size < 2:
            raise TaskError(f"batch_size is {batch_size}; batches that train need two images or more.")
        self._color: ColorOrder = color
        self._channels = 1 if color == "gray" else 3
        self._mean, self._std = _as_tuple(mean), _as_tuple(std)
        self._scaling = make_scaling(self._mean, self._std, self._channels)
        self._flip, self._crop = flip, crop
        self._batch_size, self._memory_mb = batch_size, memory_mb
        found = find_class_folders(self.folder, classes)
        self._parts = found.parts
        check_pillow(found.parts["train"][0].path)
        own = {"name": self.folder.resolve().name, "preprocessing": self._own_preprocessing}
        super().__init__(model, self.draw_epoch, eval=(), labels=found.classes, **(own | options))
        self.labels_source = str(self.folder)

    @property
    def _own_preprocessing(self) -> ImagePreprocessing:
        return ImagePreprocessing(
            height=self._fit.height,
            width=self._fit.width,
            resize=self._fit.rule,
            crop_ratio=self._fit.kept_ratio,
            color=self._color,
            scale=self._scaling.scale,
            mean=self._mean,
            std=self._std,
        )

    # -- pixels

    @cached_property
    def _is_kept(self) -> bool:
        """Whether the pixels of all images fit into the memory that they may take."""
        images = sum(map(len, self._parts.values()))
        return images * self._fit.height * self._fit.width * self._channels <= self._memory_mb * _MIB

    @cached_property
    def _kept(self) -> dict[FolderPart, Pixels]:
        return {}

    def _pixels(self, part: FolderPart, rows: Sequence[int]) -> Pixels:
        """Return images of a part, decoded now or before, of shape (images, height, width, channels)."""
        files = self._parts[part]
        if not self._is_kept:
            return np.stack([self._decode(files[row]) for row in rows])
        if part not in self._kept:
            whole = np.empty((len(files), self._fit.height, self._fit.width, self._channels), np.uint8)
            for row, file in enumerate(files):
                whole[row] = self._decode(file)
            self._kept[part] = whole
        return self._kept[part][rows]

    def _decode(self, file: LabelledFile) -> Pixels:
        return read_image(file.path, self._channels, self._fit)

    def _load(self, part: FolderPart, rows: Sequence[int]) -> _Pair:
        """Return images as the network takes them, and their labels."""
        pixels = self._pixels(part, rows)
        values = self._scaling.apply(pixels[..., ::-1] if self._color == "bgr" else pixels)
        images = torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 1)))
        return images, torch.tensor([self._parts[part][row].label for row in rows])

    def _in_order(self, part: FolderPart, rows: Sequence[int]) -> Iterator[_Pair]:
        for start in range(0, len(rows), self._batch_size):
            yield self._load(part, rows[start : start + self._batch_size])

    # -- the task

    def draw_epoch(self, seed: int) -> Iterator[_Pair]:
        """Yield the training images in random order, with random changes; the same for the same seed.

        A single image that would be the last batch is left out: batch normalization needs two.
        """
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self._parts["train"]), generator=generator)
        for rows in torch.split(order, self._batch_size):
            if len(rows) == 1 and len(order) > 1:
                continue
            images, labels = self._load("train", rows.tolist())
            if self._flip or self._crop:
                least = _LEAST_CROP_RATIO if self._crop else 1.0
                images = change_views(images, generator, least, mirror=self._flip)
            yield images, labels

    def example_inputs(self) -> Tensor:
        """Return the first images that select."""
        return self._load("selection", range(min(_EXAMPLES, len(self._parts["selection"]))))[0]

    def eval_batches(self) -> Iterator[_Pair]:
        """Yield the images that select."""
        return self._in_order("selection", range(len(self._parts["selection"])))

    def test_batches(self) -> Iterator[_Pair] | None:
        """Return the test images; None if there are none."""
        count = len(self._parts["test"])
        return self._in_order("test", range(count)) if count else None

    def calibration_batches(self) -> Iterator[_Pair]:
        """Yield training images of all classes as they are."""
        count = len(self._parts["train"])
        return self._in_order("train", range(0, count, math.ceil(count / _CALIBRATION_IMAGES)))

    def settle_score(
        self, outputs: Sequence[Sequence[NDArray[Any]]], names: Sequence[str], labels: Sequence[Any] | None
    ) -> ScoreKind:
        """Decide what the score is; see ``KnownScore``.

        Raises:
            DataError: the network has another number of classes than the folder.
        """
        kind = super().settle_score(outputs, names, labels)
        part = kind.parts[0]
        found = outputs[0][part.index].shape[part.class_axis] if part.layout == "classes" else len(self.labels)
        if found != len(self.labels):
            raise DataError(
                f"{self.folder} has {len(self.labels)} classes, but output '{part.output}' of the network has {found}. "
                "Name all classes in the order of the outputs with classes=."
            )
        return kind


def _as_tuple(values: float | Sequence[float]) -> tuple[float, ...]:
    return (float(values),) if isinstance(values, int | float) else tuple(values)


def _check_fit(size: int | tuple[int, int], rule: ResizeRule, kept_ratio: float) -> ImageFit:
    """Return how images are fitted.

    Raises:
        TaskError: a value is not one that is known.
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise TaskError(f"size is {size!r}; it has to be a number of pixels, or (height, width).")
    if rule not in RESIZE_RULES:
        raise TaskError(f"resize is {rule!r}; it has to be one of {', '.join(RESIZE_RULES)}.")
    if not 0 < kept_ratio <= 1 or (kept_ratio < 1 and rule != "crop"):
        raise TaskError(
            f"crop_ratio is {kept_ratio!r}; it has to be above 0 and at most 1, and goes with resize='crop'."
        )
    return ImageFit(sides[0], sides[1], rule, kept_ratio)


def image_folder(
    model: nn.Module | Callable[[], nn.Module], folder: str | Path, *, size: int | tuple[int, int], **options: Any
) -> ImageFolder:
    """Make a task of a trained image classifier and a folder of images by class.

    The folder holds ``train/CLASS/*``, ``val/CLASS/*`` and perhaps ``test/CLASS/*``, as for torchvision's
    ``ImageFolder``. If it holds only ``CLASS/*``, 15 of 100 images select and 15 test, by a hash of their file names.
    Images are turned upright as their EXIF data say; 16 bits become 8. Pillow is needed (``pip install pillow``).

    Args:
        model: The trained model, or a function that builds it; it is called once. It maps ``(batch, channels, height,
            width)`` to one value for each class.
        folder: Of the images.
        size: Height and width of the network's input, or one number for both.
        options: ``resize``: ``"crop"`` (by default the image covers the size, and its middle is cut out),
            ``"stretch"`` or ``"pad"``; ``crop_ratio``: the part of the shorter side that ``"crop"`` keeps, such as
            ``224 / 256``; ``mean`` and ``std``: of pixels of 0 to 1, or of 0 to 255 if one is above 1; ``color``:
            ``"rgb"``, ``"bgr"`` or ``"gray"``; ``classes``: names of the folders in the order of the outputs (by
            default sorted); ``flip=False``: no training image is mirrored; ``crop=False``: none is cut at random;
            ``batch_size``; ``memory_mb``: decoded images are kept if all of them fit into this (1,024), and otherwise
            decoded again in each epoch; others as those of ``classification``.

    Raises:
        DataError: the folder has no images, or a class that is not known; on first use, an image is damaged.
        InputError: Pillow is missing, or ``mean`` or ``std`` does not fit the channels.
        TaskError: another option has a value that is not known.
    """
    return ImageFolder(model, folder, size=size, **options)
