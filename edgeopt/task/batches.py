"""One batch, however a loader yields it, as inputs and targets."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from edgeopt.errors import TaskError
from edgeopt.task.nesting import tensors_of
from edgeopt.task.values import describe_value

TARGET_KEYS = ("labels", "label", "targets", "target", "y", "mask", "masks")
"""Keys under which data sets and the tokenizers of Hugging Face keep targets."""
ALWAYS_TARGETS = ("labels", "label", "label_ids", "targets", "target")
"""Keys that are targets even if ``forward`` has a parameter of that name, from which it would compute a loss."""
_MAYBE_VALID_KEYS = ("mask", "masks")
"""Keys that say in one data set what is where, and in another which positions of a target count."""


def split_batch(batch: Any, parameters: Collection[str], source: str) -> tuple[Any, Any]:
    """Return the inputs and the targets of a batch.

    - ``(inputs, targets)`` is taken as it is.
    - ``(inputs, targets, rest)``: the rest is dropped if it holds no tensors, such as file names.
    - A tensor, or a list with one, has no targets: they are None.
    - A dict is split by the model's parameters: keys of ``forward`` are inputs. Of the other keys, ``labels`` and the
      like are the targets; if several are left, the targets are a dict of them. A ``mask`` next to another map (depth,
      flow) may be either what is to be learned or what counts, so the targets are a dict of both.
    - A dataclass is taken for a dict, and so is a named tuple that has a field of the name of a parameter.

    Args:
        batch: As the loader yields it.
        parameters: Names of the model's parameters.
        source: Names the loader in errors.

    Raises:
        TaskError: it has no such form.
    """
    fields = _named_fields(batch, parameters)
    if fields is not None:
        return _split_mapping(fields, parameters, source)
    if isinstance(batch, Tensor | np.ndarray):
        return batch, None
    if not isinstance(batch, tuple | list):
        raise TaskError(
            f"{source} yields {describe_value(batch)}, not (inputs, targets). Give a tuple, a dict or a dataclass of "
            "tensors."
        )
    if len(batch) == 1:
        return batch[0], None
    if len(batch) > 2 and any(tensors_of(part) for part in batch[2:]):
        parts, names = ", ".join(describe_value(part) for part in batch), list(parameters)[: len(batch) - 1]
        example = ", and leave out what is neither: [(inputs, targets) for inputs, targets, *_ in loader]"
        if len(names) == len(batch) - 1:
            listed = ", ".join(names)
            example = f", such as [(({listed}), targets) for {listed}, targets in loader] if the targets come last"
        raise TaskError(
            f"{source} yields batches of {len(batch)} parts ({parts}). Give (inputs, targets): several inputs as a "
            f"tuple or a dict, several targets as a tuple or a dict{example}."
        )
    if len(batch) < 2:
        raise TaskError(f"{source} yields an empty {type(batch).__name__}, not (inputs, targets).")
    return batch[0], batch[1]


def _named_fields(batch: Any, parameters: Collection[str]) -> dict[Any, Any] | None:
    """Return the parts of a batch by their names, if it has names."""
    if isinstance(batch, Mapping):
        return dict(batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    names = getattr(batch, "_fields", ()) if isinstance(batch, tuple) else ()
    return dict(zip(names, batch, strict=True)) if set(names) & set(parameters) else None


def _split_mapping(batch: dict[Any, Any], parameters: Collection[str], source: str) -> tuple[Any, Any]:
    inputs = {key: value for key, value in batch.items() if key in parameters and key not in ALWAYS_TARGETS}
    others = {key: value for key, value in batch.items() if key not in inputs}
    named = {key: value for key, value in others.items() if key in (*TARGET_KEYS, *ALWAYS_TARGETS)}
    if not inputs:
        # a single input may have any name
        unnamed = {key: value for key, value in others.items() if key not in named and tensors_of(value)}
        if len(unnamed) != 1:
            raise TaskError(
                f"{source} yields a dict with the keys {', '.join(map(str, batch))}, of which none is a parameter of "
                f"the model's forward() ({', '.join(parameters)}). Name the inputs after these, or give (inputs, "
                "targets)."
            )
        inputs = unnamed
        others = {key: value for key, value in others.items() if key not in unnamed}
    rest = {key: value for key, value in others.items() if tensors_of(value)}
    targets = rest if not named or _has_another_map(named, rest) else named
    if not targets:
        return inputs, None
    return inputs, next(iter(targets.values())) if len(targets) == 1 else targets


def _has_another_map(named: dict[Any, Any], others: dict[Any, Any]) -> bool:
    """Tell whether the only known key is a mask, and another value of the batch has a number for each position too."""
    if not set(named) <= set(_MAYBE_VALID_KEYS):
        return False
    positions = [_positions(mask) for value in named.values() for mask in tensors_of(value)]
    maps = [tensor for key, value in others.items() if key not in named for tensor in tensors_of(value)]
    return any(sizes and sizes <= _positions(tensor) for sizes in positions for tensor in maps)


def _positions(tensor: Any) -> Counter[int]:
    """Return the sizes of a batch's tensor per sample, whatever their order: channels may be first or last."""
    return Counter(size for size in tensor.shape[1:] if size > 1)
