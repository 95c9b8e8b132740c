"""SampleTensors without labels, in whatever form a user has them, as batches for a model.

In: an array, a dict of arrays, a ``DataLoader``, a ``Dataset``, any iterable of batches or of samples, or a function
that returns one of these. Out: batches of inputs in the user's nesting.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from edgeopt.errors import DataError, TaskError
from edgeopt.task.batch_axes import is_batch
from edgeopt.task.batches import split_batch
from edgeopt.task.inputs import InputLayout, forward_parameters
from edgeopt.task.modules import doubles_in_float32, widen_inputs
from edgeopt.task.nesting import flatten, map_tensors, tensors_of
from edgeopt.task.values import describe_value

_STACKED_SAMPLES = 32
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_RUN_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError)


class LooseInputs(NamedTuple):
    """What was read."""

    batches: list[Any]
    """In the user's nesting; at least one."""
    note: str
    """What was left out; empty if nothing was."""


def read_loose_inputs(
    given: Any, model: nn.Module, source: str, *, are_batches: bool = False, was_double: bool = False
) -> LooseInputs:
    """Return inputs as batches.

    Rows of an array, or of the arrays of a dict, are samples. The items of anything else are batches, or samples if
    the model takes them only so: a sample among others has to get the answer that it has by itself.

    Args:
        given: The inputs; labels that come with them are left out.
        model: Called on the first item.
        source: Names the inputs in errors.
        are_batches: Whether that is known.
        was_double: Whether the model was in float64, so that inputs of that type are rounded as it was.

    Raises:
        DataError: there are none.
        TaskError: they have no form that is known, or the model does not run on them.
    """
    parameters = forward_parameters(model)
    has_labels = False
    batches: list[Any] = []

    def inputs() -> Iterator[Any]:
        nonlocal has_labels
        for item in _items(given, source):
            taken, labelled = _take_inputs(item, parameters, source)
            has_labels |= labelled
            taken = map_tensors(doubles_in_float32, taken) if was_double else taken
            yield map_tensors(lambda value: widen_inputs(torch.as_tensor(value)), taken)

    items = inputs()
    first = next(items, None)
    if first is None:
        raise DataError(f"{source} has no inputs. A generator that was used before is empty: give a list or a loader.")
    samples = not are_batches and _are_samples(first, model, source)
    batches = list(_stack(first, items) if samples else _with_first(first, items))
    note = f"{source}: targets that came with the inputs are left out" if has_labels else ""
    return LooseInputs(batches, note)


def _items(given: Any, source: str) -> Iterable[Any]:
    if isinstance(given, Tensor | np.ndarray | Mapping):
        return [given]
    if isinstance(given, Dataset) and not isinstance(given, IterableDataset) and hasattr(given, "__len__"):
        return (given[index] for index in range(len(given)))
    if isinstance(given, Iterable | DataLoader):
        return given
    if callable(given):
        return _items(given(), f"{source}()")
    raise TaskError(
        f"{source} is {describe_value(given)}. Give an array, a dict of arrays by the parameters of the model's "
        "forward(), a DataLoader, a list of batches or of samples, or a function that returns one of these."
    )


def _take_inputs(item: Any, parameters: list[inspect.Parameter], source: str) -> tuple[Any, bool]:
    """Return the inputs of a batch or a sample, and whether something else came with them."""
    needed = [one for one in parameters if one.kind in _POSITIONAL and one.default is one.empty]
    is_flat = isinstance(item, tuple | list) and all(isinstance(part, Tensor | np.ndarray) for part in item)
    if is_flat and not hasattr(item, "_fields") and len(item) >= len(needed) >= 2:
        return tuple(item[: len(needed)]), len(item) > len(needed)
    taken, targets = split_batch(item, [one.name for one in parameters], source)
    return taken, targets is not None


def _are_samples(first: Any, model: nn.Module, source: str) -> bool:
    """Tell whether the items are single samples.

    Raises:
        TaskError: the model runs on the first one neither as a sample nor as a batch.
    """
    layout = InputLayout(model, first, source)

    def run(leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(tensors_of(layout.call(model, [value.clone() for value in leaves])))

    if is_batch(run, layout.example):
        return False
    if is_batch(run, tuple(value[None] for value in layout.example)):
        return True
    try:
        run(layout.example)
    except _RUN_ERRORS as error:
        raise TaskError(
            f"{source}: the model does not run on the first item, {describe_value(first)}, neither as a batch nor as a "
            f"sample: {error}. Give what its forward() takes, in the types of its weights (float32 instead of NumPy's "
            "float64); several inputs as a dict by its parameters."
        ) from error
    return False


def _stack(first: Any, others: Iterable[Any]) -> Iterator[Any]:
    """Yield batches of samples of equal shapes that follow each other."""
    waiting: list[tuple[Tensor, ...]] = []
    nesting, shapes = None, None
    for sample in _with_first(first, others):
        leaves, found = flatten(sample)
        mine = (found.names, found.constants, [(value.shape, value.dtype) for value in leaves])
        if waiting and nesting is not None and (mine != shapes or len(waiting) == _STACKED_SAMPLES):
            yield nesting.nest(map(torch.stack, zip(*waiting, strict=True)))
            waiting = []
        nesting, shapes = found, mine
        waiting.append(leaves)
    assert nesting is not None
    yield nesting.nest(map(torch.stack, zip(*waiting, strict=True)))


def _with_first(first: Any, others: Iterable[Any]) -> Iterator[Any]:
    yield first
    yield from others
