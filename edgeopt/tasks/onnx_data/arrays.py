"""Rows in one file: a ``.npz`` whose keys are the input names, or a ``.npy`` for a single input.

The samples of an input are its rows, or what its key names: ``state:1`` has them in dimension 1. Labels are ``labels``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from edgeopt.errors import DataError
from edgeopt.tasks.onnx_data.archives import StoredArrays, find_keys
from edgeopt.tasks.onnx_data.rows import add_labels, make_group, settle_axes
from edgeopt.tasks.onnx_data.samples import LABELS_KEY, GivenSamples
from edgeopt.tasks.onnx_data.specs import InputSpec, declared_axes

_OTHER_LABELS_KEY = "targets"
"""Of the labels, if an input has their usual name."""
_LIKE_LABELS = frozenset(("label", "labels", "target", "targets", "y", "y_true", "class", "classes", "truth", "lables"))


def load_arrays(path: Path, inputs: Sequence[InputSpec], *, judged: bool = True) -> GivenSamples:
    """Read a file of arrays and check it against a model's inputs.

    Args:
        path: The file.
        inputs: Of the model.
        judged: Whether outputs are scored; otherwise labels and other arrays are ignored.

    Raises:
        DataError: the file cannot be read or does not fit.
    """
    names = [spec.name for spec in inputs]
    labels_key = labels_key_of(inputs)
    stored = StoredArrays(path)
    found = find_keys(stored, names)
    if judged:
        refuse_misspelt_labels(path, set(stored) - set(found.keys.values()), labels_key)
    arrays = {name: stored.read(found.keys[name]) for name in names}
    shapes = {name: values.shape for name, values in arrays.items()}
    axes = settle_axes(inputs, declared_axes(inputs, found.axes), shapes) | found.axes
    shared = [spec for spec in inputs if axes[spec.name] is None and None in (spec.dimensions or ())]
    has_labels = judged and labels_key in stored and labels_key not in names
    group, notes = make_group(path, inputs, arrays, axes)
    notes += tuple(f"all samples share '{spec.name}', whose rows are called '{spec.names[0]}'" for spec in shared)
    if has_labels:
        group = add_labels(path, group, stored.read(labels_key), labels_key)
    unused = [key for key in stored if key not in (*found.keys.values(), labels_key)]
    if judged and not has_labels:
        _refuse_unused_rows(stored, unused, group.samples, labels_key)
    if unused and judged:
        notes = (*notes, f"not used of {path.name}: {', '.join(unused)}")
    return GivenSamples((group,), axes, notes, f"{path}: '{labels_key}'" if has_labels else "")


def labels_key_of(inputs: Sequence[InputSpec]) -> str:
    """Return the key of the labels in a file."""
    return _OTHER_LABELS_KEY if LABELS_KEY in [spec.name for spec in inputs] else LABELS_KEY


def is_like_labels(name: str) -> bool:
    """Tell whether a name is one that labels often have."""
    return name.casefold().strip("_ ") in _LIKE_LABELS


def refuse_misspelt_labels(source: Path | str, others: Collection[str], labels_key: str) -> None:
    """Refuse an array that is probably meant as the labels: without labels the score would be another one.

    Args:
        source: Where the arrays are, for errors.
        others: Names of the arrays that are not inputs.
        labels_key: The name of the labels.

    Raises:
        DataError: one of them has a name that labels often have.
    """
    if labels_key in others:
        return
    for key in sorted(others):
        if is_like_labels(key):
            raise DataError(
                f"{source} has an array '{key}', which is not an input of the model. If it holds the labels, name it "
                f"'{labels_key}'; otherwise leave it out."
            )


def _refuse_unused_rows(stored: StoredArrays, unused: Sequence[str], rows: int, labels_key: str) -> None:
    """Refuse an array with a row for each sample that nothing uses: it may be the labels."""
    for key in unused:
        try:
            values = stored.read(key)
        except DataError:
            continue  # objects, such as file names
        if values.dtype.kind in "biuf" and values.ndim and len(values) == rows:
            raise DataError(
                f"{stored.path} has an array '{key}' with a row for each of the {rows} samples, which is not an input "
                f"of the model, and no labels. If it holds the labels, name it '{labels_key}'; otherwise leave it out."
            )
