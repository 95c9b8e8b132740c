"""What values inside a float graph are on calibration batches; opens an ONNX Runtime session in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

ArrayBatch = dict[str, NDArray[Any]]
ArrayBatches = Callable[[], Iterator[ArrayBatch]]
"""Yields the calibration batches anew at each call."""
SAMPLES = 16
"""At most so many samples at once: every watched value of a batch is in memory."""


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Open a model on one thread of the processor."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def read_activations(
    model: onnx.ModelProto, names: Iterable[str], batches: Iterable[ArrayBatch]
) -> Iterator[ArrayBatch]:
    """Yield what the named values are, in batches of at most ``SAMPLES`` where the graph allows it.

    Args:
        model: A float model; it is not changed.
        names: Of values of the top graph: float tensors, or the graph's own inputs.
        batches: What goes in.
    """
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    inputs = {value.name for value in copy.graph.input}
    known = {value.name for value in copy.graph.output}
    wanted = list(dict.fromkeys(names))
    copy.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in wanted
        if name not in inputs | known
    )
    made = [name for name in wanted if name not in inputs]
    session = session_of(copy)
    for batch in batches:
        for part in _parts(batch, model):
            found = dict(zip(made, session.run(made, part), strict=True)) if made else {}
            yield {name: found[name] if name in found else part[name] for name in wanted}


def channel_peaks(
    model: onnx.ModelProto, names: Sequence[str], batches: ArrayBatches
) -> dict[str, NDArray[np.float64]]:
    """Return the largest magnitude of each channel (axis 1) of the named values."""
    peaks: dict[str, NDArray[np.float64]] = {}
    for values in read_activations(model, names, batches()):
        for name, value in values.items():
            found = np.abs(value).max(axis=(0, *range(2, value.ndim))).astype(np.float64)
            peaks[name] = np.maximum(peaks.get(name, found), found)
    return peaks


def channel_means(
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


def _parts(batch: ArrayBatch, model: onnx.ModelProto) -> Iterator[ArrayBatch]:
    """Cut a batch into small ones where the graph allows it."""
    first = model.graph.input[0].type.tensor_type.shape.dim
    count = len(next(iter(batch.values())))
    step = count if first and first[0].HasField("dim_value") else SAMPLES
    for start in range(0, count, step):
        yield {name: values[start : start + step] for name, values in batch.items()}
