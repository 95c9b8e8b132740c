"""Batches of a training, and their parts: for a memory that is too small, or for several processes."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor
from torch.utils import _pytree as pytree

from edgeopt.errors import TaskError
from edgeopt.passes.distill.ranks import Ranks
from edgeopt.task.batch_axes import BatchAxes, take_samples

Inputs: TypeAlias = tuple[Tensor, ...]
Outputs: TypeAlias = tuple[Tensor, ...]


class TaughtBatch(NamedTuple):
    """One batch of a training, with the teacher's outputs."""

    inputs: Inputs
    targets: Any
    teacher_outputs: Outputs
    weight: float = 1.0
    """Of its loss: below 1 for the part that one of several processes has."""


def own_part(batch: TaughtBatch, axes: BatchAxes, ranks: Ranks) -> TaughtBatch:
    """Return this process's part of a batch. One with less than two samples for each is computed by all of them.

    Raises:
        TaskError: the batch cannot be split.
    """
    if ranks.size == 1:
        return batch
    if axes.count(batch.inputs) < 2 * ranks.size:
        return batch._replace(weight=1 / ranks.size)
    parts = split_samples(batch, axes, ranks.size)
    if parts is None:
        shapes = ", ".join(str(tuple(value.shape)) for value in batch.inputs)
        raise TaskError(
            f"training.processes is {ranks.size}, but a training batch (inputs of shape {shapes}) cannot be split: a "
            "target or an output has no dimension of the batch's size. Give targets with one entry for each sample, or "
            "train with processes=1."
        )
    part, weight = parts[ranks.rank]
    return part._replace(weight=weight)


def split_samples(batch: TaughtBatch, axes: BatchAxes, parts: int) -> list[tuple[TaughtBatch, float]] | None:
    """Split a batch, and give each part its share of the samples.

    Args:
        batch: Inputs, targets and the teacher's outputs.
        axes: The batch dimension of each input and output. That of targets is the first.
        parts: How many, at most.

    Returns:
        The parts. None if a target or an output of the teacher has no dimension of the batch's size, so that nobody can
        tell which samples it belongs to.
    """
    samples = axes.count(batch.inputs)

    def has_samples(leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == samples

    def is_list_of_samples(value: Any) -> bool:
        return isinstance(value, list) and len(value) == samples and not all(map(has_samples, value))

    leaves, nesting = pytree.tree_flatten(batch.targets, is_leaf=is_list_of_samples)
    is_split = [has_samples(leaf) or is_list_of_samples(leaf) for leaf in leaves]
    is_constant = [leaf is None or isinstance(leaf, str | int | float) for leaf in leaves]
    if samples < 2 or None in axes.outputs or not all(map(any, zip(is_split, is_constant, strict=True))):
        return None
    found = []
    for index in np.array_split(np.arange(samples), min(parts, samples)):
        start, stop = int(index[0]), int(index[-1]) + 1
        chosen = [leaf[start:stop] if cut else leaf for leaf, cut in zip(leaves, is_split, strict=True)]
        part = TaughtBatch(
            axes.take(batch.inputs, index),
            pytree.tree_unflatten(chosen, nesting),
            take_samples(batch.teacher_outputs, axes.outputs, index) if batch.teacher_outputs else (),
            batch.weight,
        )
        found.append((part, len(index) / samples))
    return found
