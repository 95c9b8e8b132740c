"""Which dimension of each input and output is the batch: given by the task, or found by running one sample apart.

A network's answer for a sample must not depend on the other samples of its batch. This tells the batch from a sequence,
and from inputs that all samples share (an adjacency matrix, a threshold).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgeopt.errors import TaskError

if TYPE_CHECKING:
    from torch import Tensor

Axes = tuple[int | None, ...]
"""For each tensor, the dimension that is the batch; None for one that all samples share."""
Run = Callable[[tuple["Tensor", ...]], tuple["Tensor", ...]]

_SAME_ANSWER_RATIO = 1e-3
"""Of an output's largest value: kernels for another batch size add in another order."""
_POSITIONS = (0, 1)
"""Dimensions that are a batch in practice: the first, or the second after time or layers."""
_MAX_CHOICES = 32
"""Choices that are tried for one batch size, each with two runs of one sample."""


class BatchAxes(NamedTuple):
    """The batch dimensions of a network.

    Attributes:
        inputs: Of each input.
        outputs: Of each output.
        note: What the user should know; empty if there is nothing unusual.
    """

    inputs: Axes
    outputs: Axes
    note: str = ""

    def count(self, values: Sequence[Any] | Mapping[str, Any]) -> int:
        """Return how many samples one batch of inputs has."""
        return count_samples(values, self.inputs)

    def take(self, values: Sequence[Any], index: Any) -> tuple[Any, ...]:
        """Return some samples of one batch of inputs; inputs that all samples share stay whole."""
        return take_samples(values, self.inputs, index)


def count_samples(values: Sequence[Any] | Mapping[str, Any], axes: Axes) -> int:
    """Return the size of the batch of several tensors or arrays; 1 if none has a batch."""
    listed = list(values.values()) if isinstance(values, Mapping) else values
    sizes = [value.shape[axis] for value, axis in zip(listed, axes, strict=True) if axis is not None]
    return int(sizes[0]) if sizes else 1


def take_samples(values: Sequence[Any], axes: Axes, index: Any) -> tuple[Any, ...]:
    """Return the samples with these numbers of several tensors or arrays."""
    return tuple(
        value if axis is None else _take(value, axis, np.asarray(index))
        for value, axis in zip(values, axes, strict=True)
    )


def _take(value: Any, axis: int, index: Any) -> Any:
    if not hasattr(value, "index_select"):
        return np.take(value, index, axis)
    import torch  # only for tensors: a given .onnx has none

    return value.index_select(axis, torch.as_tensor(index, device=value.device))


def find_batch_axes(
    run: Run, inputs: tuple[Tensor, ...], names: Sequence[str], given: Sequence[int | str | None]
) -> BatchAxes:
    """Find the batch of each input and output.

    Args:
        run: Runs the network in evaluation mode, and returns its outputs; it may raise if inputs do not fit.
        inputs: One batch, best of two samples or more. A batch of one is repeated, which tells less.
        names: Of the inputs, for the note.
        given: For each input, the dimension that the user named, None if all samples share it, or ``"?"``.

    Returns:
        The axes. If no choice gives the same answer for a sample alone and in its batch, the usual one (dimension 0),
        and a note.

    Raises:
        TaskError: no input has a batch, or the number of outputs follows the number of samples.
    """
    from edgeopt.task.per_sample import check_number_of_outputs  # imports PyTorch

    whole = run(inputs)
    usual: BatchAxes | None = None
    for axes in _choices(inputs, given):
        count = count_samples(inputs, axes)
        if usual is None and count < 2:
            found = _find_axes_of_several(run, inputs, names, given, whole)
            return found or _find_axes_of_one(run, inputs, names, given, whole)
        if count < 2:
            continue
        answers = _first_and_last(run, inputs, axes)
        check_number_of_outputs(len(whole), [len(answer) for answer in answers if answer is not None], count)
        outputs = _output_axes(whole, answers, count)
        if usual is None:
            usual = BatchAxes(axes, outputs or _first_axes(whole, count))
        if outputs is not None and _all_agree(whole, answers, outputs, count):
            return BatchAxes(axes, outputs, _describe_unusual(axes, inputs, names))
    if usual is None:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in zip(names, inputs, strict=True))
        raise TaskError(f"no input has a batch ({shapes}). At least one needs a dimension for the samples: batch_dim.")
    repeated = run(inputs)
    if not all(_is_close(one, two) for one, two in zip(whole, repeated, strict=True)):
        return usual._replace(note="the network gives other outputs when it runs again on the same inputs")
    return usual._replace(
        note="the network's answer for a sample depends on the other samples of its batch: alone, a sample of "
        "example_inputs() gives other outputs. Scores then depend on how the selection set is split into batches, and "
        "files are measured at another batch size. If a dimension other than the first is the batch, name it with "
        "batch_dim"
    )


def _first_and_last(run: Run, inputs: tuple[Tensor, ...], axes: Axes) -> list[tuple[Tensor, ...] | None]:
    """Run the first sample alone, and the last one; None where the network cannot run it."""
    return [_run_samples(run, inputs, axes, [sample]) for sample in (0, count_samples(inputs, axes) - 1)]


def _all_agree(
    whole: tuple[Tensor, ...], answers: Sequence[tuple[Tensor, ...] | None], outputs: Axes, count: int
) -> bool:
    """Tell whether the answers of ``_first_and_last`` are those of their batch."""
    return all(
        answer is not None and _agrees(whole, answer, outputs, sample)
        for sample, answer in zip((0, count - 1), answers, strict=True)
    )


def _find_axes_of_several(
    run: Run,
    inputs: tuple[Tensor, ...],
    names: Sequence[str],
    given: Sequence[int | str | None],
    whole: tuple[Tensor, ...],
) -> BatchAxes | None:
    """Find the batch if the first input begins with a 1, but another has more samples there; None if that is wrong.

    Example: the first input is the state of a recurrent layer, of shape (layers, batch, hidden).
    """
    sizes = {value.shape[0] for value in inputs if value.dim()} - {0, 1}
    for axes in _choices(inputs, given):
        count = count_samples(inputs, axes)
        if count not in sizes:
            continue
        answers = _first_and_last(run, inputs, axes)
        outputs = _output_axes(whole, answers, count)
        if outputs is None or all(axis is None for axis in outputs):
            continue
        if _all_agree(whole, answers, outputs, count):
            return BatchAxes(axes, outputs, _describe_unusual(axes, inputs, names))
    return None


def is_batch(run: Run, inputs: tuple[Tensor, ...]) -> bool:
    """Tell whether dimension 0 of every input is the samples, so that one has the same answer alone as among others.

    Args:
        run: As in ``find_batch_axes``.
        inputs: Perhaps a batch, perhaps a single sample without a dimension for the samples.
    """
    if any(not value.dim() for value in inputs) or len({len(value) for value in inputs}) != 1:
        return False
    axes: Axes = (0,) * len(inputs)
    rows = list(range(len(inputs[0]))) if len(inputs[0]) > 1 else [0, 0]
    whole, alone = (_run_samples(run, inputs, axes, samples) for samples in (rows, [0]))
    outputs = None if whole is None else _output_axes(whole, [alone], len(rows))
    if whole is None or alone is None or outputs is None:
        return False
    return any(axis is not None for axis in outputs) and _agrees(whole, alone, outputs, 0)


def _find_axes_of_one(
    run: Run,
    inputs: tuple[Tensor, ...],
    names: Sequence[str],
    given: Sequence[int | str | None],
    whole: tuple[Tensor, ...],
) -> BatchAxes:
    """Find the batch of a single sample: repeated along it, the network gives its answer twice.

    If it does so for no choice of dimensions, they are the usual ones. Example: the state of a recurrent layer, of
    shape (layers, batch, hidden), cannot be repeated along the layers.
    """
    choices = [axes for axes in _choices(inputs, given) if count_samples(inputs, axes) == 1]
    for axes in choices:
        repeated = _run_samples(run, inputs, axes, [0, 0])
        outputs = None if repeated is None else _output_axes(repeated, [whole], 2)
        if repeated is None or outputs is None:
            continue
        if all(_agrees(repeated, whole, outputs, sample) for sample in (0, 1)):
            return BatchAxes(axes, outputs, _describe_unusual(axes, inputs, names))
    return BatchAxes(choices[0], _first_axes(whole, 1), _describe_unusual(choices[0], inputs, names))


def _choices(inputs: tuple[Tensor, ...], given: Sequence[int | str | None]) -> Iterator[Axes]:
    """Yield choices of axes, the usual ones first: dimension 0 of every input that has the size of the first one's."""
    sizes = [inputs[index].shape[axis] for index, axis in enumerate(given) if isinstance(axis, int)] or [
        value.shape[position] for position in _POSITIONS for value in inputs if value.dim() > position
    ]
    for size in dict.fromkeys(sizes):
        options: list[list[int | None]] = []
        for value, axis in zip(inputs, given, strict=True):
            dims = [dim for dim in _POSITIONS if value.dim() > dim and value.shape[dim] == size]
            options.append([*dims, None] if isinstance(axis, str) else [axis])
        choices = [axes for axes in itertools.product(*options) if any(axis is not None for axis in axes)]
        choices.sort(key=lambda axes: (axes.count(None), sum(axis or 0 for axis in axes)))
        yield from choices[:_MAX_CHOICES]


def _run_samples(run: Run, inputs: tuple[Tensor, ...], axes: Axes, samples: Sequence[int]) -> tuple[Tensor, ...] | None:
    """Run some samples; None if the network cannot run them."""
    try:
        return run(take_samples(inputs, axes, samples))
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError):
        return None


def _output_axes(whole: tuple[Tensor, ...], answers: Sequence[tuple[Tensor, ...] | None], count: int) -> Axes | None:
    """Return the dimension of each output in which a sample alone has size 1 and its batch ``count``."""
    if any(answer is None or len(answer) != len(whole) for answer in answers):
        return None
    axes: list[int | None] = []
    for index, value in enumerate(whole):
        alone = [answer[index] for answer in answers if answer is not None]
        if any(one.dim() != value.dim() for one in alone):
            return None
        axes.append(
            next(
                (
                    dim
                    for dim in range(value.dim())
                    if value.shape[dim] == count and all(one.shape[dim] == 1 for one in alone)
                ),
                None,
            )
        )
    return tuple(axes)


def _agrees(whole: tuple[Tensor, ...], answer: tuple[Tensor, ...], axes: Axes, sample: int) -> bool:
    return all(
        _is_close(value if axis is None else value.narrow(axis, sample, 1), one)
        for value, one, axis in zip(whole, answer, axes, strict=True)
    )


def _is_close(expected: Tensor, found: Tensor) -> bool:
    if expected.shape != found.shape:
        return False
    if not expected.is_floating_point():
        return bool((expected == found).float().mean() > 1 - _SAME_ANSWER_RATIO) if expected.numel() else True
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    return bool(((expected - found).abs() <= _SAME_ANSWER_RATIO * max(largest, 1e-6)).all())


def _first_axes(whole: tuple[Tensor, ...], count: int) -> Axes:
    return tuple(0 if value.dim() and value.shape[0] == count else None for value in whole)


def _describe_unusual(axes: Axes, inputs: tuple[Tensor, ...], names: Sequence[str]) -> str:
    """Say which inputs have their batch elsewhere, or none; empty if all have it in dimension 0."""
    parts = [
        f"input '{name}' has no batch: all samples share it"
        if axis is None
        else f"the batch of input '{name}' is dimension {axis}"
        for name, axis, value in zip(names, axes, inputs, strict=True)
        if axis != 0 and value.dim()
    ]
    return "; ".join(parts)
