"""``GivenSamples``: what every source of data returns. Samples of equal shapes are stacked into a group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError
from edgeopt.records.preprocessing import Preprocessing
from edgeopt.tasks.onnx_data.specs import InputAxes, InputSpec, with_own_names

InputArrays = dict[str, NDArray[Any]]
LABELS_KEY = "labels"


class SampleGroup(NamedTuple):
    """Samples whose inputs have the same shapes."""

    inputs: InputArrays
    """In the model's order, the samples along each input's batch; those that all samples share are whole."""
    labels: NDArray[Any] | None
    """One row per sample."""
    samples: int
    """How many there are."""

    def take(self, index: Any, axes: InputAxes) -> SampleGroup:
        """Return the samples with these numbers."""
        index = np.asarray(index)
        inputs = {
            name: values if (axis := axes[name]) is None else np.take(values, index, axis)
            for name, values in self.inputs.items()
        }
        return SampleGroup(inputs, None if self.labels is None else self.labels[index], len(index))

    def cut(self, start: int, stop: int, axes: InputAxes) -> SampleGroup:
        """Return the samples from ``start`` up to ``stop``, without copying them."""
        inputs = {
            name: values if (axis := axes[name]) is None else values[(slice(None),) * axis + (slice(start, stop),)]
            for name, values in self.inputs.items()
        }
        labels = None if self.labels is None else self.labels[start:stop]
        return SampleGroup(inputs, labels, min(stop, self.samples) - start)

    def values_of_one(self, axes: InputAxes) -> int:
        """Return how many values one sample has."""
        total = sum(values.size for name, values in self.inputs.items() if axes[name] is not None)
        return total // max(1, self.samples)


class GivenSamples(NamedTuple):
    """The user's data, as the model takes them."""

    groups: tuple[SampleGroup, ...]
    """At least one sample."""
    axes: InputAxes
    """The dimension of each input that is its batch; None for one that all samples share."""
    notes: tuple[str, ...] = ()
    """For the report: casts, preprocessing, and arrays that are not used."""
    labels_source: str = ""
    """Where the labels come from, for messages; empty without labels."""
    preprocessing: dict[str, Preprocessing] | None = None
    """By input, how it was made from files; None if the data are arrays."""

    @property
    def samples(self) -> int:
        """The number of samples."""
        return sum(group.samples for group in self.groups)

    def name_dimensions(self, inputs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
        """Return inputs of which no two dimensions share a name if their sizes differ in these samples."""
        shapes = [{name: values.shape for name, values in group.inputs.items()} for group in self.groups]
        return with_own_names(inputs, shapes)


def group_samples(samples: Iterable[SampleGroup], axes: InputAxes, source: str) -> tuple[SampleGroup, ...]:
    """Return samples in groups of equal shapes, the groups in the order of their first samples.

    Args:
        samples: Any number of samples each.
        axes: The batch of each input.
        source: Names the data in errors.

    Raises:
        DataError: an input that all samples share differs between them, or only some samples have labels.
    """
    alike: dict[Any, list[SampleGroup]] = {}
    shared: InputArrays = {}
    for one in samples:
        for name in (name for name, axis in axes.items() if axis is None):
            if not np.array_equal(shared.setdefault(name, one.inputs[name]), one.inputs[name]):
                raise DataError(
                    f"{source}: '{name}' has no batch, so all samples share it, but it differs between samples. "
                    "Export the model with a batch in this input, or give it one value."
                )
        alike.setdefault(_shapes(one, axes), []).append(one)
    if not alike:
        raise DataError(f"{source} has no samples.")
    if len({one.labels is None for group in alike.values() for one in group}) > 1:
        raise DataError(f"{source}: some samples have labels and others have none. Give all of them a label, or none.")
    return tuple(_stack(group, axes) for group in alike.values())


def _shapes(one: SampleGroup, axes: InputAxes) -> tuple[Any, ...]:
    shapes = [(*values.shape[:axis], *values.shape[axis + 1 :]) for values, axis in _batched(one.inputs, axes)]
    return (*shapes, None if one.labels is None else one.labels.shape[1:])


def _batched(inputs: Mapping[str, NDArray[Any]], axes: InputAxes) -> list[tuple[NDArray[Any], int]]:
    return [(values, axis) for name, values in inputs.items() if (axis := axes[name]) is not None]


def _stack(group: Sequence[SampleGroup], axes: InputAxes) -> SampleGroup:
    if len(group) == 1:
        return group[0]
    first = group[0]
    inputs = {
        name: values if (axis := axes[name]) is None else np.concatenate([one.inputs[name] for one in group], axis)
        for name, values in first.inputs.items()
    }
    labels = None if first.labels is None else np.concatenate([one.labels for one in group if one.labels is not None])
    return SampleGroup(inputs, labels, sum(one.samples for one in group))
