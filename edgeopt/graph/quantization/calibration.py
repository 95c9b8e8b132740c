"""The range of values that int8 has to hold for each activation, from what the network does on calibration batches.

``minmax`` keeps every value. The others cut rare large values off, so that the many small ones get finer steps; they
look at a histogram of each activation:

- ``percentile`` cuts the outermost 0.01 % of the values,
- ``mse`` cuts where the mean square of rounding and cutting together is least (Nagel et al., 2021, section 2.2),
- ``entropy`` cuts where the histogram loses least information, by Kullback-Leibler divergence (Migacz, 2017).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationDataReader
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator

from edgeopt.graph.quantization.activations import ArrayBatch, ArrayBatches, read_activations
from edgeopt.records.recipe import CalibrationMethod

METHODS: tuple[CalibrationMethod, ...] = ("minmax", "entropy", "percentile", "mse")
Range = tuple[float, float]
_Floats = NDArray[np.float64]

BINS = 2048
_LEVELS = 256
CUT_RATIO = 1e-4
_KEPT = np.linspace(1.0, 0.2, 41)
"""Shares of the full range that ``mse`` and ``entropy`` try."""


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Batches as ONNX Runtime's calibrator wants them."""

    def __init__(self, batches: Iterator[ArrayBatch]) -> None:
        self._batches = batches

    def get_next(self) -> ArrayBatch | None:
        """Return the next batch, or None at the end."""
        return next(self._batches, None)


class ActivationRanges:
    """Ranges of one model's activations, by any method; each pass over the batches is made once.

    Args:
        model: A float model, on disk and in memory.
        path: Where it is on disk.
        batches: Yields the calibration batches anew at each call.
    """

    def __init__(self, model: onnx.ModelProto, path: Path, batches: ArrayBatches) -> None:
        self._model = model
        self._path = path
        self._batches = batches
        self._full: dict[str, Range] | None = None
        self._histograms: dict[str, NDArray[np.int64]] | None = None

    def find(self, method: CalibrationMethod) -> TensorsData:
        """Return the range of each activation by ``method``, in the form that ONNX Runtime's quantizer takes."""
        full = self._minimum_and_maximum()
        if method == "minmax":
            return tensors_data(full)
        histograms = self._histogram(full)
        cut = {"percentile": _cut_by_percentile, "mse": _cut_by_error, "entropy": _cut_by_entropy}[method]
        return tensors_data(
            {name: cut(histograms[name], *ends) if name in histograms else ends for name, ends in full.items()}
        )

    def _minimum_and_maximum(self) -> dict[str, Range]:
        if self._full is None:
            with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
                calibrator = create_calibrator(
                    self._path,
                    augmented_model_path=str(Path(folder) / "augmented.onnx"),
                    calibrate_method=quantization.CalibrationMethod.MinMax,
                )
                calibrator.collect_data(_Reader(self._batches()))
                found = calibrator.compute_data()
            self._full = {}
            for name, data in found.items():
                low, high = (float(np.ravel(end)[0]) for end in data.range_value)
                self._full[name] = low, high
        return self._full

    def _histogram(self, full: dict[str, Range]) -> dict[str, NDArray[np.int64]]:
        if self._histograms is None:
            graph = self._model.graph
            known = {value.name for value in (*graph.input, *graph.value_info, *graph.output)}
            self._histograms = {}
            for values in read_activations(self._model, [name for name in full if name in known], self._batches()):
                for name, value in values.items():
                    counts, _ = np.histogram(value, BINS, full[name])
                    self._histograms[name] = self._histograms.get(name, np.zeros(BINS, np.int64)) + counts
        return self._histograms


def tensors_data(ranges: dict[str, Range]) -> TensorsData:
    """Return ranges in the form that ONNX Runtime's quantizer takes."""
    found = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    return TensorsData(quantization.CalibrationMethod.MinMax, found)


def _cut_by_percentile(counts: NDArray[np.int64], low: float, high: float) -> Range:
    """Cut the outermost values off; an end at zero stays."""
    share = np.cumsum(counts) / max(1, counts.sum())
    edges = np.linspace(low, high, BINS + 1)
    first = int(np.searchsorted(share, CUT_RATIO / 2))
    last = int(np.searchsorted(share, 1 - CUT_RATIO / 2))
    return (low if low >= 0 else float(edges[first]), high if high <= 0 else float(edges[min(last + 1, BINS)]))


def _cut_by_error(counts: NDArray[np.int64], low: float, high: float) -> Range:
    """Cut both ends by the share that makes the mean square error least."""
    centers = _centers(low, high)

    def error(kept: float) -> float:
        bottom, top = min(low * kept, 0.0), max(high * kept, 0.0)
        step = (top - bottom) / (_LEVELS - 1) or 1.0
        rounded = np.round(np.clip(centers, bottom, top) / step) * step
        return float((counts * (rounded - centers) ** 2).sum())

    best = min(_KEPT, key=error)
    return low * best, high * best


def _cut_by_entropy(counts: NDArray[np.int64], low: float, high: float) -> Range:
    """Cut both ends by the share that keeps most information."""
    centers = _centers(low, high)

    def divergence(kept: float) -> float:
        bottom, top = low * kept, high * kept
        inside = (centers >= bottom) & (centers <= top)
        if inside.sum() < _LEVELS:
            return float("inf")
        reference = counts[inside].astype(np.float64)
        exact = reference.copy()
        reference[0] += counts[centers < bottom].sum()
        reference[-1] += counts[centers > top].sum()
        level = np.minimum((np.arange(len(exact)) * _LEVELS) // len(exact), _LEVELS - 1)
        used = exact > 0
        filled = np.bincount(level, used, _LEVELS)
        mean = np.bincount(level, exact, _LEVELS) / np.maximum(filled, 1)
        return _divergence(reference, np.where(used, mean[level], 0.0))

    best = min(_KEPT, key=divergence)
    return low * best, high * best


def _divergence(reference: _Floats, found: _Floats) -> float:
    """Return the Kullback-Leibler divergence of two histograms; empty bins hold a ten-thousandth of a value."""
    p, q = reference + 1e-4, found + 1e-4
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def _centers(low: float, high: float) -> _Floats:
    edges = np.linspace(low, high, BINS + 1)
    return (edges[1:] + edges[:-1]) / 2
