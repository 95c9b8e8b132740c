"""How a value nests tensors in tuples, lists, dicts, dataclasses and outputs of Hugging Face models.

In: a value. Out: its tensors (or arrays) in a flat tuple, and a ``Nesting`` that puts others in their places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeopt.errors import TaskError

CONSTANTS = (bool, int, float, complex, str, bytes, type(None), torch.SymInt, torch.SymFloat, torch.SymBool)
"""Types that are part of the structure: they are the same for every batch."""


class Nesting:
    """Where the tensors of a value are.

    Attributes:
        count: How many tensors there are.
        names: A name for each, from keys, fields and positions: ``("logits",)``, ``("0", "1.boxes")``; the name of a
            single tensor is empty.
    """

    def __init__(
        self, rebuild: Callable[[Iterator[Any]], Any], names: tuple[str, ...], constants: tuple[Any, ...]
    ) -> None:
        self._rebuild = rebuild
        self.names = names
        self.constants = constants
        self.count = len(names)

    def nest(self, leaves: Iterable[Any]) -> Any:
        """Return a value of this structure with other tensors, or arrays, in the same order."""
        values = tuple(leaves)
        if len(values) != self.count:
            raise ValueError(f"expected {self.count} values, got {len(values)}")
        return self._rebuild(iter(values))


def flatten(value: Any) -> tuple[tuple[Any, ...], Nesting]:
    """Take a value apart.

    Returns:
        Its tensors and numpy arrays, in order, and its nesting. Numbers, strings and None belong to the nesting.

    Raises:
        TaskError: something in it is neither a tensor, a number nor a container.
    """
    leaves: list[Any] = []
    names: list[str] = []
    constants: list[Any] = []
    rebuild = _take_apart(value, "", leaves, names, constants)
    return tuple(leaves), Nesting(rebuild, tuple(names), tuple(constants))


def tensors_of(value: Any) -> list[Any]:
    """Return the tensors and arrays of a nested value; whatever else is in it is left out."""
    if isinstance(value, Tensor | np.ndarray):
        return [value]
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in tensors_of(item)]
    if _is_dataclass(value):
        return [leaf for field in dataclasses.fields(value) for leaf in tensors_of(getattr(value, field.name))]
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in tensors_of(item)]
    return []


def words_of(value: Any) -> list[str]:
    """Return the strings of a nested value, such as transcripts."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [word for item in value.values() for word in words_of(item)]
    return [word for item in value for word in words_of(item)] if isinstance(value, tuple | list) else []


def map_tensors(function: Callable[[Any], Any], value: Any) -> Any:
    """Return a nested value with a function applied to each tensor and array; whatever else is in it stays."""
    if isinstance(value, Tensor | np.ndarray):
        return function(value)
    if isinstance(value, Mapping):
        return _make_mapping(value, [map_tensors(function, item) for item in value.values()])
    if _is_dataclass(value):
        return _make_dataclass(
            value,
            {field.name: map_tensors(function, getattr(value, field.name)) for field in dataclasses.fields(value)},
        )
    if isinstance(value, tuple | list):
        return _make_sequence(value, [map_tensors(function, item) for item in value])
    return value


def first_samples(inputs: Any, count: int, batch: int) -> Any:
    """Return the first samples of nested inputs: each tensor is cut in the first dimension of the batch's size, if any.

    Args:
        inputs: One batch.
        count: How many samples to keep.
        batch: How many samples there are.
    """

    def cut(value: Any) -> Any:
        axis = next((dim for dim, size in enumerate(value.shape[:2]) if size == batch), None)
        return value if axis is None else value[(slice(None),) * axis + (slice(count),)]

    return map_tensors(cut, inputs)


def _take_apart(
    value: Any, name: str, leaves: list[Any], names: list[str], constants: list[Any]
) -> Callable[[Iterator[Any]], Any]:
    """Collect the tensors of ``value``, and return a function that puts others in their places."""
    if isinstance(value, Tensor | np.ndarray):
        leaves.append(value)
        names.append(name)
        return next
    if isinstance(value, CONSTANTS) or np.isscalar(value):
        constants.append(value)
        return lambda _: value
    if isinstance(value, Mapping):
        children = [_take_apart(item, _join(name, key), leaves, names, constants) for key, item in value.items()]
        return lambda values: _make_mapping(value, [child(values) for child in children])
    if _is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value)]
        members = {
            field: _take_apart(getattr(value, field), _join(name, field), leaves, names, constants) for field in fields
        }
        return lambda values: _make_dataclass(value, {field: member(values) for field, member in members.items()})
    if isinstance(value, tuple | list):
        keys = getattr(value, "_fields", None) or range(len(value))
        children = [
            _take_apart(item, _join(name, key), leaves, names, constants) for key, item in zip(keys, value, strict=True)
        ]
        return lambda values: _make_sequence(value, [child(values) for child in children])
    raise TaskError(
        f"{name or 'the value'} is a {type(value).__module__}.{type(value).__qualname__}, which is neither a tensor, a "
        "number nor a tuple, list, dict or dataclass of these."
    )


def _join(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _make_mapping(like: Mapping[Any, Any], items: Sequence[Any]) -> Any:
    """Return a mapping with the same keys. Outputs of Hugging Face models stay what they are; others become dicts."""
    made = dict(zip(like, items, strict=True))
    if _is_dataclass(like):
        return type(like)(**{key: item for key, item in made.items() if isinstance(key, str)})
    return made


def _make_dataclass(like: Any, members: dict[str, Any]) -> Any:
    """Return a dataclass with other members, without calling its constructor, which may check or convert them."""
    made = object.__new__(type(like))
    for name, member in members.items():
        object.__setattr__(made, name, member)
    return made


def _make_sequence(like: Sequence[Any], items: list[Any]) -> Any:
    """Return a list, a tuple or a named tuple."""
    if isinstance(like, list):
        return items
    if hasattr(like, "_fields"):
        return type(like)(*items)
    return tuple(items)
