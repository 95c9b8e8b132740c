"""What a graph says of its inputs, and which of their dimensions is the batch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx

Dimensions = list[int | None]
"""Of an input as the graph declares it; None is a dynamic dimension."""
InputAxes = dict[str, int | None]
"""Input to the dimension that is its batch; None if all samples share it."""
_LIKE_A_BATCH = re.compile(r"batch", re.IGNORECASE)
_POSITIONS = (0, 1)
"""Dimensions that are a batch in practice: the first, or the second after layers or time."""


class InputSpec(NamedTuple):
    """An input of the graph."""

    name: str
    dtype: np.dtype[Any]
    dimensions: Dimensions | None
    """None if the graph does not say."""
    names: tuple[str, ...]
    """Of the dimensions; empty for one without a name."""

    @property
    def shown(self) -> str:
        """The dimensions with their names."""
        sizes = zip(self.dimensions or (), self.names, strict=True)
        return f"[{', '.join(str(size or name or '?') for size, name in sizes)}]"

    @property
    def batch(self) -> int | None:
        """The fixed first dimension; None if it is dynamic, or there is none."""
        return self.dimensions[0] if self.dimensions else None

    def size(self, axis: int | None) -> int | None:
        """Return the fixed size of a dimension; None if it is dynamic."""
        return None if axis is None or not self.dimensions else self.dimensions[axis]


def describe_inputs(values: Sequence[onnx.ValueInfoProto]) -> tuple[InputSpec, ...]:
    """Return what a graph says of its inputs, which are tensors of numbers."""
    return tuple(_describe(value) for value in values)


def _describe(value: onnx.ValueInfoProto) -> InputSpec:
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    names = tuple("" if size else dim.dim_param for size, dim in zip(dims, tensor.shape.dim, strict=True))
    return InputSpec(value.name, np.dtype(dtype), dims if tensor.HasField("shape") else None, names)


def declared_axes(inputs: Sequence[InputSpec], given: Mapping[str, int] | None = None) -> InputAxes:
    """Return the dimension of each input that is the batch by what the graph says.

    The batch has the same name everywhere. An input such as a state of ``[2, batch, 128]`` has it in dimension 1, and
    so has one whose first dimension is fixed and whose second is its only dynamic one, next to inputs whose first is
    dynamic.

    Args:
        inputs: Of the graph.
        given: Those that the user said.
    """
    given = given or {}
    batch = _batch_name(inputs)
    has_dynamic = any(spec.dimensions and spec.batch is None for spec in inputs)
    axes: InputAxes = {}
    for spec in inputs:
        dims = spec.dimensions
        dynamic = [axis for axis, size in enumerate(dims or ()) if size is None]
        if spec.name in given:
            axes[spec.name] = given[spec.name]
        elif dims is not None and not dims:
            axes[spec.name] = None
        elif batch and batch in spec.names[: len(_POSITIONS)]:
            axes[spec.name] = spec.names.index(batch)
        elif has_dynamic and spec.batch is not None and dynamic == [1]:
            axes[spec.name] = 1
        else:
            axes[spec.name] = 0
    return axes


def _batch_name(inputs: Sequence[InputSpec]) -> str:
    """Return the name of the batch: one that reads like it, or else the most frequent in the first dimension."""
    named = [name for spec in inputs for name in spec.names[: len(_POSITIONS)] if _LIKE_A_BATCH.search(name)]
    first = [spec.names[0] for spec in inputs if spec.names and spec.names[0]]
    found = Counter(named or first).most_common(1)
    return found[0][0] if found else ""


class OpenDimension(NamedTuple):
    """A dynamic dimension of an input that is not the batch."""

    axis: int
    name: str
    """Of the graph, or made from the input's name."""


def open_dimensions(spec: InputSpec, batch_axis: int | None) -> tuple[OpenDimension, ...]:
    """Return the dynamic dimensions of an input besides the batch."""
    return tuple(
        OpenDimension(axis, spec.names[axis] or f"{spec.name}[{axis}]")
        for axis, size in enumerate(spec.dimensions or ())
        if size is None and axis != batch_axis
    )
