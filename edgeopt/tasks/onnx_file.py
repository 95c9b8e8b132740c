"""A task for a model that exists only as ``.onnx``: it is measured, simplified, quantized and judged, not trained.

Inputs come from an ``.npz`` file whose keys are the graph's input names, with one row per sample; with a key
``labels``, the outputs are judged by these (``edgeopt.scoring`` says how). Without labels the score is the agreement
with the given file's own outputs.
Without an ``.npz``, inputs are random numbers. The report mentions both. Some of the inputs calibrate int8; only the
others select.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from edgeopt.errors import DataError, TaskError, did_you_mean
from edgeopt.records.scoring import ScoreKind, ScoreWish
from edgeopt.scoring.facts import check_labels
from edgeopt.tasks.known_score import KnownScore

_RANDOM_SAMPLES = 160
_CALIBRATION_RATIO = 0.2
"""Share of the inputs that calibrates int8."""
_MAX_CALIBRATION_SAMPLES = 384
"""More do not change the ranges."""
_MIN_SAMPLES = 32
"""Fewest inputs that calibrate, and fewest that select; if there are too few for both, all of them do both."""
_BATCH_SIZE = 32
_CALIBRATION_BATCH_SIZE = 16
"""Smaller, so that few inputs make several batches: the sensitivity study needs batches that did not calibrate."""
_LABELS_KEY = "labels"


_Arrays = dict[str, NDArray[Any]]


class OnnxTask(KnownScore):
    """A given ``.onnx`` file and the inputs that it is judged on."""

    kind = "onnx"

    def __init__(self, path: Path, data: Path | None, score_wish: ScoreWish | None = None) -> None:
        self.path = path
        self.score_wish = score_wish or ScoreWish()
        self.labels_source = str(path) if data is None else f"{data}: '{_LABELS_KEY}'"
        self.spec = str(path)
        self.name = path.stem
        self.labels: tuple[str, ...] = ()
        self.preprocessing = ""
        self.postprocessing = ""
        self.budgets: dict[str, Any] = {}
        self.students: dict[str, Any] = {}
        try:
            graph = onnx.load(path).graph
        except (OSError, DecodeError, ValueError) as error:
            raise TaskError(f"{path} cannot be read as an ONNX model: {error}.") from error
        initializers = {tensor.name for tensor in graph.initializer}
        self.inputs = [value for value in graph.input if value.name not in initializers]
        self.input_names = tuple(value.name for value in self.inputs)
        self.output_names = tuple(value.name for value in graph.output)
        self.random_inputs = data is None
        arrays = self._draw_random() if data is None else self._load(data)
        self.calibration_arrays, self.arrays = self._split(arrays)
        self.targets = self.arrays.pop(_LABELS_KEY, None)

    @property
    def scored_by(self) -> str:
        """The score in words."""
        words = "accuracy" if self.targets is not None else "agreement with the given file's outputs"
        words = words if self.score_kind is None else self.score_kind.text
        return f"{words} on random inputs" if self.random_inputs else words

    @property
    def calibrated_by(self) -> str:
        """The inputs that calibrate int8, in words."""
        samples = len(next(iter(self.arrays.values())))
        if self.calibration_arrays is self.arrays:
            return (
                f"too few inputs to hold some back: the same {samples} calibrate int8 and select, so its score drop "
                "may look smaller than it is"
            )
        return f"{len(next(iter(self.calibration_arrays.values())))} inputs calibrate int8, {samples} others select"

    def batches(self) -> list[dict[str, NDArray[Any]]]:
        """Return the inputs that select, in batches."""
        return self._in_batches(self.arrays, _BATCH_SIZE)

    def calibration_batches(self) -> list[dict[str, NDArray[Any]]]:
        """Return the inputs that calibrate int8, in batches."""
        return self._in_batches(self.calibration_arrays, _CALIBRATION_BATCH_SIZE)

    def _in_batches(self, arrays: _Arrays, size: int) -> list[_Arrays]:
        """Return batches of the graph's fixed batch size, or of ``size`` if it has none."""
        count = len(next(iter(arrays.values())))
        step = self._fixed_batch() or size
        usable = count - count % step if self._fixed_batch() else count
        return [
            {name: values[start : start + step] for name, values in arrays.items()} for start in range(0, usable, step)
        ]

    def _split(self, arrays: _Arrays) -> tuple[_Arrays, _Arrays]:
        """Return the inputs that calibrate and those that select; if there are too few, all of them as both.

        Those that calibrate are taken evenly from the whole file, which may be sorted by class.
        """
        count, batch = len(next(iter(arrays.values()))), self._fixed_batch() or 1
        wanted = min(_MAX_CALIBRATION_SAMPLES, max(_MIN_SAMPLES, int(count * _CALIBRATION_RATIO)))
        wanted = -(-wanted // batch) * batch
        if wanted > count - max(_MIN_SAMPLES, batch):
            return arrays, arrays  # one object: ``targets`` are taken out of both
        calibrates = np.zeros(count, dtype=bool)
        calibrates[np.arange(wanted) * count // wanted] = True
        return (
            {name: values[calibrates] for name, values in arrays.items() if name != _LABELS_KEY},
            {name: values[~calibrates] for name, values in arrays.items()},
        )

    def target_batches(self) -> list[Any] | None:
        """Return the labels in the same batches as the inputs, or None if there are no labels."""
        if self.targets is None:
            return None
        sizes = [len(next(iter(batch.values()))) for batch in self.batches()]
        return np.split(self.targets[: sum(sizes)], np.cumsum(sizes)[:-1])

    def _kind_of(self, pairs: Sequence[tuple[Any, Any]], *, by_agreement: bool = False) -> ScoreKind:
        return super()._kind_of(pairs, by_agreement=by_agreement or self.targets is None)

    def _dimensions(self, value: onnx.ValueInfoProto) -> list[int | None]:
        return [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]

    def _fixed_batch(self) -> int | None:
        return next((dims[0] for value in self.inputs if (dims := self._dimensions(value)) and dims[0]), None)

    def _draw_random(self) -> _Arrays:
        random = np.random.RandomState(0)
        arrays: _Arrays = {}
        for value in self.inputs:
            dims = self._dimensions(value)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            if None in dims[1:] or not np.issubdtype(dtype, np.floating):
                raise TaskError(
                    f"{self.path}: input '{value.name}' ({dtype}, shape {dims}) cannot be filled with random numbers. "
                    "Give real inputs with --data inputs.npz (keys: input names, one row per sample)."
                )
            arrays[value.name] = random.standard_normal((_RANDOM_SAMPLES, *(d or 1 for d in dims[1:]))).astype(dtype)
        return arrays

    def _load(self, data: Path) -> _Arrays:
        try:
            with data.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{data} cannot be read as an .npz file of arrays: {error}.") from error
        for value in self.inputs:
            if value.name not in arrays:
                raise DataError(
                    f"{data} has no array '{value.name}'{did_you_mean(value.name, arrays)}; the model's inputs are "
                    f"{', '.join(self.input_names)}, the file has {', '.join(arrays)}."
                )
            expected, found = self._dimensions(value), arrays[value.name].shape
            fits = len(expected) == len(found) and all(
                size in (None, other) for size, other in zip(expected[1:], found[1:], strict=True)
            )
            if not fits:
                raise DataError(f"{data}: '{value.name}' has shape {found}, but the model takes {expected}.")
        arrays = {name: values for name, values in arrays.items() if name in (*self.input_names, _LABELS_KEY)}
        if _LABELS_KEY in arrays:
            check_labels(arrays[_LABELS_KEY], f"{data}: '{_LABELS_KEY}'")
        lengths = {name: len(values) for name, values in arrays.items()}
        if len(set(lengths.values())) != 1 or not min(lengths.values()):
            raise DataError(f"{data}: every array needs the same number of rows, at least one; found {lengths}.")
        return arrays
