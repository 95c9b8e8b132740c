"""A Python function that yields samples: ``file.py:samples``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError, InputError, did_you_mean
from edgeopt.tasks.onnx_data.arrays import labels_key_of, refuse_misspelt_labels
from edgeopt.tasks.onnx_data.rows import add_labels, as_rows, make_group, settle_axes_of_one
from edgeopt.tasks.onnx_data.samples import GivenSamples, InputArrays, SampleGroup, group_samples
from edgeopt.tasks.onnx_data.specs import InputSpec, declared_axes

_MAX_SAMPLES = 10_000
"""Taken from a function, which may yield without end."""


def is_function(source: str) -> bool:
    """Tell whether data are ``file.py:name``."""
    file, separator, name = source.rpartition(":")
    return bool(separator) and file.endswith(".py") and name.isidentifier()


def load_function(source: str, inputs: Sequence[InputSpec], *, judged: bool = True) -> GivenSamples:
    """Call a function, and read what it yields: dicts by input names or single arrays, with or without a label.

    The label is the second of a pair, or ``labels`` in the dict.

    Args:
        source: ``file.py:name``.
        inputs: Of the model.
        judged: Whether outputs are scored; otherwise labels are ignored.

    Raises:
        InputError: there is no such function.
        DataError: it yields something else, or values that do not fit. What the function itself raises goes on.
    """
    axes = settle_axes_of_one(inputs, declared_axes(inputs))
    labels_key, notes = labels_key_of(inputs), list[str]()

    def samples() -> Iterator[SampleGroup]:
        total = 0
        for number, item in enumerate(_call(source)):
            if total >= _MAX_SAMPLES:
                notes.append(f"the first {total:,} samples of {source} are used")
                return
            where = f"{source}, sample {number}"
            given, label = _split(item)
            arrays = _named(where, given, inputs)
            if judged and label is None and isinstance(given, Mapping):
                others = {str(key) for key in given} - arrays.keys()
                refuse_misspelt_labels(where, others, labels_key)
                label = given[labels_key] if labels_key in others else None
                unused = f"not used of each sample: {', '.join(sorted(others - {labels_key}))}"
                notes.extend([unused] if others - {labels_key} and unused not in notes else [])
            fitted = {spec.name: as_rows(spec, arrays[spec.name], axes[spec.name]) for spec in inputs}
            group, cast = make_group(where, inputs, fitted, axes)
            if judged and label is not None:
                group = add_labels(where, group, np.asarray(label), labels_key, may_lack_rows=True)
            total += group.samples
            notes.extend(note for note in cast if note not in notes)
            yield group

    groups = group_samples(samples(), axes, source)
    has_labels = groups[0].labels is not None
    return GivenSamples(groups, axes, tuple(notes), f"the labels of {source}" if has_labels else "")


def _call(source: str) -> Iterable[Any]:
    """Import the file, call the function, and return what it gives, if that can be iterated over."""
    file, _, name = source.rpartition(":")
    found: Callable[[], Any] | None = getattr(_import(Path(file)), name, None)
    if not callable(found):
        known = [each for each in vars(sys.modules[_module_name(Path(file))]) if not each.startswith("_")]
        raise InputError(f"{file} has no function '{name}'{did_you_mean(name, known)}.")
    items = found()
    if not isinstance(items, Iterable) or isinstance(items, Mapping | str | bytes | np.ndarray):
        raise InputError(f"{source}() has to yield samples, one at a time; it returned {type(items).__name__}.")
    return items


def _module_name(path: Path) -> str:
    return f"edgeopt_data_{path.stem}"


def _import(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(_module_name(path), path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError(f"--data: the file {path} does not exist. Give FILE.py:NAME with the path of your file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # and it stays: the function may import its neighbours when it runs
    spec.loader.exec_module(module)
    return module


def _split(item: Any) -> tuple[Any, Any]:
    """Return inputs and label of ``(inputs, label)``; anything else has no label."""
    if isinstance(item, tuple) and len(item) == 2:
        return item[0], item[1]
    return item, None


def _named(where: str, given: Any, inputs: Sequence[InputSpec]) -> InputArrays:
    """Return what a function gave as arrays by name."""
    names = [spec.name for spec in inputs]
    if isinstance(given, tuple | list) and len(given) == len(names) > 1:
        given = dict(zip(names, given, strict=True))
    if not isinstance(given, Mapping):
        if len(names) > 1:
            raise DataError(
                f"{where} is {type(given).__name__}, but the model has the inputs {', '.join(names)}. Yield a dict "
                "with an array for each, or a tuple of such a dict and a label."
            )
        given = {names[0]: given}
    for name in names:
        if name not in given:
            raise DataError(
                f"{where} has no array '{name}'{did_you_mean(name, map(str, given))}; the model's inputs are "
                f"{', '.join(names)}, the sample has {', '.join(map(str, given))}."
            )
    return {name: _as_array(where, name, given[name]) for name in names}


def _as_array(where: str, name: str, value: Any) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{where}: '{name}' cannot be read as an array: {error}.") from error
    if array.dtype == object:
        raise DataError(f"{where}: '{name}' is {type(value).__name__}, not an array of numbers.")
    return array
