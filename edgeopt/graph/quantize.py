"""Quantize: static int8 with quantize and dequantize nodes (QDQ). Runs in its own process (``edgeopt.graph.child``).

``onnxruntime.quantization`` does the work; what is decided here is which nodes take part and what the ranges come from.
"""

from __future__ import annotations

import itertools
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgeopt.errors import StepError
from edgeopt.graph.files import arrays, consumers, load, opset_of, save
from edgeopt.graph.pooling import write_global_average_pools
from edgeopt.records.recipe import Quantize

STAGE = "quantize"
MIN_OPSET = 13  # the first with a scale for each channel
FEW_CHANNELS = 4  # int8 convolutions gather their input first: with fewer channels that costs more than it saves
PRODUCTS = ("Gemm", "MatMul")
_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
_TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
_PRE_PROCESSING_FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


def quantize(model: onnx.ModelProto, step: Quantize, calibration: Path) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return the model in int8 QDQ form, and notes.

    Args:
        model: A float model; its convolutions' batch norms are folded.
        step: Types, ranges and the calibration's method.
        calibration: An uncompressed ``.npz`` with keys ``B/NAME``: batch index, name of the graph's input.

    Raises:
        StepError: the operator set is too old, or the calibration file lacks what the graph needs.
    """
    if opset_of(model) < MIN_OPSET:
        raise StepError(STAGE, f"int8 per channel needs operator set {MIN_OPSET}, the file has {opset_of(model)}.")
    notes: list[str] = []
    write_global_average_pools(model)
    names = [value.name for value in model.graph.input]
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        plain, prepared, result = (Path(folder) / name for name in ("plain.onnx", "prepared.onnx", "result.onnx"))
        save(model, plain)
        try:
            quant_pre_process(str(plain), str(prepared))
        except _PRE_PROCESSING_FAILURES:
            notes.append("quantize: prepared without symbolic shapes, which failed on this graph")
            quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        floats = _better_in_float(load(prepared, STAGE))
        notes += [f"quantize: '{name}' stays float, it reads fewer than {FEW_CHANNELS} channels" for name in floats]
        quantize_static(
            str(prepared),
            str(result),
            _Batches(calibration, names, step.samples),
            quant_format=QuantFormat.QDQ,
            per_channel=step.per_channel,
            reduce_range=step.reduce_range,
            activation_type=_TYPES[step.activations],
            weight_type=QuantType.QInt8,
            nodes_to_exclude=floats,
            calibrate_method=_METHODS[step.calibration],
        )
        quantized = load(result, STAGE)
    _leave_products_in_float(quantized)
    if not any(node.op_type == "QuantizeLinear" for node in quantized.graph.node):
        raise StepError(STAGE, "no operator of this graph has an int8 form. Leave this step out.")
    return quantized, tuple(notes)


def _leave_products_in_float(model: onnx.ModelProto) -> None:
    """Remove the last quantize and dequantize where a matrix product makes a graph's output.

    Its kernel sums in int32 and can give floats: rounding them to 8 bits would cost nodes and accuracy for nothing.
    """
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    readers = consumers(graph)
    for value in graph.output:
        last = producers.get(value.name)
        quantizer = producers.get(last.input[0]) if last is not None and last.op_type == "DequantizeLinear" else None
        product = producers.get(quantizer.input[0]) if quantizer is not None else None
        if last is None or quantizer is None or product is None or product.op_type not in PRODUCTS:
            continue
        if len(readers[product.output[0]]) == len(readers[quantizer.output[0]]) == 1:
            graph.node.remove(last)
            graph.node.remove(quantizer)
            product.output[0] = value.name


def _better_in_float(model: onnx.ModelProto) -> list[str]:
    """Return the names of convolutions that read the image itself, with few channels."""
    inputs = {value.name for value in model.graph.input}
    weights = arrays(model.graph)
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv"
        and node.input[0] in inputs
        and node.input[1] in weights
        and weights[node.input[1]].shape[1] < FEW_CHANNELS
    ]


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """The first ``samples`` samples of a calibration file, batch by batch."""

    def __init__(self, path: Path, names: list[str], samples: int) -> None:
        self._batches = _read(path, names, samples)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next batch, or None at the end."""
        return next(self._batches, None)


def _read(path: Path, names: list[str], samples: int) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield batches from a calibration file until ``samples`` are used."""
    left = samples
    try:
        with np.load(path, allow_pickle=False) as file:
            for index in itertools.count():
                if left <= 0 or f"{index}/{names[0]}" not in file:
                    break
                batch = {name: file[f"{index}/{name}"][:left] for name in names}
                left -= len(batch[names[0]])
                yield batch
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StepError(STAGE, f"{path} lacks calibration batches for inputs {names} ({error}).") from error
    if left == samples:
        raise StepError(STAGE, f"{path} has no batch '0/{names[0]}'. Calibrate with the graph's input names.")
