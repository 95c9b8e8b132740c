"""What a graph says of its inputs, and which of their dimensions is the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx

from edgeopt.graph.given.batch import find_declared_batch

Dimensions = list[int | None]
"""Of an input as the graph declares it; None is a dynamic dimension."""
InputAxes = dict[str, int | None]
"""Input to the dimension that is its batch; None if all samples share it."""


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

    Args:
        inputs: Of the graph.
        given: Those that the user named.
    """
    declared = {
        spec.name: None
        if spec.dimensions is None
        else [name if size is None else size for size, name in zip(spec.dimensions, spec.names, strict=True)]
        for spec in inputs
    }
    return find_declared_batch(declared) | dict(given or {})


def with_own_names(inputs: Sequence[InputSpec], shapes: Sequence[Mapping[str, Sequence[int]]]) -> tuple[InputSpec, ...]:
    """Return inputs of which no two dimensions share a name unless the data have one size there.

    Dimensions of one name have one size by ONNX's rules, but files call height and width by one name. The first
    dimension keeps it.

    Args:
        inputs: Of the graph.
        shapes: For each group of samples, the shape of each input.
    """
    known: dict[str, tuple[int, ...]] = {}

    def own(spec: InputSpec, axis: int, name: str) -> str:
        sizes = tuple(shape[spec.name][axis] for shape in shapes)
        return name if not name or known.setdefault(name, sizes) == sizes else ""

    named = []
    for spec in inputs:
        fits = all(len(shape.get(spec.name, ())) == len(spec.names) for shape in shapes)
        names = tuple(own(spec, axis, name) for axis, name in enumerate(spec.names)) if fits else spec.names
        named.append(spec._replace(names=names))
    return tuple(named)


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
