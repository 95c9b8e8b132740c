"""Golden arrays: inputs and expected outputs with tolerances, as raw little-endian files for an app's self-check."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError
from edgeopt.records.recipe import Recipe
from edgeopt.records.trial import Parity

Array = NDArray[np.generic]

FLOAT_TOLERANCE_RATIO = 1e-3
"""Of an output's largest absolute value, the same as parity allows: another processor sums in another order."""
FLOAT16_TOLERANCE_RATIO = 2e-2
"""float16 has 11 bits, and runtimes differ in the operators that they run in float32."""
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
    """Largest absolute difference that is allowed; null for inputs."""


def tolerance_ratio(recipe: Recipe, weight_types: Sequence[str] = (), parities: Sequence[Parity] = ()) -> float:
    """Return how far an output may be off on another device, relative to its largest absolute value.

    Args:
        recipe: Of the file.
        weight_types: Of its weights, which a given file may have in fewer bits without any step.
        parities: Of the file with its network; a tolerance that its own rounding widened there is as wide here.
    """
    widened = max((parity.tolerance for parity in parities if parity.tolerance is not None), default=0.0)
    return max(widened, _usual_ratio(recipe, weight_types))


def _usual_ratio(recipe: Recipe, weight_types: Sequence[str]) -> float:
    if recipe.precision == "int8" or any("int" in name for name in weight_types):
        return INT8_TOLERANCE_RATIO
    if recipe.precision == "fp16" or any(name in weight_types for name in ("float16", "bfloat16")):
        return FLOAT16_TOLERANCE_RATIO
    return FLOAT_TOLERANCE_RATIO


def write_golden(
    folder: Path, inputs: Mapping[str, Array], outputs: Mapping[str, Array], ratio: float
) -> tuple[GoldenEntry, ...]:
    """Write the arrays into ``folder/golden``.

    File names are numbered (``input-0.bin``), because names of inputs can have characters that file names cannot.

    Args:
        folder: The bundle.
        inputs: Name to array, in the model's order.
        outputs: The model's outputs for them under ONNX Runtime.
        ratio: Tolerance of an output relative to its largest absolute value.
    """
    (folder / "golden").mkdir()
    entries = []
    arrays: list[tuple[Literal["input", "output"], Mapping[str, Array]]] = [("input", inputs), ("output", outputs)]
    for role, arrays_by_name in arrays:
        for index, (name, array) in enumerate(arrays_by_name.items()):
            little_endian = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            file = f"golden/{role}-{index}.bin"
            (folder / file).write_bytes(little_endian.tobytes())
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
    """Return the largest absolute difference that an output may have.

    Integers (such as a class) have to be equal; an output of zeros gets the ratio itself.
    """
    if not np.issubdtype(output.dtype, np.floating):
        return 0.0
    return ratio * (float(np.max(np.abs(output), initial=0.0)) or 1.0)


def read_golden(bundle: Path, entry: GoldenEntry) -> Array:
    """Read one array of a bundle.

    Raises:
        DataError: the file is missing, or its number of bytes differs from its entry.
    """
    path = bundle / entry.file
    dtype = np.dtype(entry.dtype).newbyteorder("<")
    expected_bytes = dtype.itemsize * int(np.prod(entry.shape))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}. The bundle is incomplete; build it again."
        ) from error
    if len(data) != expected_bytes:
        raise DataError(
            f"{path} has {len(data)} bytes, but the manifest says {expected_bytes}. The bundle was changed; build it "
            "again."
        )
    return np.frombuffer(data, dtype=dtype).reshape(entry.shape)


def largest_difference(expected: Array, found: Array) -> float:
    """Return the largest absolute difference of two arrays; infinite if shapes differ or a difference is NaN.

    Equal infinities are equal.
    """
    if expected.shape != found.shape:
        return math.inf
    left, right = expected.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.where(left == right, 0.0, np.abs(left - right))
    largest = float(np.max(difference, initial=0.0))
    return math.inf if math.isnan(largest) else largest
