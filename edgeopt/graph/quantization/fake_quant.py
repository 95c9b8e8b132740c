"""What an int8 file rounds, with the values at each place: a training that imitates the file is made from it.

Runs in a process of its own (``edgeopt.graph.subprocess_worker``). Nothing is guessed from rules: the file is made as
``quantize`` makes it, and read.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX, get_qmin_qmax_for_qType

from edgeopt.graph.model import arrays, consumers
from edgeopt.graph.quantization.static import Prepared, calibration_batches, prepare, quantize_prepared, ranges_of
from edgeopt.records.quantization import FakeQuantActivation, FakeQuantSites, FakeQuantWeight
from edgeopt.records.recipe import Quantize

READ_SAMPLES = 4
"""So many are enough to tell values apart."""
QUANTIZED_SUFFIX = "_QuantizeLinear_Output"
"""What ``onnxruntime.quantization`` appends to a value's name."""
_Arrays = dict[str, NDArray[Any]]


def read_fake_quant_sites(
    model: onnx.ModelProto, step: Quantize, calibration: Path, inputs: Path, out: Path
) -> FakeQuantSites:
    """Return where the int8 file of a float model rounds, and write the values there.

    Args:
        model: A float model; it is changed.
        step: How it is quantized.
        calibration: As in ``quantize.quantize``.
        inputs: A file of the same kind; its first ``READ_SAMPLES`` samples are run.
        out: An ``.npz`` with ``input/NAME``, ``activation/NAME``, ``weight/NAME`` (from the float model) and
            ``output/NAME`` (of the int8 model, with the arithmetic of its QDQ nodes: no integer kernel).
    """
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        prepared = prepare(model, calibration, step.samples, Path(folder))
        ranges = ranges_of(prepared, step, calibration)
        quantized = quantize_prepared(prepared, step, ranges)
    names = [value.name for value in prepared.model.graph.input]
    batch = next(calibration_batches(inputs, names, READ_SAMPLES))
    activations, weights = _activations(quantized, prepared), _weights(quantized, prepared)
    floats = arrays(prepared.model.graph)
    values = {f"input/{name}": value for name, value in batch.items()}
    found = _run(prepared.model, batch, [one.tensor for one in activations])
    values |= {f"activation/{name}": value for name, value in found.items()}
    values |= {f"weight/{one.tensor}": floats[one.tensor] for one in weights}
    outputs = [value.name for value in quantized.graph.output]
    values |= {f"output/{name}": value for name, value in _run(quantized, batch, outputs).items()}
    np.savez(out, **values)  # type: ignore[arg-type]  # numpy's own arguments have other names
    kinds = {"uint8": onnx.TensorProto.UINT8, "int8": onnx.TensorProto.INT8}
    return FakeQuantSites(
        activations=activations,
        weights=weights,
        activation_levels=_levels(kinds[step.activations]),
        weight_levels=_levels(onnx.TensorProto.INT8, reduce_range=step.reduce_range, symmetric=True),
        ranges={name: (float(low), float(high)) for name, (low, high) in _ends(ranges)},
    )


def _ends(ranges: Any) -> list[tuple[str, tuple[Any, Any]]]:
    return [(name, data.range_value) for name, data in ranges.items()]


def _levels(kind: int, *, reduce_range: bool = False, symmetric: bool = False) -> tuple[int, int]:
    low, high = get_qmin_qmax_for_qType(kind, reduce_range, symmetric)
    return int(low), int(high)


def _activations(quantized: onnx.ModelProto, prepared: Prepared) -> tuple[FakeQuantActivation, ...]:
    """Return the values of the float graph that quantize nodes round, in the graph's order."""
    constants, readers = arrays(quantized.graph), consumers(quantized.graph)
    producers = {name: node for node in prepared.model.graph.node for name in node.output}
    known = producers.keys() | {value.name for value in prepared.model.graph.input}
    found = []
    for node in quantized.graph.node:
        tensor = str(node.output[0]).removesuffix(QUANTIZED_SUFFIX)
        reader = next((user for user, _ in readers.get(node.output[0], []) if user.op_type == "DequantizeLinear"), None)
        if node.op_type != "QuantizeLinear" or tensor not in known or reader is None:
            continue
        scale, zero = (constants[name].item() for name in reader.input[1:3])
        shift = 0.0
        if list(node.input[1:3]) != list(reader.input[1:3]):
            shift = _shift(producers.get(tensor), constants[node.input[2]].item() * scale)
        found.append(FakeQuantActivation(tensor=tensor, scale=scale, zero_point=int(zero), shift=shift))
    return tuple(found)


def _shift(node: onnx.NodeProto | None, offset: float) -> float:
    """Return what rounding adds to a hard sigmoid: the offset is a whole number of steps (``graph.gates``)."""
    given = {} if node is None else {attribute.name: attribute.f for attribute in node.attribute}
    return offset - float(given.get("beta", offset))


def _weights(quantized: onnx.ModelProto, prepared: Prepared) -> tuple[FakeQuantWeight, ...]:
    """Return the weights that dequantize nodes read."""
    constants, floats, readers = arrays(quantized.graph), arrays(prepared.model.graph), consumers(quantized.graph)
    dequantizers = {node.output[0]: node for node in quantized.graph.node if node.op_type == "DequantizeLinear"}
    found = {}
    for output, node in dequantizers.items():
        tensor = str(node.input[0]).removesuffix(TENSOR_NAME_QUANT_SUFFIX)
        values = constants.get(node.input[0])
        if values is None or values.dtype != np.int8 or tensor not in floats:
            continue
        scale = constants[node.input[1]]
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        layer = next((user for user, _ in readers[output]), None)
        bias = dequantizers.get(layer.input[2]) if layer is not None and len(layer.input) > 2 else None
        input_scale = None if bias is None else (constants[bias.input[1]].flat[0] / scale.flat[0]).item()
        found[tensor] = FakeQuantWeight(tensor=tensor, axis=axis if scale.ndim else None, input_scale=input_scale)
    return tuple(found.values())


def _run(model: onnx.ModelProto, batch: _Arrays, names: list[str]) -> _Arrays:
    """Return these values of a model; inputs are values too."""
    wanted = [name for name in dict.fromkeys(names) if name not in batch]
    whole = onnx.ModelProto.FromString(model.SerializeToString())
    given = {value.name for value in whole.graph.output}
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in given)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = dict(zip(wanted, session.run(wanted, batch), strict=True)) if wanted else {}
    return {name: batch[name] if name in batch else found[name] for name in names}
