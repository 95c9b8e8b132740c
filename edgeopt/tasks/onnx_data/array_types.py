"""From the type of a user's array to that of a model's input: changed only if the values stay what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError


def fit_type(
    path: Path | str, name: str, values: NDArray[Any], wanted: np.dtype[Any]
) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Return an array in the type that a model's input has, and a note if it had another one.

    One float type becomes another (rounded), integers become other integers or floats if all values are the same
    afterwards, and whole numbers in floats become integers. Pixels (uint8) do not become floats: nobody but the user
    knows how they were scaled in training.

    Raises:
        DataError: the array cannot be cast; the message says why.
    """
    found = values.dtype
    if found.newbyteorder("=") == wanted:
        return values.astype(wanted, copy=False), ()  # of this machine's byte order
    where = f"{path}: '{name}' is {found.name if found.kind in 'biufc' else found}, but the model takes {wanted.name}"
    if found.kind not in "biuf":
        raise DataError(f"{where}. Save it as {wanted.name}.")
    if found == np.uint8 and wanted.kind == "f":
        raise DataError(
            f"{where}. Scale the values as in training and save them as {wanted.name}, for example "
            f"(x / 255).astype('{wanted.name}')."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(wanted)
        lost = _find_lost(values, cast)
    reason = "not whole numbers in its range" if wanted.kind in "iu" else "outside its range or rounded by it"
    count = int(np.count_nonzero(lost))
    if count:
        first = values[lost].flat[0]
        raise DataError(f"{where}, and {count:,} values are {reason}, such as {first}. Save it as {wanted.name}.")
    return cast, (f"'{name}' cast from {found.name} to {wanted.name}",)


def _find_lost(values: NDArray[Any], cast: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which values are others after a cast; rounding from one float type to another does not count."""
    found, wanted = values.dtype, cast.dtype
    if found.kind == wanted.kind == "f":
        return np.asarray(np.isfinite(values) & ~np.isfinite(cast))
    lost = np.asarray(cast.astype(found) != values)
    if wanted.kind in "iu" and found.kind != "b":
        limits = np.iinfo(wanted)
        lost |= (values < limits.min) | (values > limits.max)
    return lost


def check_finite(path: Path | str, name: str, values: NDArray[Any]) -> None:
    """Check that an array has only finite values.

    Raises:
        DataError: it has others; the message counts them.
    """
    if values.dtype.kind != "f":
        return
    finite = np.isfinite(values)
    if finite.all():
        return
    missing, infinite = int(np.count_nonzero(np.isnan(values))), int(np.count_nonzero(np.isinf(values)))
    counts = " and ".join(
        f"{count:,} {word}" for count, word in ((missing, "NaN"), (infinite, "infinite values")) if count
    )
    first = f", the first in row {int(np.argwhere(~finite)[0][0])}" if values.ndim else ""
    raise DataError(f"{path}: '{name}' has {counts}{first}. Replace them, or leave those rows out.")
