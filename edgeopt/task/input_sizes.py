"""Run a model at a lower resolution inside: its image is shrunk first, and its maps are enlarged again.

Inputs and outputs keep their shapes, so nothing changes for loaders, losses, scores and apps. A model takes that if it
runs on a smaller image and each output is either the same size then, or a map of the image. Whether its answers are
still good is for training and score to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeopt.task.checked import CheckedTask
from edgeopt.task.modules import replaced_forward

Size = tuple[int, int]
"""Height and width."""

_RATIOS = (0.75, 0.5)
"""Of height and width, if the task names no sizes: about half and a quarter of the work."""
_MIN_SIZE = 16
_MAX_CHANNELS = 16
_STEPS = 8
"""A smaller size is divisible by the power of two by which the size is, as far as it is in that many steps."""
_MAX_SCALE_DIFFERENCE = 0.1
"""Between the scales of a map's height and width, relative to the image's."""


def input_sizes(model: nn.Module, task: CheckedTask) -> tuple[tuple[Size, ...], str]:
    """Return the sizes to which a model's image can be shrunk, and why others are missing.

    Args:
        model: The trained model, or a student.
        task: Of which ``input_sizes`` names sizes; otherwise ``_RATIOS`` are tried.

    Returns:
        Sizes, the largest first; none and no reason if the model has no image.
    """
    index = find_image(task)
    if index is None:
        reason = "no input is the one image, [batch, channels, height, width]" if task.input_sizes else ""
        return (), reason
    whole = _size_of(task.example_inputs[index])
    given = task.input_sizes
    wanted = [smaller_size(whole, ratio) for ratio in _RATIOS] if given is None else sorted(given, reverse=True)
    found, reasons = [], []
    for size in dict.fromkeys(wanted):
        reason = _why_not(model, task, whole, size)
        if reason:
            reasons.append(f"at {size[0]}x{size[1]}, {reason}")
        else:
            found.append(size)
    return tuple(found), "; ".join(reasons)


def find_image(task: CheckedTask) -> int | None:
    """Return the index of the input that is an image of fixed size, if there is just one."""
    found = [
        index
        for index, (value, dims, axis) in enumerate(
            zip(task.example_inputs, task.trace_dims, task.axes.inputs, strict=True)
        )
        if value.dim() == 4 and value.is_floating_point() and axis == 0 and not {1, 2, 3} & dims.keys()
        and value.shape[1] <= _MAX_CHANNELS and min(_size_of(value)) >= _MIN_SIZE
    ]  # fmt: skip
    return found[0] if len(found) == 1 and all(axis == 0 for axis in task.axes.outputs) else None


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


def _why_not(model: nn.Module, task: CheckedTask, whole: Size, size: Size) -> str:
    """Return why a model cannot run at a size; empty if it can."""
    if size == whole or any(one > limit for one, limit in zip(size, whole, strict=True)):
        return f"the image would not be smaller than {whole[0]}x{whole[1]}"
    try:
        with task.interface.flat_forward(model), lower_resolution(model, task, size), torch.no_grad():
            outputs = model(*(value.clone() for value in task.example_inputs))
    except NotAMapError as error:
        return str(error)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        return f"the model does not run: {(str(error).strip() or repr(error)).splitlines()[0]}"
    bad = [
        name
        for name, value in zip(task.output_names, outputs, strict=True)
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    return f"output '{bad[0]}' is not finite" if bad else ""


class NotAMapError(Exception):
    """An output of another size at a lower resolution that isn't a map of the image."""


@contextmanager
def lower_resolution(model: nn.Module, task: CheckedTask, size: Size) -> Iterator[None]:
    """Let a model with a flat ``forward`` shrink its image first and enlarge its maps, for the length of a block.

    Args:
        model: The trained model, or a student.
        task: Names the image.
        size: Of the image that the model sees.

    Raises:
        NotAMapError: when the model runs, if an output is of another size and no map.
    """
    index = find_image(task)
    assert index is not None, "sizes are only found for models with an image"
    whole, forward = _size_of(task.example_inputs[index]), model.forward
    shapes = [tuple(value.shape) for value in task.interface.example_outputs[0]]
    names = task.output_names

    def call(*leaves: Tensor) -> tuple[Tensor, ...]:
        image = F.interpolate(leaves[index], size, mode="bilinear", align_corners=False)
        outputs = forward(*leaves[:index], image, *leaves[index + 1 :])
        return tuple(
            _enlarge(value, shape, whole, name) for value, shape, name in zip(outputs, shapes, names, strict=True)
        )

    with replaced_forward(model, call):
        yield


def _enlarge(value: Tensor, shape: Sequence[int], whole: Size, name: str) -> Tensor:
    """Return an output of a smaller image in its own size: maps bilinear, maps of classes by the nearest pixel."""
    found = tuple(int(size) for size in value.shape[1:])
    if found == tuple(shape[1:]):
        return value
    is_map = len(shape) in (3, 4) and found[:-2] == tuple(shape[1:-2])
    scales = [size / one for size, one in zip(shape[-2:], whole, strict=True)] if is_map else [1.0, 2.0]
    if abs(scales[0] - scales[1]) > _MAX_SCALE_DIFFERENCE * max(scales):
        raise NotAMapError(f"output '{name}' has shape {list(found)} for each sample, not {list(shape[1:])}")
    maps = value if value.dim() == 4 else value.unsqueeze(1)
    if value.is_floating_point():
        maps = F.interpolate(maps, tuple(shape[-2:]), mode="bilinear", align_corners=False)
    else:
        maps = F.interpolate(maps.float(), tuple(shape[-2:]), mode="nearest").to(value.dtype)
    return maps if value.dim() == 4 else maps.squeeze(1)
