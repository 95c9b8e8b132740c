"""From named arrays to a group of samples: shapes, types and finite values, and as many rows of each input.

Each refusal names the file, the array, what was found and the next step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError
from edgeopt.graph.given.batch import is_like_batch
from edgeopt.tasks.onnx_data.array_types import check_finite, fit_type
from edgeopt.tasks.onnx_data.samples import InputArrays, SampleGroup
from edgeopt.tasks.onnx_data.specs import Dimensions, InputAxes, InputSpec


def make_group(
    path: Path | str, inputs: Sequence[InputSpec], arrays: Mapping[str, NDArray[Any]], axes: InputAxes
) -> tuple[SampleGroup, tuple[str, ...]]:
    """Return checked arrays as one group without labels, and notes on casts.

    A type is changed only if every value stays what it is, or from one float type to another; a note says so.

    Args:
        path: The file, or words for another source, for errors.
        inputs: Of the model.
        arrays: One of each input.
        axes: The batch of each.

    Raises:
        DataError: something does not fit.
    """
    notes: list[str] = []
    fitted: InputArrays = {}
    for spec in inputs:
        check_shape(path, spec, arrays[spec.name], axes[spec.name])
        fitted[spec.name], note = fit_type(path, spec.name, arrays[spec.name], spec.dtype)
        check_finite(path, spec.name, fitted[spec.name])
        notes += note
    return SampleGroup(fitted, None, _count_rows(path, fitted, axes)), tuple(notes)


def add_labels(
    path: Path | str, group: SampleGroup, labels: NDArray[Any], key: str, *, may_lack_rows: bool = False
) -> SampleGroup:
    """Return a group with labels, one row per sample.

    Args:
        path: The file, or words for another source, for errors.
        group: Without labels.
        labels: Of its samples.
        key: What the labels are called, for errors.
        may_lack_rows: Whether those of a single sample may be without a row for it.

    Raises:
        DataError: they are not numbers, or there is another number of them.
    """
    if labels.dtype.kind not in "biuf":
        raise DataError(
            f"{path}: '{key}' is {labels.dtype}; labels are numbers. Give class numbers in the order of the model's "
            "output, counted from 0."
        )
    check_finite(path, key, labels)
    if not labels.ndim and group.samples > 1:
        raise DataError(
            f"{path}: '{key}' is a single number, but there are {group.samples} samples. Give one label per row."
        )
    lacks_rows = not labels.ndim or (may_lack_rows and group.samples == 1 and len(labels) != 1)
    rows = labels[None] if lacks_rows else labels
    if len(rows) != group.samples:
        counts = {next(iter(group.inputs)): group.samples, key: len(rows)}
        raise DataError(f"{path}: every array needs the same number of rows, at least one; found {counts}.")
    return group._replace(labels=rows)


def check_shape(path: Path | str, spec: InputSpec, values: NDArray[Any], axis: int | None) -> None:
    """Check that an array has the sizes that the model takes, apart from the batch.

    Raises:
        DataError: it does not, with advice.
    """
    expected, found = spec.dimensions, values.shape
    if axis is not None and axis >= len(found):
        raise DataError(f"{path}: '{spec.name}' has shape {found}, which has no dimension {axis} for the samples.")
    if expected is None or _fits(expected, found, axis):
        return
    raise DataError(
        f"{path}: '{spec.name}' has shape {found}, but the model takes {spec.shown}{_advise(expected, found)}."
    )


def _fits(expected: Dimensions, shape: Sequence[int], batch: int | None) -> bool:
    return len(expected) == len(shape) and all(
        size is None or axis == batch or size == other
        for axis, (size, other) in enumerate(zip(expected, shape, strict=True))
    )


def _advise(expected: Dimensions, found: tuple[int, ...]) -> str:
    fixed = [size for size in expected[1:] if size is not None]
    if not expected:
        return ", one number that all samples share"
    if len(found) == len(expected) - 1 and list(found) == list(expected[1:]):
        return ": add a first dimension, with one row per sample"
    if len(found) == len(expected) > 2 and fixed and _fits(expected, (*found[:1], *found[-1:], *found[1:-1]), 0):
        return ": its channels come last; move them (numpy.moveaxis(x, -1, 1))"
    if len(found) == len(expected) > 2 and fixed and _fits(expected, (*found[:1], *found[2:], *found[1:2]), 0):
        return ": its channels come first; move them (numpy.moveaxis(x, 1, -1))"
    return ""


def _count_rows(path: Path | str, arrays: InputArrays, axes: InputAxes) -> int:
    """Return the number of samples, which every array has, and which is at least one."""
    counts = {name: values.shape[axis] for name, values in arrays.items() if (axis := axes[name]) is not None}
    if not counts:
        raise DataError(f"{path}: no input of the model has one row per sample, so there is nothing to score.")
    if len(set(counts.values())) != 1 or not min(counts.values()):
        unusual = [f"'{name}' in dimension {axis}" for name, axis in axes.items() if axis]
        where = f" ({', '.join(unusual)})" if unusual else ""
        raise DataError(
            f"{path}: every array needs the same number of rows, at least one; found {counts}{where}. If the samples "
            "of an input are in another dimension than the first, name it in its key, as in 'state:1'."
        )
    return int(next(iter(counts.values())))


def as_rows(spec: InputSpec, values: NDArray[Any], axis: int | None) -> NDArray[Any]:
    """Return the array of one sample with a batch of one; an array that has a batch already stays as it is.

    Args:
        spec: The input.
        values: With or without a batch.
        axis: Where the batch belongs; None if all samples share the input.
    """
    dims = spec.dimensions
    if axis is None or dims is None or values.ndim != len(dims) - 1:
        return values
    return np.expand_dims(values, axis)


def settle_axes(inputs: Sequence[InputSpec], declared: InputAxes, shapes: Mapping[str, tuple[int, ...]]) -> InputAxes:
    """Return the batch of each input as its arrays of several samples show it.

    An array is shared by all samples if the graph fixes its shape, which the array has, while the number of rows of
    others varies. One that is fixed too, such as a state of ``[2, 1, 64]`` given as ``(2, 50, 64)``, has its batch in
    dimension 1. All samples also share an array with another number of rows if the graph calls these otherwise than
    the batch: the prompts ``[classes, 512]`` of a detector whose images are ``[batch, 3, 640, 640]``.

    Args:
        inputs: Of the graph.
        declared: See ``edgeopt.tasks.onnx_data.specs.declared_axes``.
        shapes: Of the array of each input.
    """
    axes = dict(declared)
    fixed = {spec.name: tuple(spec.dimensions) for spec in inputs if spec.dimensions and None not in spec.dimensions}
    whole = {name for name, dims in fixed.items() if dims == shapes[name]}
    for name, dims in fixed.items():
        found = shapes[name]
        is_second = len(dims) == len(found) > 1 and dims[0] == found[0] != found[1] != dims[1]
        if name not in whole and is_second and dims[2:] == found[2:] and found[0] > 1:
            axes[name] = 1
    whole |= _called_otherwise(inputs, axes, shapes)
    varying = [spec.name for spec in inputs if shapes[spec.name] and spec.name not in whole]
    return {name: None if not shapes[name] or (name in whole and varying) else axis for name, axis in axes.items()}


def _called_otherwise(inputs: Sequence[InputSpec], axes: InputAxes, shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Return inputs whose rows are not samples: there are as many in no input whose rows the graph calls a batch."""
    rows: dict[str, tuple[str, int]] = {}
    for spec in inputs:
        axis = axes[spec.name]
        if axis is not None and axis < min(len(spec.names), len(shapes[spec.name])):
            rows[spec.name] = spec.names[axis], shapes[spec.name][axis]
    samples = {size for name, size in rows.values() if is_like_batch(name)}
    others = {name: size for name, (called, size) in rows.items() if called and not is_like_batch(called)}
    return {name for name, size in others.items() if samples and size not in samples}


def settle_axes_of_one(inputs: Sequence[InputSpec], declared: InputAxes) -> InputAxes:
    """Return the batch of each input if samples are given one by one.

    An input of fixed shape is shared by all samples if its first dimension isn't the batch size of the others.
    """
    sizes = [spec.size(declared[spec.name]) for spec in inputs if None in (spec.dimensions or ())]
    return {
        spec.name: None
        if sizes and spec.dimensions and None not in spec.dimensions and spec.batch not in sizes
        else declared[spec.name]
        for spec in inputs
    }
