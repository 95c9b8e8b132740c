"""Finds the range that int8 covers for each activation, from the values on calibration batches.

``minmax`` keeps every value. The others clip rare large values, so that the many small ones get finer steps. They
read a histogram of each activation:

- ``percentile`` clips the outermost 0.01 % of the values,
- ``mse`` clips where the mean square error of rounding and clipping is smallest (Nagel et al., 2021, section 2.2),
- ``entropy`` clips where the histogram loses the least information: Kullback-Leibler divergence (Migacz, 2017).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationDataReader
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator

from edgeopt.errors import StepError
from edgeopt.graph.preparation.masks import find_mask_values
from edgeopt.graph.quantization.activations import ArrayBatch, ArrayBatches, read_activations
from edgeopt.records.recipe import CalibrationMethod

CALIBRATION_METHODS: tuple[CalibrationMethod, ...] = ("minmax", "entropy", "percentile", "mse")
Range = tuple[float, float]
_Floats = NDArray[np.float64]

_RANGES_VERSION = 1
"""Goes up when the same model and batches get other ranges."""
_BIN_COUNT = 2048
_LEVEL_COUNT = 256
_CLIPPED_RATIO = 1e-4
_KEPT_RATIOS = np.linspace(1.0, 0.2, 41)
"""Parts of the full range that ``mse`` and ``entropy`` try."""


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Batches as ONNX Runtime's calibrator reads them."""

    def __init__(self, batches: Iterator[ArrayBatch]) -> None:
        self._batches = batches

    def get_next(self) -> ArrayBatch | None:
        """Return the next batch, or None at the end."""
        return next(self._batches, None)


class ActivationRanges:
    """Ranges of one model's activations, by any method; the model runs at most twice over the batches.

    What was found is kept in a file, since a build quantizes the same model many times: with other nodes in float, or
    weights in fewer bits.

    Args:
        model: A float model.
        path: The file of the same model.
        batches: Yields the calibration batches again at each call.
        kept: Start of the paths of these files; it names the batches.
    """

    def __init__(self, model: onnx.ModelProto, path: Path, batches: ArrayBatches, kept: Path) -> None:
        self._model = model
        self._path = path
        self._batches = batches
        self.kept = kept
        self._found: dict[CalibrationMethod, dict[str, Range]] = {}
        self._full: dict[str, Range] | None = None
        self._histograms: dict[str, NDArray[np.int64]] | None = None

    def find(self, method: CalibrationMethod) -> TensorsData:
        """Return the range of each activation by ``method``, as ONNX Runtime's quantizer takes them."""
        if method not in self._found:
            path = self.kept.with_name(f"{self.kept.name}-{self._digest}-{method}.json")
            found = _read_ranges(path)
            if found is None:
                found = self._find(method)
                _keep_ranges(found, path)
            self._found[method] = found
        return to_tensors_data(self._found[method])

    @functools.cached_property
    def _digest(self) -> str:
        content = self._model.SerializeToString(deterministic=True)
        return hashlib.sha256(f"{_RANGES_VERSION} {onnxruntime.__version__}".encode() + content).hexdigest()[:20]

    def _find(self, method: CalibrationMethod) -> dict[str, Range]:
        full = self._find_full_ranges()
        if method == "minmax":
            return full
        histograms = self._count(full)
        clip = {"percentile": _clip_by_percentile, "mse": _clip_by_error, "entropy": _clip_by_entropy}[method]
        return {name: clip(histograms[name], *ends) if name in histograms else ends for name, ends in full.items()}

    def _find_full_ranges(self) -> dict[str, Range]:
        if self._full is None:
            with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
                calibrator = create_calibrator(
                    self._path,
                    augmented_model_path=str(Path(folder) / "augmented.onnx"),
                    calibrate_method=quantization.CalibrationMethod.MinMax,
                )
                calibrator.collect_data(_Reader(self._batches()))
                computed = calibrator.compute_data()
            self._full, masked = {}, find_mask_values(self._model.graph)
            for name, data in computed.items():
                low, high = (float(np.ravel(end)[0]) for end in data.range_value)
                if name not in masked or np.isfinite([low, high]).all():  # nothing reads a mask in int8
                    self._full[name] = low, high
            _check_finite(self._model.graph, self._full)
        return self._full

    def _count(self, full: dict[str, Range]) -> dict[str, NDArray[np.int64]]:
        if self._histograms is None:
            graph = self._model.graph
            known = {value.name for value in (*graph.input, *graph.value_info, *graph.output)}
            self._histograms = {}
            for values in read_activations(self._model, [name for name in full if name in known], self._batches()):
                for name, value in values.items():
                    counts, _ = np.histogram(value, _BIN_COUNT, full[name])
                    self._histograms[name] = self._histograms.get(name, np.zeros(_BIN_COUNT, np.int64)) + counts
        return self._histograms


def _read_ranges(path: Path) -> dict[str, Range] | None:
    """Return kept ranges; None if there are none, or the file is damaged."""
    try:
        return {name: (float(low), float(high)) for name, (low, high) in json.loads(path.read_text("utf-8")).items()}
    except (OSError, ValueError):
        return None


def _keep_ranges(ranges: dict[str, Range], path: Path) -> None:
    """Write ranges whole, because other processes may look for them; where nothing can be written, nothing is kept."""
    partial = path.with_name(f"{path.stem}.partial-{os.getpid()}{path.suffix}")
    with contextlib.suppress(OSError):
        partial.write_text(json.dumps(ranges), "utf-8")
        partial.replace(path)


def _check_finite(graph: onnx.GraphProto, ranges: dict[str, Range]) -> None:
    """Check that every range is finite.

    Raises:
        StepError: one is not; it names the first such value, which makes the others so, and the operator behind it.
    """
    operators = {value.name: "input of the graph" for value in graph.input}
    operators |= {name: f"output of {node.op_type}" for node in graph.node for name in node.output}
    for name, place in operators.items():
        low, high = ranges.get(name, (0.0, 0.0))
        if not np.isfinite([low, high]).all():
            raise StepError(
                "quantize",
                f"the values of '{name}' ({place}) reach from {low:g} to {high:g} on the calibration samples, and int8 "
                "needs finite ranges. Correct the sample that causes it in calibration_batches(), clamp the value in "
                "forward(), or write a finite number such as -1e4 instead of an infinite mask.",
            )


def to_tensors_data(ranges: dict[str, Range]) -> TensorsData:
    """Return ranges as ONNX Runtime's quantizer takes them."""
    as_float32 = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    return TensorsData(quantization.CalibrationMethod.MinMax, as_float32)


def _clip_by_percentile(counts: NDArray[np.int64], low: float, high: float) -> Range:
    """Clip the outermost values; an end at zero stays."""
    share = np.cumsum(counts) / max(1, counts.sum())
    edges = np.linspace(low, high, _BIN_COUNT + 1)
    first = int(np.searchsorted(share, _CLIPPED_RATIO / 2))
    last = int(np.searchsorted(share, 1 - _CLIPPED_RATIO / 2))
    return (low if low >= 0 else float(edges[first]), high if high <= 0 else float(edges[min(last + 1, _BIN_COUNT)]))


def _clip_by_error(counts: NDArray[np.int64], low: float, high: float) -> Range:
    """Shrink both ends to the part with the smallest mean square error."""
    centers = _find_centers(low, high)

    def error(kept: float) -> float:
        bottom, top = min(low * kept, 0.0), max(high * kept, 0.0)
        step = (top - bottom) / (_LEVEL_COUNT - 1) or 1.0
        rounded = np.round(np.clip(centers, bottom, top) / step) * step
        return float((counts * (rounded - centers) ** 2).sum())

    best = min(_KEPT_RATIOS, key=error)
    return low * best, high * best


def _clip_by_entropy(counts: NDArray[np.int64], low: float, high: float) -> Range:
    """Shrink both ends to the part that keeps the most information."""
    centers = _find_centers(low, high)

    def divergence(kept: float) -> float:
        bottom, top = low * kept, high * kept
        inside = (centers >= bottom) & (centers <= top)
        if inside.sum() < _LEVEL_COUNT:
            return float("inf")
        reference = counts[inside].astype(np.float64)
        exact = reference.copy()
        reference[0] += counts[centers < bottom].sum()
        reference[-1] += counts[centers > top].sum()
        level = np.minimum((np.arange(len(exact)) * _LEVEL_COUNT) // len(exact), _LEVEL_COUNT - 1)
        used = exact > 0
        filled = np.bincount(level, used, _LEVEL_COUNT)
        mean = np.bincount(level, exact, _LEVEL_COUNT) / np.maximum(filled, 1)
        return _measure_divergence(reference, np.where(used, mean[level], 0.0))

    best = min(_KEPT_RATIOS, key=divergence)
    return low * best, high * best


def _measure_divergence(reference: _Floats, rounded: _Floats) -> float:
    """Return the Kullback-Leibler divergence of two histograms, with 1e-4 values added to each bin."""
    p, q = reference + 1e-4, rounded + 1e-4
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def _find_centers(low: float, high: float) -> _Floats:
    edges = np.linspace(low, high, _BIN_COUNT + 1)
    return (edges[1:] + edges[:-1]) / 2
