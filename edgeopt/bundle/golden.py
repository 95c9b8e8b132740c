"""Golden arrays: what goes in, what has to come out, and how exactly, as raw little-endian files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError
from edgeopt.records.recipe import Float16, QuantizeStep, Recipe

Array = NDArray[np.generic]

FLOAT_TOLERANCE_RATIO = 1e-3
"""Of an output's largest absolute value: another processor sums in another order; ten times what parity allows."""
HALF_TOLERANCE_RATIO = 2e-2
"""float16 has 11 bits, and runtimes differ in which operators they run in float32."""
INT8_TOLERANCE_RATIO = 1e-1
"""A few of 255 steps through several layers: processors without VNNI may round an activation to the next step."""


class GoldenEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One array of the bundle."""

    name: str
    """Of the model's input or output."""
    role: Literal["input", "output"]
    file: str
    """Path in the bundle."""
    dtype: str
    """numpy's name, such as ``float32``; the bytes are little-endian, in C order."""
    shape: tuple[int, ...]
    tolerance: float | None
    """Largest absolute difference that an output may have; null for inputs."""


def tolerance_ratio(recipe: Recipe) -> float:
    """Return how far an output may be off on another device, relative to its largest absolute value."""
    if any(isinstance(step, QuantizeStep) for step in recipe.graph_steps):
        return INT8_TOLERANCE_RATIO
    if any(isinstance(step, Float16) for step in recipe.graph_steps):
        return HALF_TOLERANCE_RATIO
    return FLOAT_TOLERANCE_RATIO


def write_golden(
    folder: Path, inputs: Mapping[str, Array], outputs: Mapping[str, Array], ratio: float
) -> tuple[GoldenEntry, ...]:
    """Write the arrays into ``folder/golden``.

    File names are numbered (``input-0.bin``): names of inputs can hold characters that no file name may.

    Args:
        folder: The bundle.
        inputs: Name to array, in the model's order.
        outputs: What the model gave for them under ONNX Runtime.
        ratio: Tolerance of an output relative to its largest absolute value.
    """
    (folder / "golden").mkdir()
    entries = []
    arrays: list[tuple[Literal["input", "output"], Mapping[str, Array]]] = [("input", inputs), ("output", outputs)]
    for role, named in arrays:
        for index, (name, array) in enumerate(named.items()):
            little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            file = f"golden/{role}-{index}.bin"
            (folder / file).write_bytes(little.tobytes())
            entries.append(
                GoldenEntry(
                    name=name,
                    role=role,
                    file=file,
                    dtype=array.dtype.name,
                    shape=array.shape,
                    tolerance=output_tolerance(array, ratio) if role == "output" else None,
                )
            )
    return tuple(entries)


def output_tolerance(output: Array, ratio: float) -> float:
    """Return how far an output may be off, absolutely.

    Integers (a class, say) have to be equal; all-zero outputs get the ratio itself.
    """
    if not np.issubdtype(output.dtype, np.floating):
        return 0.0
    return ratio * (float(np.max(np.abs(output), initial=0.0)) or 1.0)


def read_golden(bundle: Path, entry: GoldenEntry) -> Array:
    """Read one array of a bundle.

    Raises:
        DataError: the file is missing or has another number of bytes than its entry says.
    """
    path = bundle / entry.file
    dtype = np.dtype(entry.dtype).newbyteorder("<")
    expected = dtype.itemsize * int(np.prod(entry.shape))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}. The bundle is incomplete; build it again."
        ) from error
    if len(data) != expected:
        raise DataError(
            f"{path} has {len(data)} bytes, but the manifest says {expected}. The bundle was changed; build it again."
        )
    return np.frombuffer(data, dtype=dtype).reshape(entry.shape)


def largest_difference(expected: Array, found: Array) -> float:
    """Return the largest absolute difference of two arrays; infinite where shapes differ or a value is not a number.

    Equal infinities are equal.
    """
    if expected.shape != found.shape:
        return math.inf
    wanted, got = expected.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.where(wanted == got, 0.0, np.abs(wanted - got))
    largest = float(np.max(difference, initial=0.0))
    return math.inf if math.isnan(largest) else largest
