"""Which dimension of an output is the samples, found from its shapes for batches of several sizes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.tasks.onnx_data.specs import InputAxes, InputSpec

_Shape = tuple[int, ...]


def find_sample_axis(
    shapes: Sequence[_Shape], counts: Sequence[int], fixed_batch: int | None, *, may_be_second: bool
) -> int | str | None:
    """Return the dimension of an output that is the samples, or None if a whole output is that of the only sample.

    Args:
        shapes: Of the output for several batches.
        counts: Samples in each batch.
        fixed_batch: The only batch size that the graph takes.
        may_be_second: Whether an input has its batch in dimension 1, so that an output may have it there for one size.

    Returns:
        The dimension; or words on the number of rows that shows that there is none.
    """
    is_told_by_sizes = len(set(counts)) > 1
    for axis in (0, 1) if is_told_by_sizes or may_be_second else (0,):
        if all(len(shape) > axis and shape[axis] == count for shape, count in zip(shapes, counts, strict=True)):
            return axis
    if fixed_batch == 1 and len(set(shapes)) == 1:
        return None
    shape, count = next(
        (shape, count) for shape, count in zip(shapes, counts, strict=True) if not shape or shape[0] != count
    )
    rows = "a single number" if not shape else f"{shape[0]} row{'' if shape[0] == 1 else 's'}"
    return f"{rows} for {count} sample{'' if count == 1 else 's'}"


def samples_first(value: Any, axis: int | None) -> Any:
    """Return an output with its samples in dimension 0."""
    if axis is None:
        return np.asarray(value)[None]
    return value if axis == 0 else np.moveaxis(value, axis, 0)


def explain_no_samples(path: Path, listed: str, advice: str) -> str:
    """Return why no output of a file can be judged, and what to do.

    Args:
        path: The file.
        listed: Its outputs, with reasons.
        advice: What ``advise_batch_of_one`` returned, if it may help.
    """
    fixed = f" If the output of one sample has one shape, a batch that is fixed at 1 is enough: {advice}"
    return (
        f"{path}: the rows of output {listed} are not samples, so files cannot be compared sample by sample. Export "
        "the model without this last step (for a detector: without non-maximum suppression, nms=False), or write a "
        f"task in Python whose score() judges it.{fixed if advice else ''}"
    )


def advise_batch_of_one(path: Path, inputs: Sequence[InputSpec], axes: InputAxes) -> str:
    """Return the command that fixes a file's batch at 1, for users who cannot export it again.

    Args:
        path: The file.
        inputs: Of the file.
        axes: The batch of each.

    Returns:
        A sentence that ends with a full stop; empty if the batch has no name in the file, or several.
    """
    names = {spec.names[axis] for spec in inputs if (axis := axes[spec.name]) is not None and axis < len(spec.names)}
    name = names.pop() if len(names) == 1 else ""
    if not name:
        return ""
    fixed = path.with_name(f"{path.stem}-batch-1.onnx")
    files = f"{shlex.quote(str(path))} {shlex.quote(str(fixed))}"
    return (
        f"`python -m onnxruntime.tools.make_dynamic_shape_fixed --dim_param {shlex.quote(name)} --dim_value 1 {files}` "
        "writes such a file."
    )
