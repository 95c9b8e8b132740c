"""What is known about an output or about labels: shape, type, range and sums, over all batches of a set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError

_SUM_TOLERANCE = 2e-3
"""How far probabilities may be from a sum of 1: half of float16's spacing at 1, for a few classes."""
_MAX_KNOWN_VALUES = 3

Sizes = tuple[int | None, ...]


@dataclass(frozen=True)
class ArrayFacts:
    """An array over a whole set."""

    name: str
    samples: int
    shape: Sizes
    """Of one sample; None for a size that differs from batch to batch."""
    dtype: np.dtype[Any]
    low: float
    """Smallest value; NaN does not count."""
    high: float
    whole: bool
    """Whether every value is a whole number."""
    nans: int
    values: frozenset[float]
    """The different values, if there are at most three; otherwise empty."""
    distributions: frozenset[int]
    """Axes, counted with the batch, along which all values are probabilities, or their logarithms, that add up to 1."""
    rms: float
    """Root mean square."""

    @property
    def is_integer(self) -> bool:
        """Whether the type is an integer or bool."""
        return self.dtype.kind in "iub"

    def only(self, *values: float) -> bool:
        """Tell whether no other values than these occur, and at least one does."""
        return bool(self.values) and self.values <= set(values)

    def __str__(self) -> str:
        sizes = ", ".join(["N", *("?" if size is None else str(size) for size in self.shape)])
        comma = "," if not self.shape else ""
        return f"'{self.name}' of shape ({sizes}{comma}), {self.dtype.name}, values {self.low:.4g} to {self.high:.4g}"


def check_labels(labels: Any, source: str) -> NDArray[Any]:
    """Return labels as an array that can be counted and compared.

    Args:
        labels: As the user gave them.
        source: Where they come from, for the error: ``data.npz: 'labels'``.

    Raises:
        DataError: they are no array, one number for the whole set, or neither numbers nor bools.
    """
    labels = unwrapped(labels)
    wanted = "class numbers 0, 1, 2 ... or real numbers, with one row per sample"
    if isinstance(labels, dict | tuple | list) and not all(isinstance(item, int | float) for item in labels):
        keys = f" ({', '.join(map(str, labels))})" if isinstance(labels, dict) else ""
        raise DataError(
            f"{source}: the labels are a {type(labels).__name__}{keys}, not an array of numbers. Give {wanted}: yield "
            "(inputs, labels) with the part that is judged, or write a Task with its own loss() and score() for "
            "targets of several parts."
        )
    array = np.asarray(labels)
    if array.dtype.kind not in "iubf":
        raise DataError(
            f"{source}: the labels have type {array.dtype.name}. Give {wanted}: "
            "`names, labels = numpy.unique(words, return_inverse=True)` numbers words."
        )
    if array.ndim == 0:
        raise DataError(f"{source}: the labels are a single number (shape ()). Give {wanted}.")
    return array


def unwrapped(labels: Any) -> Any:
    """Return the only entry of a tuple, a list or a mapping, such as ``{"labels": array}``; anything else as it is."""
    while isinstance(labels, Mapping | tuple | list) and len(labels) == 1:
        (labels,) = labels.values() if isinstance(labels, Mapping) else labels
    return labels


def flat_arrays(outputs: Any) -> list[NDArray[Any]]:
    """Return the arrays of outputs of any nesting (mappings, tuples, lists, data classes), in their order."""
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, type | Mapping):
        outputs = {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
    if isinstance(outputs, Mapping):
        return [array for item in outputs.values() for array in flat_arrays(item)]
    if isinstance(outputs, tuple | list):
        return [array for item in outputs for array in flat_arrays(item)]
    return [] if outputs is None else [np.asarray(outputs)]


def collect_facts(name: str, batches: Sequence[NDArray[Any]]) -> ArrayFacts:
    """Return what is known about an array that comes in batches, the samples on axis 0.

    Raises:
        DataError: the batches differ in their number of axes, or have none.
    """
    dims = {batch.ndim for batch in batches}
    if len(dims) != 1 or 0 in dims:
        shapes = sorted({batch.shape for batch in batches})
        raise DataError(f"'{name}' has batches of shapes {shapes[:4]}: every batch needs the same axes, samples first.")
    sizes = [{batch.shape[axis] for batch in batches} for axis in range(1, dims.pop())]
    filled = [batch for batch in batches if batch.size]
    if not filled:
        raise DataError(f"'{name}' holds no values (shape {batches[0].shape}).")
    low, high, nans, whole, squares, values = np.inf, -np.inf, 0, True, 0.0, set[float]()
    for batch in filled:
        numbers = batch.astype(np.float64)
        known = numbers[~np.isnan(numbers)]
        nans += numbers.size - known.size
        if known.size:
            low, high = min(low, float(known.min())), max(high, float(known.max()))
            whole = whole and bool(np.all(np.isfinite(known)) and np.all(known == np.rint(known)))
            squares += float(np.square(known[np.isfinite(known)]).sum())
            if len(values) <= _MAX_KNOWN_VALUES:
                values.update(map(float, np.unique(known)[: _MAX_KNOWN_VALUES + 1]))
    return ArrayFacts(
        name=name,
        samples=sum(map(len, batches)),
        shape=tuple(found.pop() if len(found) == 1 else None for found in sizes),
        dtype=batches[0].dtype,
        low=float(low),
        high=float(high),
        whole=whole,
        nans=nans,
        values=frozenset(values) if len(values) <= _MAX_KNOWN_VALUES else frozenset(),
        distributions=_distributions(filled) if not nans else frozenset(),
        rms=float(np.sqrt(squares / sum(batch.size for batch in filled))),
    )


def _distributions(batches: Iterable[NDArray[Any]]) -> frozenset[int]:
    """Return the axes along which every row is a distribution over more than one class."""
    found: set[int] | None = None
    for batch in batches:
        axes = [axis for axis in {1, batch.ndim - 1} if 1 <= axis < batch.ndim and batch.shape[axis] > 1]
        mine = {axis for axis in axes if _is_distribution(batch.astype(np.float64), axis)}
        found = mine if found is None else found & mine
    return frozenset(found or ())


def _is_distribution(numbers: NDArray[np.float64], axis: int) -> bool:
    if numbers.min() >= 0:
        return bool(np.all(np.abs(numbers.sum(axis) - 1) < _SUM_TOLERANCE))
    if numbers.max() <= _SUM_TOLERANCE:
        return bool(np.all(np.abs(np.exp(numbers).sum(axis) - 1) < _SUM_TOLERANCE))
    return False


def squeezed(shape: Sizes) -> Sizes:
    """Return a shape without its sizes of 1."""
    return tuple(size for size in shape if size != 1)
