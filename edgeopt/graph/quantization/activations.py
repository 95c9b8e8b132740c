"""Reads inner values of a float graph on calibration batches; opens an ONNX Runtime session in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from edgeopt.graph.model import read_batch_axes

ArrayBatch = dict[str, NDArray[Any]]
ArrayBatches = Callable[[], Iterator[ArrayBatch]]
"""Yields the calibration batches again at each call."""
_MAX_RUN_SAMPLES = 16
_MAX_RUN_BYTES = 400_000_000
"""Of the values of one run, which are all in memory: large images run one at a time."""


def open_cpu_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Open a model on one CPU thread."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def read_activations(
    model: onnx.ModelProto, names: Iterable[str], batches: Iterable[ArrayBatch]
) -> Iterator[ArrayBatch]:
    """Yield the named values, in batches that are as small as ``_MAX_RUN_SAMPLES`` and ``_MAX_RUN_BYTES`` say.

    The first sample shows how large the values are. A graph with a fixed batch size gets that.

    Args:
        model: A float model; it is not changed.
        names: Values of the top graph: float tensors, or the graph's own inputs.
        batches: Inputs of the graph.
    """
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    inputs = {value.name for value in copy.graph.input}
    outputs = {value.name for value in copy.graph.output}
    wanted = list(dict.fromkeys(names))
    copy.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in wanted
        if name not in inputs | outputs
    )
    computed = [name for name in wanted if name not in inputs]
    session = open_cpu_session(copy)
    size = _RunSize()
    for batch in batches:
        for part, samples in _split(batch, model, size):
            values = dict(zip(computed, session.run(computed, part), strict=True)) if computed else {}
            size.learn(values, samples)
            yield {name: values[name] if name in values else part[name] for name in wanted}


class _RunSize:
    """How many samples the next run takes: one, until the values of a run have shown how large they are."""

    samples = 1

    def learn(self, values: ArrayBatch, samples: int) -> None:
        """Take note of the values of a run over that many samples."""
        sample_bytes = sum(value.nbytes for value in values.values()) // samples
        self.samples = min(_MAX_RUN_SAMPLES, max(1, _MAX_RUN_BYTES // max(1, sample_bytes)))


def measure_channel_peaks(
    model: onnx.ModelProto, names: Sequence[str], batches: ArrayBatches
) -> dict[str, NDArray[np.float64]]:
    """Return the largest magnitude of each channel (axis 1) of the named values."""
    peaks: dict[str, NDArray[np.float64]] = {}
    for values in read_activations(model, names, batches()):
        for name, value in values.items():
            peak = np.abs(value).max(axis=(0, *range(2, value.ndim))).astype(np.float64)
            peaks[name] = np.maximum(peaks.get(name, peak), peak)
    return peaks


def measure_channel_means(
    model: onnx.ModelProto, names: Sequence[str], batches: ArrayBatches
) -> dict[str, NDArray[np.float64]]:
    """Return the mean of each channel (axis 1) of the named values."""
    sums: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    for values in read_activations(model, names, batches()):
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value.sum(axis=(0, *range(2, value.ndim)), dtype=np.float64)
            counts[name] = counts.get(name, 0) + value.size // value.shape[1]
    return {name: total / counts[name] for name, total in sums.items()}


def _split(batch: ArrayBatch, model: onnx.ModelProto, size: _RunSize) -> Iterator[tuple[ArrayBatch, int]]:
    """Split a batch if the graph's batch size is dynamic; yield each part with its number of samples.

    Inputs that samples share stay whole.

    Args:
        batch: Inputs of the graph.
        model: Has the graph.
        size: Of the parts.
    """
    axes = {name: axis for name, axis in read_batch_axes(model.graph).items() if axis is not None and name in batch}
    if not axes:
        yield batch, 1
        return
    dims = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    count = min(batch[name].shape[axis] for name, axis in axes.items())
    is_fixed = any(dims[name][axis].dim_value > 0 for name, axis in axes.items() if len(dims[name]) > axis)
    start = 0
    while start < count:
        end = count if is_fixed else min(start + size.samples, count)
        part = slice(start, end)
        inputs = {
            name: values[(slice(None),) * axes[name] + (part,)] if name in axes else values
            for name, values in batch.items()
        }
        yield inputs, end - start
        start = end
