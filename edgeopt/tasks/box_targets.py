"""Boxes that a data loader yields: checked, and images that come as a list stacked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeopt.errors import DataError, TaskError
from edgeopt.task.values import describe_value
from edgeopt.tasks.loaders import Batches, LoaderTask

_Array = NDArray[Any]
_FORM = (
    "Targets are a list with a dict for each image: 'boxes' (N, 4), left, top, right and bottom in pixels, and "
    "'labels' (N,), class numbers from 0."
)
_NORMALIZED_LIMIT = 1.5
"""Right and bottom ends in pixels go further than this."""


class BoxBatches:
    """Batches of a loader as ``(images, list of dicts)``, as often as the loader can be iterated.

    Args:
        task: Whose batches they are.
        part: Names the loader in errors.
        loader: The user's.
    """

    def __init__(self, task: LoaderTask, part: str, loader: Batches) -> None:
        self._task, self._part, self.loader = task, part, loader

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]  # raises TypeError as the loader does

    def __bool__(self) -> bool:
        return True  # not every loader has a length

    def __iter__(self) -> Iterator[tuple[Any, list[Any]]]:
        for batch in self.loader:
            inputs, targets = self._task.read_batch(batch, self._part)
            if not isinstance(targets, list | tuple) or not all(isinstance(one, Mapping) for one in targets):
                raise DataError(f"{self._task.name}: {self._part} yields targets {describe_value(targets)}. {_FORM}")
            yield _stacked(inputs, len(targets), f"{self._task.name}: {self._part}"), list(targets)


def _stacked(images: Any, count: int, source: str) -> Any:
    """Return images that a collate function left in a list, as detectors of torchvision take them, as one tensor."""
    if not isinstance(images, list | tuple) or len(images) != count:
        return images
    if not all(isinstance(image, Tensor | np.ndarray) and image.ndim == 3 for image in images):
        return images
    sizes = sorted({tuple(image.shape) for image in images})
    if len(sizes) > 1:
        raise DataError(
            f"{source} yields a batch of images of different sizes: {', '.join(map(str, sizes[:4]))}. A file has one "
            "input for a batch: resize or pad the images of a batch to one size, and move their boxes along."
        )
    return torch.stack([torch.as_tensor(image) for image in images])


class Seen(NamedTuple):
    """What a network sees."""

    classes: int
    height: int
    """Of images, in pixels, rounded up to whole places."""
    width: int


def check_boxes(targets: Sequence[Mapping[str, Any]], source: str, seen: Seen | None = None) -> None:
    """Check the boxes of a batch.

    Args:
        targets: A dict for each image.
        source: Where they come from, for errors.
        seen: None if that is not known.

    Raises:
        DataError: a dict has no boxes or labels, their numbers differ, or they are not what they should be.
    """
    ends = []
    for number, target in enumerate(targets):
        missing = [name for name in ("boxes", "labels") if name not in target]
        if missing:
            found = ", ".join(map(str, target)) or "nothing"
            raise DataError(f"{source}: image {number} has no '{missing[0]}', but {found}. {_FORM}")
        boxes, labels = _array(target["boxes"]), _array(target["labels"])
        if not _fit(boxes, labels):
            raise DataError(
                f"{source}: image {number} has boxes of shape {boxes.shape} and labels of shape {labels.shape}. {_FORM}"
            )
        crowds = target.get("iscrowd")
        if crowds is not None and _array(crowds).size != labels.size:
            raise DataError(f"{source}: image {number} has {labels.size} boxes, but {_array(crowds).size} 'iscrowd'.")
        if boxes.size:
            _check_values(boxes, labels.reshape(-1), seen, f"{source}: image {number}")
            ends.append(boxes.max())
    if ends and max(ends) < _NORMALIZED_LIMIT:
        raise DataError(
            f"{source}: no box reaches further than {max(ends):.3g}, so they seem to be relative to the image. "
            "Multiply them by its width and height: boxes are in pixels of the network's input."
        )


def check_detections(found: Any, count: int, source: str) -> None:
    """Check what a user's ``decode`` returns for a batch.

    Args:
        found: As it was returned.
        count: Images of the batch.
        source: Names the function in errors.

    Raises:
        TaskError: it is not a dict of boxes, scores and labels for each image.
    """
    form = "It has to return a list with a dict of boxes (N, 4), scores (N,) and labels (N,) for each image."
    if not isinstance(found, list | tuple) or len(found) != count:
        raise TaskError(f"{source} returns {describe_value(found)} for {count} images. {form}")
    for number, one in enumerate(found):
        if not isinstance(one, Mapping) or not {"boxes", "scores", "labels"} <= set(one):
            raise TaskError(f"{source} returns {describe_value(one)} for image {number}. {form}")
        boxes, scores, labels = (_array(one[name]) for name in ("boxes", "scores", "labels"))
        if not _fit(boxes, labels) or scores.size != labels.size:
            raise TaskError(f"{source} returns {describe_value(one)} for image {number}. {form}")


def _fit(boxes: _Array, labels: _Array) -> bool:
    """Tell whether there are four numbers for each label; without any, the shape of boxes is free."""
    return boxes.size == 4 * labels.size and (not boxes.size or boxes.shape == (labels.size, 4))


def _check_values(boxes: _Array, labels: _Array, seen: Seen | None, source: str) -> None:
    wrong = ~np.isfinite(boxes).all(1) | ~(boxes[:, 2:] > boxes[:, :2]).all(1)
    if wrong.any():
        raise DataError(
            f"{source} has the box {_words(boxes[wrong])}, whose right end is not right of its left one, or whose "
            "bottom is not below its top. Boxes are (left, top, right, bottom) in pixels; for (left, top, width, "
            "height) add the first two to the others, and leave out boxes without an area."
        )
    known = "" if seen is None else f", but the network has {seen.classes} classes, 0 to {seen.classes - 1}"
    outside = (labels < 0) | (labels != np.rint(labels)) | (labels >= (np.inf if seen is None else seen.classes))
    if outside.any():
        raise DataError(
            f"{source} has the label {labels[outside][0]:g}{known}. Labels are class numbers from 0; if 0 is your "
            "background, as with torchvision, subtract 1."
        )
    if seen is None:
        return
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    away = ((centres < 0) | (centres > (seen.width, seen.height))).any(1)
    if away.any():
        raise DataError(
            f"{source} has the box {_words(boxes[away])}, whose centre is outside of the image of "
            f"{seen.width}x{seen.height} pixels. Boxes are in pixels of the network's input: scale them with the image."
        )


def _words(boxes: _Array) -> str:
    return f"({', '.join(f'{value:g}' for value in boxes[0])})"


def _array(value: Any) -> _Array:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value, dtype=np.float64)
