"""A folder with a file for each sample: arrays, images or sounds, whose lengths and sizes may differ.

Labels are in the files (``labels`` of an ``.npz``), in ``labels.npy`` with a row for each file in the order of their
names, or the names of subfolders if these are class numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError
from edgeopt.records.preprocessing import DataOptions, Preprocessing
from edgeopt.tasks.image_files import IMAGE_ENDINGS
from edgeopt.tasks.onnx_data.archives import StoredArrays, find_keys
from edgeopt.tasks.onnx_data.arrays import is_like_labels, labels_key_of, refuse_misspelt_labels
from edgeopt.tasks.onnx_data.images import image_reader
from edgeopt.tasks.onnx_data.rows import add_labels, as_rows, make_group, settle_axes_of_one
from edgeopt.tasks.onnx_data.samples import GivenSamples, InputArrays, SampleGroup, group_samples
from edgeopt.tasks.onnx_data.sounds import sound_reader
from edgeopt.tasks.onnx_data.specs import InputSpec, declared_axes

_ENDINGS = {
    "arrays": frozenset((".npy", ".npz")),
    "images": IMAGE_ENDINGS,
    "sounds": frozenset((".wav", ".flac", ".ogg")),
}
"""Kind of a folder to the endings of its files, in lower case."""
_LABELS_FILE = "labels.npy"


class ReadFile(NamedTuple):
    """The samples of one file: each input with or without a batch."""

    inputs: InputArrays
    labels: NDArray[Any] | None = None
    unused: tuple[str, ...] = ()
    """Names of arrays that are neither inputs nor labels."""


Reader = Callable[[Path], Sequence[ReadFile]]


def load_folder(
    folder: Path, inputs: Sequence[InputSpec], options: DataOptions, *, judged: bool = True
) -> GivenSamples:
    """Read a folder of samples.

    Args:
        folder: Subfolders are read too.
        inputs: Of the model.
        options: How images are prepared.
        judged: Whether outputs are scored; otherwise labels are ignored.

    Raises:
        DataError: the folder has no samples, or files that cannot be read or do not fit.
        InputError: an option does not fit the model or the files.
    """
    kind, files = _list_files(folder)
    given, labels_source = _labels_of_files(folder, files) if judged else (None, "")
    reader, axes, preprocessing = _open(kind, files[0], inputs, options, judged=judged and given is None)
    labels_key = labels_key_of(inputs)
    found_notes: list[str] = []
    has_own = False

    def samples() -> Iterator[SampleGroup]:
        nonlocal has_own
        for number, path in enumerate(files):
            for one in reader(path):
                arrays = {spec.name: as_rows(spec, one.inputs[spec.name], axes[spec.name]) for spec in inputs}
                group, cast = make_group(path, inputs, arrays, axes)
                if given is not None:
                    group = group._replace(labels=np.repeat(given[number : number + 1], group.samples, axis=0))
                elif judged and one.labels is not None:
                    group, has_own = add_labels(path, group, one.labels, labels_key, may_lack_rows=True), True
                unused = [f"not used of each file: {', '.join(one.unused)}"] if one.unused and judged else []
                found_notes.extend(note for note in (*cast, *unused) if note not in found_notes)
                yield group

    groups = group_samples(samples(), axes, str(folder))
    source = labels_source or (f"{folder}: '{labels_key}' of each file" if has_own else "")
    how = preprocessing()
    notes = (*(f"inputs: {one.text}" for one in (how or {}).values()), *found_notes)
    return GivenSamples(groups, axes, notes, source, how)


def _list_files(folder: Path) -> tuple[str, list[Path]]:
    """Return the kind of a folder, and its files in the order of their names."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts) or str(inside) == _LABELS_FILE or not path.is_file():
            continue
        kind = next((kind for kind, endings in _ENDINGS.items() if path.suffix.lower() in endings), None)
        if kind is not None:
            found.setdefault(kind, []).append(path)
    for path in found.get("arrays", ()):
        if path.parent == folder and path.suffix.lower() == ".npy" and is_like_labels(path.stem):
            raise DataError(
                f"{path} would be a sample. If it holds the labels, name it {_LABELS_FILE}; otherwise "
                "give it another name."
            )
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        counts = " and ".join(f"{len(paths)} {kind} (such as {paths[0].name})" for kind, paths in found.items())
        raise DataError(f"{folder} has {counts}. Give a folder with one kind of file.")
    known = ", ".join(sorted(ending for endings in _ENDINGS.values() for ending in endings))
    raise DataError(f"{folder} has no files of samples. Known are {known}.")


def _open(
    kind: str, first: Path, inputs: Sequence[InputSpec], options: DataOptions, *, judged: bool
) -> tuple[Reader, dict[str, int | None], Callable[[], dict[str, Preprocessing] | None]]:
    """Return what reads one file, the batch of each input, and what says how inputs were made, once files were read."""
    if kind == "arrays":
        found = find_keys(StoredArrays(first), [spec.name for spec in inputs])
        axes = settle_axes_of_one(inputs, declared_axes(inputs, found.axes)) | found.axes
        return lambda path: [_read_arrays(path, inputs, judged=judged)], axes, lambda: None
    axes = settle_axes_of_one(inputs, declared_axes(inputs))
    open_reader = image_reader if kind == "images" else sound_reader
    read, preprocessing = open_reader(first, inputs, axes, options)
    return lambda path: [ReadFile(arrays) for arrays in read(path)], axes, preprocessing


def _read_arrays(path: Path, inputs: Sequence[InputSpec], *, judged: bool) -> ReadFile:
    stored = StoredArrays(path)
    found = find_keys(stored, [spec.name for spec in inputs])
    arrays = {name: stored.read(key) for name, key in found.keys.items()}
    key, others = labels_key_of(inputs), set(stored) - set(found.keys.values())
    if judged:
        refuse_misspelt_labels(path, others, key)
    return ReadFile(arrays, stored.read(key) if key in others else None, tuple(sorted(others - {key})))


def _labels_of_files(folder: Path, files: Sequence[Path]) -> tuple[NDArray[Any] | None, str]:
    """Return a label for each file from ``labels.npy`` or from the names of subfolders; None without any."""
    path = folder / _LABELS_FILE
    if path.is_file():
        labels = StoredArrays(path).read("")
        if labels.ndim == 0 or len(labels) != len(files):
            raise DataError(
                f"{path} has shape {labels.shape}, but the folder has {len(files)} files. Give a row for each file, in "
                "the order of their names."
            )
        return labels, str(path)
    names = [path.relative_to(folder).parts[0] for path in files if len(path.relative_to(folder).parts) > 1]
    if len(names) == len(files) and all(name.isdecimal() for name in names):
        return np.array([int(name) for name in names], dtype=np.int64), f"{folder}: the names of its subfolders"
    return None, ""
