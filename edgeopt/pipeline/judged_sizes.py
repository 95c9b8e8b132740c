"""The sizes of a network's dynamic dimensions at which it is judged, and inputs of these sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.bundle.manifest import DynamicDimension
from edgeopt.config.shapes import InputShapes
from edgeopt.errors import InputError
from edgeopt.task import CheckedTask
from edgeopt.task.dynamic_axes import BATCH, Dims
from edgeopt.tasks.given.onnx_file import OnnxTask

DimensionSizes = dict[str, int]
"""Name of a dynamic dimension to its size, without the batch."""


def judged_sizes(
    task: CheckedTask | OnnxTask, shapes: Sequence[InputShapes], batch_size: int, source: str = "--shape"
) -> tuple[DimensionSizes, ...]:
    """Return the sizes that shapes ask for; without any, those of the example inputs (a given file's largest sample).

    Args:
        task: Its inputs are named by the shapes.
        shapes: Each is a case that has to keep the limits.
        batch_size: At which the limits apply.
        source: What gives the shapes: the subject of the sentence in errors.

    Raises:
        InputError: a shape names an input that does not exist, or has a size that the network cannot take.
    """
    example = {
        axis.name: int(shape[dim])
        for shape, dims in zip(_example_shapes(task), dynamic_dims(task), strict=True)
        for dim, axis in dims.items()
    }
    return tuple({**example, **_sizes(task, one, batch_size, source)} for one in shapes) or (example,)


def _example_shapes(task: CheckedTask | OnnxTask) -> list[tuple[int, ...]]:
    values: Sequence[Any] = task.example_inputs
    return [tuple(value.shape) for value in values]


def dynamic_dims(task: CheckedTask | OnnxTask) -> tuple[Dims, ...]:
    """Return the dynamic dimensions of each input besides the batch."""
    return task.dynamic_dims if isinstance(task, OnnxTask) else task.interface.dynamic_dims


def dynamic_dimensions(task: CheckedTask | OnnxTask, judged: Sequence[DimensionSizes]) -> tuple[DynamicDimension, ...]:
    """Describe the dynamic dimensions of the inputs besides the batch, for apps."""
    axes = dict.fromkeys(axis for dims in dynamic_dims(task) for axis in dims.values())
    return tuple(
        DynamicDimension(
            name=axis.name,
            min_size=axis.min_size,
            max_size=axis.max_size,
            judged_at=tuple(dict.fromkeys(sizes[axis.name] for sizes in judged)),
        )
        for axis in axes
    )


def _sizes(task: CheckedTask | OnnxTask, shapes: InputShapes, batch_size: int, source: str) -> DimensionSizes:
    sizes: DimensionSizes = {}
    for name, shape in shapes.items():
        if name not in task.input_names:
            raise InputError(f"{source} names the input '{name}', but {task.spec} has {', '.join(task.input_names)}.")
        index = task.input_names.index(name)
        all_dims = task.graph_dims if isinstance(task, OnnxTask) else task.interface.graph_dims
        example, dims = _example_shapes(task)[index], all_dims[index]
        if len(shape) != len(example):
            raise InputError(f"{source} gives '{name}' {len(shape)} dimensions, but it has {len(example)}: {example}.")
        for dim, size in enumerate(shape):
            axis = dims.get(dim)
            problem = f"{source} gives '{name}' size {size} in dimension {dim}"
            if axis is None and size != example[dim]:
                advice = (
                    ""
                    if isinstance(task, OnnxTask)
                    else (f" Name the dimension in dynamic_axes of {task.spec} if it may change.")
                )
                raise InputError(f"{problem}, but the network has {example[dim]} there.{advice}")
            if axis is None:
                continue
            if axis.name == BATCH and size != batch_size:
                raise InputError(f"{problem}, its batch, but the limits apply at a batch size of {batch_size}.")
            if size < axis.min_size or (axis.max_size is not None and size > axis.max_size):
                limits = f"{axis.min_size} to {axis.max_size or 'any'}"
                raise InputError(f"{problem}, outside the range of '{axis.name}', {limits}.")
            if sizes.setdefault(axis.name, size) != size:
                raise InputError(f"{problem}, but '{axis.name}' is {sizes[axis.name]} in another input.")
    sizes.pop(BATCH, None)
    return sizes


def resize_arrays(
    task: CheckedTask | OnnxTask, arrays: Mapping[str, NDArray[Any]], sizes: DimensionSizes
) -> dict[str, NDArray[Any]]:
    """Return one batch of inputs with other sizes of its dynamic dimensions: cut, or repeated from the start."""
    if not sizes:
        return dict(arrays)
    resized = {}
    for (name, value), dims in zip(arrays.items(), dynamic_dims(task), strict=True):
        changed = value
        for dim, axis in dims.items():
            if axis.name in sizes and changed.shape[dim] != sizes[axis.name]:
                changed = np.take(changed, np.arange(sizes[axis.name]) % changed.shape[dim], dim)
        resized[name] = changed
    return resized


def parity_sizes(task: CheckedTask, batches: Sequence[Mapping[str, NDArray[Any]]]) -> tuple[DimensionSizes, ...]:
    """Return three choices of sizes on which files are compared with the network: example, small and large.

    Small and large are the smallest and largest sizes of the selection set; if it has none below or above the
    example's, half and twice that, as far as the given range allows.
    """
    if not any(task.interface.dynamic_dims):
        return ({},)
    (example,) = judged_sizes(task, (), 1)
    small, large = dict(example), dict(example)
    for index, dims in enumerate(task.interface.dynamic_dims):
        for dim, axis in dims.items():
            seen = [int(batch[task.input_names[index]].shape[dim]) for batch in batches] + [example[axis.name]]
            low = min(seen) if min(seen) < example[axis.name] else max(2, example[axis.name] // 2)
            high = max(seen) if max(seen) > example[axis.name] else 2 * example[axis.name]
            small[axis.name] = max(low, axis.min_size)
            large[axis.name] = high if axis.max_size is None else min(high, axis.max_size)
    return (example, small, large)
