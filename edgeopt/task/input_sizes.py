"""Run a model at a lower resolution inside: its image is shrunk first, and its maps are enlarged again.

Inputs and outputs keep their shapes, so nothing changes for loaders, losses, scores and apps. A model takes that if it
runs on a smaller image and each output is either the same size then, or a map of the image. Whether its answers are
still good is for training and score to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeopt.errors import StepError
from edgeopt.task.checked import CheckedTask
from edgeopt.task.modules import replaced_forward

Size = tuple[int, int]
"""Height and width."""

_STAGE = "input sizes"
_RATIOS = (0.75, 0.5)
"""Of height and width, if the task names no sizes: about half and a quarter of the work."""
_MIN_SIZE = 16
_MAX_CHANNELS = 16
_STEPS = 8
"""A smaller size is divisible by the power of two by which the size is, as far as it is in that many steps."""
_SIDES = 2


class ShrunkImage(NamedTuple):
    """How a model runs on a smaller image."""

    image: int
    """Index of the input."""
    size: Size
    """Of the image that the model sees."""
    maps: tuple[Size | None, ...]
    """The whole size of each output that is a map; None for one that is as it was."""


def wanted_sizes(task: CheckedTask) -> tuple[list[Size], str]:
    """Return the sizes to which the image of a task may be shrunk, the largest first, and why there are none.

    They are those of the task's ``input_sizes``, otherwise ``_RATIOS`` of its own. Without a reason it has no image.
    """
    index, reason = find_image(task)
    if index is None:
        return [], reason if task.input_sizes else ""
    whole, given = _size_of(task.example_inputs[index]), task.input_sizes
    sizes = [smaller_size(whole, ratio) for ratio in _RATIOS] if given is None else sorted(given, reverse=True)
    return list(dict.fromkeys(sizes)), ""


def find_image(task: CheckedTask) -> tuple[int | None, str]:
    """Return the index of the input that is an image of fixed size; None, and why, if there is not just one."""
    found = [
        index
        for index, (value, axis) in enumerate(zip(task.example_inputs, task.axes.inputs, strict=True))
        if value.dim() == 4 and value.is_floating_point() and axis == 0
        and value.shape[1] <= _MAX_CHANNELS and min(_size_of(value)) >= _MIN_SIZE
    ]  # fmt: skip
    if len(found) != 1:
        return (
            None,
            f"{len(found) or 'no'} inputs are images, [batch, channels, height, width], with a side of 16 or more",
        )
    if {1, 2, 3} & task.trace_dims[found[0]].keys():
        return None, "the image has no fixed size (training crops need that of the evaluation)"
    if any(axis != 0 for axis in task.axes.outputs):
        return None, "an output has no batch as its first dimension"
    return found[0], ""


def smaller_size(size: Size, ratio: float) -> Size:
    """Return about ``ratio`` of a size, divisible as it is: networks halve their maps, some without a remainder."""
    height, width = (_smaller(one, ratio) for one in size)
    return height, width


def _smaller(size: int, ratio: float) -> int:
    step = 1
    while size % (2 * step) == 0 and 2 * step * _STEPS <= size:
        step *= 2
    return step * max(1, round(size * ratio / step))


def _size_of(image: Tensor) -> Size:
    height, width = image.shape[-2:]
    return int(height), int(width)


def try_size(model: nn.Module, task: CheckedTask, size: Size) -> ShrunkImage:
    """Run a model on its example inputs with the image shrunk, and return how that goes.

    Args:
        model: The trained model, or a student.
        task: Of the model; it has an image.
        size: Of the image that the model sees.

    Raises:
        StepError: the size is not smaller, or an output is another one then and no map of the image.
        Exception: whatever the model raises.
    """
    index, reason = find_image(task)
    if index is None:
        raise StepError(_STAGE, reason)
    image = task.example_inputs[index]
    whole = _size_of(image)
    if size == whole or any(one > limit for one, limit in zip(size, whole, strict=True)):
        raise StepError(_STAGE, f"the image would not be smaller than {whole[0]}x{whole[1]}")
    inputs = [value.clone() for value in task.example_inputs]
    inputs[index] = _resized(inputs[index], size)
    with task.interface.flat_forward(model), torch.no_grad():
        outputs = model(*inputs)
    maps: list[Size | None] = []
    for value, expected, name in zip(outputs, task.interface.example_outputs[0], task.output_names, strict=True):
        if value.shape == expected.shape:
            maps.append(None)
        elif _is_map(value.shape, size) and _is_map(expected.shape, whole) and _same_but_sides(value, expected):
            maps.append(_size_of(expected))
        else:
            shapes = [list(one.shape[1:]) for one in (value, expected)]
            raise StepError(_STAGE, f"output '{name}' has shape {shapes[0]} for each sample, not {shapes[1]}")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise StepError(_STAGE, f"output '{name}' is not finite")
    return ShrunkImage(index, size, tuple(maps))


def _is_map(shape: Sequence[int], size: Size) -> bool:
    """Tell whether the last two sides of a value are those of an image, in one scale and rounded up or down."""
    scale = max(side / one for side, one in zip(shape[-2:], size, strict=True))
    return len(shape) in (3, 4) and all(abs(side - scale * one) < 1 for side, one in zip(shape[-2:], size, strict=True))


def _same_but_sides(value: Tensor, expected: Tensor) -> bool:
    return value.dim() == expected.dim() and value.shape[:-_SIDES] == expected.shape[:-_SIDES]


@contextmanager
def shrinking_image(model: nn.Module, lower: ShrunkImage) -> Iterator[None]:
    """Let a model with a flat ``forward`` shrink its image first and enlarge its maps, for the length of a block."""
    forward = model.forward

    def call(*leaves: Tensor) -> tuple[Tensor, ...]:
        image = _resized(leaves[lower.image], lower.size)
        outputs = forward(*leaves[: lower.image], image, *leaves[lower.image + 1 :])
        pairs = zip(outputs, lower.maps, strict=True)
        return tuple(value if size is None else _resized(value, size) for value, size in pairs)

    with replaced_forward(model, call):
        yield


def _resized(value: Tensor, size: Size) -> Tensor:
    """Return an image or a map in another size: bilinear, and maps of classes by the nearest pixel."""
    maps = value if value.dim() == 4 else value.unsqueeze(1)
    if value.is_floating_point():
        maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    else:
        maps = F.interpolate(maps.float(), size, mode="nearest").to(value.dtype)
    return maps if value.dim() == 4 else maps.squeeze(1)
