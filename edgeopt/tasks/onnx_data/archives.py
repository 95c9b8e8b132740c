"""Reading ``.npz`` and ``.npy`` files: the keys first, each array only when it is wanted, and no Python objects."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError, did_you_mean

_NAMELESS = "arr_0"
"""The key that ``numpy.savez`` gives to an array without a name."""
_BEFORE_AXIS = ":"
"""In a key such as ``state:1``, before the dimension that is the batch."""


class StoredArrays(dict[str, Any]):
    """Keys of a file, each with the entry of the zip that holds it, or the array of a ``.npy``.

    Args:
        path: The file.

    Raises:
        DataError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.update(_open(path))

    def read(self, key: str) -> NDArray[Any]:
        """Return one array.

        Raises:
            DataError: it cannot be read.
        """
        if not isinstance(self[key], str):
            array: NDArray[Any] = self[key]
            return array
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self[key]) as stream:
                values: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
                return values
        except _FAILURES as error:
            raise DataError(f"{self.path}: array '{key}' cannot be read: {_explain(error)}.") from error


_FAILURES = (
    OSError,
    EOFError,
    ValueError,
    SyntaxError,
    RuntimeError,
    MemoryError,
    tokenize.TokenError,
    zlib.error,
    zipfile.BadZipFile,
)
"""Of a damaged file: of zip, of numpy's header, and of an entry that is encrypted or compressed in an unknown way."""


def _open(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            start = stream.read(6)
            stream.seek(0)
            if start == b"\x93NUMPY":
                return {"": np.lib.format.read_array(stream, allow_pickle=False)}
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{path} cannot be read as an .npz file of arrays: {error}. Write it with numpy.savez(FILE, NAME=ARRAY), "
            "with the names of the model's inputs."
        ) from error
    except _FAILURES as error:
        raise DataError(f"{path} cannot be read as an .npz file of arrays: {_explain(error)}.") from error


def _explain(error: BaseException) -> str:
    text = str(error).strip().rstrip(".")
    if "allow_pickle" in text:
        return (
            "it holds Python objects (numpy's type 'object'), as arrays of different lengths give. Save arrays of "
            "numbers with one shape, or a folder with a file for each sample, whose lengths may differ"
        )
    return getattr(error, "strerror", None) or text or type(error).__name__


class FoundKeys(NamedTuple):
    """Where each input's array is in a file."""

    keys: dict[str, str]
    axes: dict[str, int]
    """The batch of an input, if its key names it: ``state:1``."""


def find_keys(stored: StoredArrays, names: Sequence[str]) -> FoundKeys:
    """Return the key of each input's array: its name, or for a single input the only array without a name.

    Raises:
        DataError: there is none for an input.
    """
    path = stored.path
    if "" in stored:
        if len(names) > 1:
            raise DataError(
                f"{path} holds one array, but the model has the inputs {', '.join(names)}. Write an .npz with "
                "numpy.savez, one array for each name."
            )
        return FoundKeys({names[0]: ""}, {})
    if _NAMELESS in stored and len(names) == 1 and names[0] not in stored:
        return FoundKeys({names[0]: _NAMELESS}, {})
    keys: dict[str, str] = {}
    axes: dict[str, int] = {}
    for name in names:
        with_axis = [key for key in stored if _axis_in(key, name) is not None]
        if name not in stored and not with_axis:
            raise DataError(
                f"{path} has no array '{name}'{did_you_mean(name, stored)}; the model's inputs are "
                f"{', '.join(names)}, the file has {', '.join(stored) or 'no arrays'}."
            )
        keys[name] = name if name in stored else with_axis[0]
        axis = _axis_in(keys[name], name)
        axes |= {} if axis is None else {name: axis}
    return FoundKeys(keys, axes)


def _axis_in(key: str, name: str) -> int | None:
    """Return the dimension in a key such as ``state:1``; None if it names none, or belongs to another input."""
    stem, _, axis = key.rpartition(_BEFORE_AXIS)
    return int(axis) if stem == name and axis.isdecimal() and len(axis) == 1 else None
