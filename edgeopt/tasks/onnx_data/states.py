"""States of a recurrent model: inputs that take an output of the step before, over a sequence of chunks.

A sample is then a sequence: its arrays have one more dimension in front, the steps. The first step begins with zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeopt.errors import DataError, InputError, did_you_mean
from edgeopt.records.preprocessing import DataOptions
from edgeopt.tasks.onnx_data.samples import InputArrays, SampleGroup
from edgeopt.tasks.onnx_data.sounds import STEPS_DIMENSION
from edgeopt.tasks.onnx_data.specs import InputAxes, InputSpec, declared_axes


class SequenceStep(NamedTuple):
    """One batch of one step of several sequences."""

    group: SampleGroup
    continues: bool
    """Whether its states are outputs of the batch before."""


def check_states(path: Path, states: Mapping[str, str], inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Check that the user's states are inputs and outputs of the model.

    Raises:
        InputError: one is not, or every input is a state.
    """
    for name, output in states.items():
        for word, kind, known in ((name, "input", inputs), (output, "output", outputs)):
            if word not in known:
                raise InputError(
                    f"--state {name}={output}: {path} has no {kind} '{word}'{did_you_mean(word, known)}; its {kind}s "
                    f"are {', '.join(known)}."
                )
    if states and not set(inputs) - set(states):
        raise InputError(f"--state names every input of {path}; at least one takes data.")


def sequence_specs(inputs: Sequence[InputSpec], axes: InputAxes, states: Mapping[str, str]) -> tuple[InputSpec, ...]:
    """Return what the data of a model with states have to be: the batch, the steps, then each chunk.

    Args:
        inputs: Of the model.
        axes: The batch of each.
        states: Input to output.
    """
    return tuple(_with_steps(spec, axes[spec.name]) for spec in inputs if spec.name not in states)


def _with_steps(spec: InputSpec, axis: int | None) -> InputSpec:
    if axis is None or not spec.dimensions:
        return spec
    batch, *rest = [axis, *(other for other in range(len(spec.dimensions)) if other != axis)]
    dims = [spec.dimensions[batch], None, *(spec.dimensions[other] for other in rest)]
    names = (spec.names[batch], STEPS_DIMENSION, *(spec.names[other] for other in rest))
    return spec._replace(dimensions=dims, names=names)


def iterate_steps(
    sequences: SampleGroup, inputs: Sequence[InputSpec], axes: InputAxes, zeros: Mapping[str, tuple[int, ...]]
) -> Iterator[SequenceStep]:
    """Yield the batches of one group of sequences, with zeros for the states of every step.

    Args:
        sequences: Inputs of shape (samples, steps, ...), those without a batch whole; labels (samples, steps, ...).
        inputs: Of the model.
        axes: The batch of each of its inputs, states among them.
        zeros: The shape of each state for one sample, with its batch of 1.
    """
    steps = count_steps(sequences, axes)
    for step in range(steps):
        arrays: InputArrays = {}
        for spec in inputs:
            axis = axes[spec.name]
            if spec.name in zeros:
                shape = [sequences.samples if other == axis else size for other, size in enumerate(zeros[spec.name])]
                arrays[spec.name] = np.zeros(shape, spec.dtype)
            elif axis is None:
                arrays[spec.name] = sequences.inputs[spec.name]
            else:
                arrays[spec.name] = np.ascontiguousarray(np.moveaxis(sequences.inputs[spec.name][:, step], 0, axis))
        labels = None if sequences.labels is None else sequences.labels[:, step]
        yield SequenceStep(SampleGroup(arrays, labels, sequences.samples), step > 0)


def count_steps(sequences: SampleGroup, axes: InputAxes) -> int:
    """Return how many steps each of some sequences of equal lengths has."""
    return next(int(values.shape[1]) for name, values in sequences.inputs.items() if axes[name] is not None)


def check_sequences(source: str, groups: Sequence[SampleGroup], axes: InputAxes) -> None:
    """Check that sequences have steps, the same number in every input, and a label for each if they have labels.

    Raises:
        DataError: they do not.
    """
    for group in groups:
        counts = {name: values.shape[1] for name, values in group.inputs.items() if axes[name] is not None}
        if len(set(counts.values())) > 1 or not min(counts.values()):
            raise DataError(f"{source}: every input needs the same number of steps, at least one; found {counts}.")
        steps, labels = count_steps(group, axes), group.labels
        if labels is not None and (labels.ndim < 2 or labels.shape[1] != steps):
            raise DataError(
                f"{source}: the labels of a sequence of {steps} steps have shape {labels.shape[1:]}. With --state "
                "every step is scored: give a label for each, or leave the labels out."
            )


def state_shapes(
    path: Path, inputs: Sequence[InputSpec], options: DataOptions, axes: InputAxes
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each state for one sample, with its batch of 1.

    Raises:
        InputError: a size is dynamic, and not in ``--shape``.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in inputs:
        if spec.name not in options.states:
            continue
        dims, asked = spec.dimensions or [], options.sizes.get(spec.name, ())
        sizes = [1 if axis == axes[spec.name] else size for axis, size in enumerate(dims)]
        if len(asked) == len(sizes):
            sizes = [size or asked[axis] for axis, size in enumerate(sizes)]
        if not dims or None in sizes:
            raise InputError(
                f"{path}: the state '{spec.name}' takes {spec.shown}, so its size is not known: say it with --shape "
                f"{spec.name}=2x1x128."
            )
        shapes[spec.name] = tuple(size or 1 for size in sizes)
    return shapes


def state_axes(inputs: Sequence[InputSpec], states: Mapping[str, str]) -> InputAxes:
    """Return the batch of each input of a model with states.

    A state whose sizes are all fixed, such as ``[2, 1, 64]`` next to an input of batch 1, has it in dimension 1.
    """
    axes = declared_axes(inputs)
    batches = {spec.size(axes[spec.name]) for spec in inputs if spec.name not in states and axes[spec.name] is not None}
    for spec in inputs:
        dims = spec.dimensions or []
        if spec.name in states and len(dims) > 2 and dims[0] not in batches and dims[1] in batches:
            axes[spec.name] = 1
    return axes


def without_fed_states(steps: Sequence[SequenceStep], states: dict[str, str]) -> list[InputArrays]:
    """Return the inputs of steps without the states that are outputs of the batch before."""
    return [
        {name: values for name, values in step.group.inputs.items() if not (step.continues and name in states)}
        for step in steps
    ]
