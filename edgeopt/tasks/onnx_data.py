"""The arrays for a given ``.onnx`` file, checked against its inputs: names, types, shapes, rows, finite values.

In: a ``.npz`` whose keys are the input names, with one row per sample and the labels as ``labels``, or a ``.npy`` for a
single input. Out: ``GivenArrays``. Each refusal names the file, the array, what was found and the next step.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeopt.errors import DataError, did_you_mean
from edgeopt.tasks.array_types import check_finite, fit_type

LABELS_KEY = "labels"
_OTHER_LABELS_KEY = "targets"
"""Of the labels, if an input has their usual name."""
_LIKE_LABELS = frozenset(("label", "labels", "target", "targets", "y", "y_true", "class", "classes", "truth", "lables"))
_NAMELESS = "arr_0"
"""The key that ``numpy.savez`` gives to an array without a name."""

Dimensions = list[int | None]
"""Of an input as the graph declares it; None is a dynamic dimension."""


class GivenArrays(NamedTuple):
    """The user's arrays, as the model takes them."""

    inputs: dict[str, NDArray[Any]]
    """In the model's order, one row per sample, except for those in ``shared``."""
    labels: NDArray[Any] | None
    """One row per sample."""
    shared: frozenset[str]
    """Inputs without a batch, of which every sample gets the same."""
    notes: tuple[str, ...]
    """For the report: casts, and arrays that are not used."""
    labels_key: str = LABELS_KEY
    """The key of the labels in the file, for messages."""


class InputSpec(NamedTuple):
    """An input of the graph."""

    name: str
    dtype: np.dtype[Any]
    dimensions: Dimensions | None
    """None if the graph does not say."""
    shown: str
    """The dimensions with their names."""

    @property
    def batch(self) -> int | None:
        """The fixed first dimension; None if it is dynamic, or there is none."""
        return self.dimensions[0] if self.dimensions else None


def describe_inputs(values: Sequence[onnx.ValueInfoProto]) -> tuple[InputSpec, ...]:
    """Return what a graph says of its inputs, which are tensors of numbers."""
    return tuple(_describe(value) for value in values)


def _describe(value: onnx.ValueInfoProto) -> InputSpec:
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim]
    shown = ", ".join(str(size or dim.dim_param or "?") for size, dim in zip(dims, tensor.shape.dim, strict=True))
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return InputSpec(value.name, np.dtype(dtype), dims if tensor.HasField("shape") else None, f"[{shown}]")


def load_arrays(path: Path, inputs: Sequence[InputSpec], *, judged: bool = True) -> GivenArrays:
    """Read a file of arrays and check it against a model's inputs.

    A type is changed only if every value stays what it is, or from one float type to another; a note says so.

    Args:
        path: The file.
        inputs: Of the model.
        judged: Whether outputs are scored; otherwise labels and other arrays are ignored.

    Raises:
        DataError: the file cannot be read or does not fit.
    """
    names = [spec.name for spec in inputs]
    labels_key = _OTHER_LABELS_KEY if LABELS_KEY in names else LABELS_KEY
    stored = _open(path)
    keys = _find_keys(path, names, stored)
    if judged:
        _refuse_misspelt_labels(path, set(keys.values()), stored, labels_key)
    notes: list[str] = []
    arrays: dict[str, NDArray[Any]] = {}
    for spec in inputs:
        values = _read(path, stored, keys[spec.name])
        _check_shape(path, spec, values)
        arrays[spec.name], note = fit_type(path, spec.name, values, spec.dtype)
        check_finite(path, spec.name, arrays[spec.name])
        notes += note
    unused = [key for key in stored if key not in (*keys.values(), labels_key)]
    if unused and judged:
        notes.append(f"not used of {path.name}: {', '.join(unused)}")
    shared = find_shared(inputs, arrays)
    _check_batch_comes_first(path, inputs, arrays)
    has_labels = judged and labels_key in stored and labels_key not in names
    labels = _read_labels(path, stored, labels_key) if has_labels else None
    if judged and labels is None:
        _refuse_unused_rows(path, stored, unused, count_rows(arrays, shared), labels_key)
    _check_rows(path, {name: values for name, values in arrays.items() if name not in shared}, labels, labels_key)
    return GivenArrays(arrays, labels, shared, tuple(notes), labels_key)


class _Stored(dict[str, Any]):
    """Keys of a file, each with the entry of the zip that holds it, or the array of a ``.npy``."""


def _open(path: Path) -> _Stored:
    """Return the keys of a ``.npz``, or the array of a ``.npy`` under an empty key."""
    try:
        with path.open("rb") as stream:
            start = stream.read(6)
            stream.seek(0)
            if start == b"\x93NUMPY":
                return _Stored({"": np.lib.format.read_array(stream, allow_pickle=False)})
        with zipfile.ZipFile(path) as archive:
            return _Stored({name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")})
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{path} cannot be read as an .npz file of arrays: {error}. Write it with numpy.savez(FILE, NAME=ARRAY), "
            "with the names of the model's inputs."
        ) from error
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an .npz file of arrays: {_explain(error)}.") from error


def _explain(error: Exception) -> str:
    text = str(error).strip().rstrip(".")
    if "allow_pickle" in text:
        return (
            "it holds Python objects (numpy's type 'object'), as arrays of different lengths give. Save arrays of "
            "numbers with one shape, for example padded to one length"
        )
    return getattr(error, "strerror", None) or text or type(error).__name__


def _read(path: Path, stored: _Stored, key: str) -> NDArray[Any]:
    if not isinstance(stored[key], str):
        array: NDArray[Any] = stored[key]
        return array
    try:
        with zipfile.ZipFile(path) as archive, archive.open(stored[key]) as stream:
            values: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
            return values
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: array '{key}' cannot be read: {_explain(error)}.") from error


def _find_keys(path: Path, names: Sequence[str], stored: _Stored) -> dict[str, str]:
    """Return the key of each input's array: its name, or for a single input the only array without a name."""
    if "" in stored:
        if len(names) > 1:
            raise DataError(
                f"{path} holds one array, but the model has the inputs {', '.join(names)}. Write an .npz with "
                "numpy.savez, one array for each name."
            )
        return {names[0]: ""}
    nameless = _NAMELESS in stored and len(names) == 1 and names[0] not in stored
    keys = dict.fromkeys(names, _NAMELESS) if nameless else {name: name for name in names}
    for name, key in keys.items():
        if key not in stored:
            raise DataError(
                f"{path} has no array '{name}'{did_you_mean(name, stored)}; the model's inputs are "
                f"{', '.join(names)}, the file has {', '.join(stored) or 'no arrays'}."
            )
    return keys


def _refuse_misspelt_labels(path: Path, used: set[str], stored: _Stored, labels_key: str) -> None:
    """Refuse an array that is probably meant as the labels: without labels the score would be another one."""
    if labels_key in stored:
        return
    for key in stored:
        if key not in used and key.casefold().strip("_ ") in _LIKE_LABELS:
            raise DataError(
                f"{path} has an array '{key}', which is not an input of the model. If it holds the labels, name it "
                f"'{labels_key}'; otherwise leave it out."
            )


def _refuse_unused_rows(path: Path, stored: _Stored, unused: Sequence[str], rows: int | None, labels_key: str) -> None:
    """Refuse an array with a row for each sample that nothing uses: it may be the labels."""
    for key in unused:
        try:
            values = _read(path, stored, key)
        except DataError:
            continue  # objects, such as file names
        if values.dtype.kind in "biuf" and values.ndim and len(values) == rows:
            raise DataError(
                f"{path} has an array '{key}' with a row for each of the {rows} samples, which is not an input of the "
                f"model, and no labels. If it holds the labels, name it '{labels_key}'; otherwise leave it out."
            )


def count_rows(arrays: Mapping[str, NDArray[Any]], shared: Collection[str]) -> int | None:
    """Return the number of samples, or None if no input has any."""
    return next((len(values) for name, values in arrays.items() if name not in shared and values.ndim), None)


def _check_shape(path: Path, spec: InputSpec, values: NDArray[Any]) -> None:
    expected, found = spec.dimensions, values.shape
    if expected is None:
        return
    if len(expected) == len(found) and all(
        size is None or size == other for size, other in zip(expected[1:], found[1:], strict=True)
    ):
        return
    raise DataError(
        f"{path}: '{spec.name}' has shape {found}, but the model takes {spec.shown}{_advise_on_shape(expected, found)}."
    )


def _advise_on_shape(expected: Dimensions, found: tuple[int, ...]) -> str:
    fixed = [size for size in expected[1:] if size is not None]
    if not expected:
        return ", one number that all samples share"
    if len(found) == len(expected) - 1 and list(found) == list(expected[1:]):
        return ": add a first dimension, with one row per sample"
    moved = (*found[:1], *found[-1:], *found[1:-1])
    if len(found) == len(expected) > 2 and fixed and _fits(expected, moved):
        return ": its channels come last; move them (numpy.moveaxis(x, -1, 1))"
    if len(found) == len(expected) > 2 and fixed and _fits(expected, (*found[:1], *found[2:], *found[1:2])):
        return ": its channels come first; move them (numpy.moveaxis(x, 1, -1))"
    return ""


def _fits(expected: Dimensions, shape: Sequence[int]) -> bool:
    return all(size is None or size == other for size, other in zip(expected[1:], shape[1:], strict=True))


def find_shared(inputs: Sequence[InputSpec], arrays: Mapping[str, NDArray[Any]]) -> frozenset[str]:
    """Return the inputs without a batch: single numbers, and arrays whose first dimension is fixed while others vary.

    Args:
        inputs: Of the graph.
        arrays: The array of each.
    """
    rows = {spec.name: arrays[spec.name].shape[0] for spec in inputs if arrays[spec.name].ndim}
    whole = {
        spec.name
        for spec in inputs
        if spec.name in rows and spec.batch == rows[spec.name] and None not in (spec.dimensions or [])
    }
    varying = [count for name, count in rows.items() if name not in whole]
    return frozenset({spec.name for spec in inputs if spec.name not in rows} | (whole if varying else set()))


def _check_batch_comes_first(path: Path, inputs: Sequence[InputSpec], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Refuse an input such as a state of ``[2, batch, 64]`` if the first dimension of others is the batch."""
    counts = {len(arrays[spec.name]) for spec in inputs if spec.dimensions and spec.batch is None}
    for spec in inputs:
        dynamic = [axis for axis, size in enumerate(spec.dimensions or []) if size is None]
        sizes = {arrays[spec.name].shape[axis] for axis in dynamic}
        if spec.batch is not None and counts & sizes:
            raise DataError(
                f"{path}: '{spec.name}' has shape {arrays[spec.name].shape}, and the model takes {spec.shown}: its "
                "batch is not the first dimension. Export the model with the batch first everywhere, or write a task "
                "in Python (batch_dim)."
            )


def _read_labels(path: Path, stored: _Stored, key: str) -> NDArray[Any]:
    labels = _read(path, stored, key)
    if labels.dtype.kind not in "biuf":
        raise DataError(
            f"{path}: '{key}' is {labels.dtype}; labels are numbers. Give class numbers in the order of the model's "
            "output, counted from 0."
        )
    check_finite(path, key, labels)
    return labels


def _check_rows(path: Path, arrays: Mapping[str, NDArray[Any]], labels: NDArray[Any] | None, key: str) -> None:
    """Check that every array has the same number of rows, at least one."""
    counts = {name: len(values) for name, values in arrays.items()}
    if not counts:
        raise DataError(f"{path}: no input of the model has one row per sample, so there is nothing to score.")
    if labels is not None and not labels.ndim:
        raise DataError(
            f"{path}: '{key}' is a single number, but there are {next(iter(counts.values()))} samples. Give one label "
            "per row."
        )
    counts |= {} if labels is None else {key: len(labels)}
    if len(set(counts.values())) != 1 or not min(counts.values()):
        raise DataError(f"{path}: every array needs the same number of rows, at least one; found {counts}.")
