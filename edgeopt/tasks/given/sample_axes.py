"""Which dimension of an output is the samples, found from its shapes for batches of several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

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
