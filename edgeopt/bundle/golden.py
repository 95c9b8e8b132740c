"""Golden arrays: inputs and expected outputs with tolerances, as raw little-endian files for an app's self-check."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeopt.bundle.raw_inputs import RawInput, ResizedImage
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
_LEAST_RATIOS = {FLOAT_TOLERANCE_RATIO: 1e-4, FLOAT16_TOLERANCE_RATIO: 2e-3, INT8_TOLERANCE_RATIO: 1 / 127}
"""Of the same: what other hardware may do even where this machine shows no difference; in int8, one step."""
_SPREAD_MARGIN = 2.0
_MOST_DIFFERENT = 0.5
"""Share of whole numbers that may differ at most, however much was measured: another shape is never right."""


GoldenRole = Literal["input", "output", "resized"]


class GoldenEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One array of the bundle."""

    name: str
    """Of the model's input or output."""
    role: GoldenRole
    """``resized``: the input that preprocessing makes of an image of another size."""
    file: str
    """Path in the bundle."""
    dtype: str
    """numpy's name, such as ``float32``; the bytes are little-endian, in C order."""
    shape: tuple[int, ...]
    tolerance: float | None
    """Largest absolute difference that is allowed, and the mean one of ``resized``; null for inputs without files."""
    different_ratio: float = 0.0
    """Of an output of whole numbers: the share that may differ, as rounding elsewhere may change a close call."""
    raw: tuple[str, ...] = ()
    """Images or sounds, one for each sample, from which preprocessing makes this array."""


class GoldenBox(msgspec.Struct, frozen=True, kw_only=True):
    """A box of a sample of the golden inputs; see ``edgeopt.bundle.box_answers``."""

    corners: tuple[float, float, float, float]
    """Left, top, right and bottom in pixels of the model's input."""
    tolerance: float
    """Pixels by which each corner may be off: what the tolerances of the outputs allow."""
    score: float
    """The probability."""
    score_tolerance: float
    is_certain: bool
    """False if a device may miss it whose outputs are within their tolerances."""


class GoldenAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What an output says about a sample of the golden inputs: its class, or a box in it."""

    output: str
    """The scores of the classes, or the heat-map of ``Manifest.boxes``."""
    sample: int
    class_index: int
    label: str | None
    """null if the classes have no names."""
    box: GoldenBox | None = None
    """Of a detector; a sample with boxes has an answer for each."""


class Golden(NamedTuple):
    """What an app can check itself with."""

    inputs: Mapping[str, Array]
    """In the model's order."""
    outputs: Mapping[str, Array]
    """The model's for them under ONNX Runtime."""
    tolerances: Mapping[str, float]
    """Of each output: largest absolute difference; of one of whole numbers, the share that may differ."""
    raw: Mapping[str, RawInput]
    """Of inputs whose preprocessing is known."""
    resized: Mapping[str, ResizedImage]
    """Of images."""
    answers: tuple[GoldenAnswer, ...]


NO_GOLDEN = Golden({}, {}, {}, {}, {}, ())


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


def measured_tolerance(output: Array, spread: float, ratio: float) -> float:
    """Return the largest absolute difference that an output may have on another device, by what was measured here.

    Args:
        output: The expected one.
        spread: Of ``spread_of`` between ways to run the file, and with inputs off by rounding.
        ratio: Of ``tolerance_ratio``; no tolerance is larger.
    """
    if not np.issubdtype(output.dtype, np.floating):
        return min(_MOST_DIFFERENT, _SPREAD_MARGIN * spread)
    largest = output_tolerance(output, ratio)
    usual = max((usual for usual in _LEAST_RATIOS if usual <= ratio), default=FLOAT_TOLERANCE_RATIO)
    return min(largest, max(_SPREAD_MARGIN * spread, output_tolerance(output, _LEAST_RATIOS[usual])))


def write_golden(folder: Path, golden: Golden) -> tuple[GoldenEntry, ...]:
    """Write the arrays and the files that give them into ``folder/golden``.

    File names are numbered (``input-0.bin``), because names of inputs can have characters that file names cannot.
    """
    (folder / "golden").mkdir()
    entries = []
    for index, (name, array) in enumerate(golden.inputs.items()):
        raw = golden.raw.get(name)
        names = _write_raw(folder, f"golden/input-{index}", raw) if raw else ()
        entry = _write_array(folder, f"golden/input-{index}.bin", name, array, "input")
        entries.append(msgspec.structs.replace(entry, raw=names, tolerance=raw.tolerance if raw else None))
    for index, (name, array) in enumerate(golden.outputs.items()):
        entry = _write_array(folder, f"golden/output-{index}.bin", name, array, "output")
        allowed = golden.tolerances[name]
        is_float = np.issubdtype(array.dtype, np.floating)
        change = {"tolerance": allowed} if is_float else {"tolerance": 0.0, "different_ratio": allowed}
        entries.append(msgspec.structs.replace(entry, **change))
    for index, (name, image) in enumerate(golden.resized.items()):
        file = f"golden/resized-{index}.png"
        (folder / file).write_bytes(image.file)
        entry = _write_array(folder, f"golden/resized-{index}.bin", name, image.values, "resized")
        entries.append(msgspec.structs.replace(entry, raw=(file,), tolerance=image.tolerance))
    return tuple(entries)


def _write_raw(folder: Path, start: str, raw: RawInput) -> tuple[str, ...]:
    names = tuple(f"{start}-{sample}{raw.suffix}" for sample in range(len(raw.files)))
    for name, data in zip(names, raw.files, strict=True):
        (folder / name).write_bytes(data)
    return names


def _write_array(folder: Path, file: str, name: str, array: Array, role: GoldenRole) -> GoldenEntry:
    little_endian = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    (folder / file).write_bytes(little_endian.tobytes())
    return GoldenEntry(name=name, role=role, file=file, dtype=array.dtype.name, shape=array.shape, tolerance=None)


def find_answers(
    name: str, output: Array, class_axis: int, labels: Sequence[str], tolerance: float
) -> tuple[GoldenAnswer, ...]:
    """Return the class of each sample by an output of scores, if no allowed difference changes it.

    Args:
        name: Of the output.
        output: Of shape (samples, classes); others have no answers.
        class_axis: Where the classes are.
        labels: Of the classes; empty if they have no names.
        tolerance: Of the output.
    """
    if output.ndim != 2 or class_axis not in (1, -1) or output.shape[1] < 2:
        return ()
    two_best = np.sort(output.astype(np.float64), axis=1)[:, -2:]
    named = len(labels) == output.shape[1]
    return tuple(
        GoldenAnswer(output=name, sample=sample, class_index=index, label=labels[index] if named else None)
        for sample, index in enumerate(np.argmax(output, axis=1).tolist())
        if two_best[sample, 1] - two_best[sample, 0] > 2 * tolerance
    )


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


def spread_of(expected: Array, found: Array) -> float:
    """Return the largest absolute difference of two float outputs, or the share of whole numbers that differ."""
    if np.issubdtype(expected.dtype, np.floating):
        return largest_difference(expected, found)
    return different_ratio(expected, found)


def different_ratio(expected: Array, found: Array) -> float:
    """Return the share of values that differ; 1 if shapes do."""
    if expected.shape != found.shape:
        return 1.0
    return float(np.mean(expected != found)) if expected.size else 0.0


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
