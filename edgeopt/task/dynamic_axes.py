"""Dimensions besides the batch whose size may change: the length of a sequence, the height and width of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from edgeopt.errors import TaskError

if TYPE_CHECKING:
    from torch import Tensor

BATCH = "batch"
"""Name of the batch in a graph."""


class DynamicAxis(NamedTuple):
    """A dynamic dimension of an input; inputs that share a name have the same size there."""

    name: str
    min_size: int = 1
    max_size: int | None = None
    """None: there is no limit."""


Dims = dict[int, DynamicAxis]
"""Dimension to what is known about it, for one input."""


AxisNames: TypeAlias = Sequence[Mapping[int, str]]
"""For each input, its dynamic dimensions and their names; the batch is called ``batch``."""


def read_dynamic_axes(given: Any, names: Sequence[str], example: Sequence[Tensor], spec: str) -> tuple[Dims, ...]:
    """Read the member ``dynamic_axes`` of a task: input name to dimension to a name or ``(name, min, max)``.

    Args:
        given: Such as ``{"tokens": {1: ("length", 1, 512)}, "mask": {1: "length"}}``; None for no dynamic dimension.
        names: Of the inputs.
        example: The inputs, in the same order.
        spec: Names the task in errors.

    Raises:
        TaskError: it names an input or a dimension that does not exist, or the example's size is outside the range.
    """
    if given is None:
        return ({},) * len(names)
    if not isinstance(given, Mapping) or not all(isinstance(dims, Mapping) for dims in given.values()):
        raise TaskError(
            f'{spec}: dynamic_axes has to be a dict such as {{"input": {{1: "length"}}}} or {{"input": {{1: ("length", '
            f"1, 512)}}}}, not {given!r:.80}."
        )
    unknown = [str(name) for name in given if name not in names]
    if unknown:
        raise TaskError(f"{spec}: dynamic_axes names the input '{unknown[0]}', but the inputs are {', '.join(names)}.")
    ranges: dict[str, DynamicAxis] = {}
    for name, dims in given.items():
        for dim, value in dims.items():
            axis = _read_axis(value, f"{spec}: dynamic_axes['{name}'][{dim}]")
            known = ranges.get(axis.name)
            ranges[axis.name] = axis if known is None or known == DynamicAxis(known.name) else known
    found = []
    for name, value in zip(names, example, strict=True):
        dims = given.get(name, {})
        for dim in dims:
            if not isinstance(dim, int) or not 0 <= dim < value.dim():
                raise TaskError(
                    f"{spec}: dynamic_axes['{name}'] names dimension {dim!r}, but example_inputs() has '{name}' of "
                    f"shape {tuple(value.shape)}. Count dimensions from 0."
                )
        found.append({dim: ranges[_read_axis(dims[dim], "").name] for dim in dims})
        for dim, axis in found[-1].items():
            _check_size(axis, value.shape[dim], f"{spec}: example_inputs() has '{name}' of shape {tuple(value.shape)}")
    return tuple(found)


def with_sizes(value: Tensor, sizes: Mapping[int, int]) -> Tensor:
    """Return a tensor with other sizes in some dimensions: cut, or repeated from the start.

    Token ids stay token ids, and pixels stay pixels.
    """
    import torch  # not with this module: a given .onnx needs only its names

    for dim, size in sizes.items():
        if value.shape[dim] != size:
            value = value.index_select(dim, torch.arange(size) % value.shape[dim])
    return value


def _read_axis(value: Any, source: str) -> DynamicAxis:
    if isinstance(value, str) and value != BATCH:
        return DynamicAxis(value)
    if isinstance(value, tuple | list) and len(value) in (2, 3) and isinstance(value[0], str) and value[0] != BATCH:
        sizes = value[1:]
        if all(isinstance(size, int) for size in sizes if size is not None) and (sizes[0] or 1) >= 1:
            axis = DynamicAxis(value[0], sizes[0] or 1, sizes[1] if len(sizes) > 1 else None)
            if axis.max_size is None or axis.max_size > axis.min_size:
                return axis
    raise TaskError(
        f'{source} has to be a name or (name, min, max), such as "length" or ("length", 1, 512), not {value!r:.60}; '
        f"the name '{BATCH}' is taken."
    )


def _check_size(axis: DynamicAxis, size: int, source: str) -> None:
    if size < 2:
        raise TaskError(
            f"{source}: the dynamic dimension '{axis.name}' has size {size} there, which a trace would take for a "
            "constant. Give an example with at least 2."
        )
    if size < axis.min_size or (axis.max_size is not None and size > axis.max_size):
        raise TaskError(
            f"{source}: '{axis.name}' has size {size} there, outside the range of dynamic_axes, {axis.min_size} to "
            f"{axis.max_size or 'any'}."
        )


def graph_axes(dims: Sequence[Dims]) -> tuple[dict[int, str], ...]:
    """Return the names of the dynamic dimensions of each input."""
    return tuple({dim: axis.name for dim, axis in one.items()} for one in dims)
