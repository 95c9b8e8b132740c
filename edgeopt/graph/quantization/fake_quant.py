"""Finds the fake-quant sites of a network: the values that its int8 file rounds. Training for int8 rounds the same.

Nothing is guessed from rules: the int8 file is made as ``edgeopt.graph.quantization.static.quantize`` makes it, and the
sites are read from it. Runs in a subprocess (``edgeopt.graph.jobs``).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX, get_qmin_qmax_for_qType

from edgeopt.graph.model import find_consumers, read_batch_axes, read_initializers
from edgeopt.graph.quantization.static import (
    PreparedModel,
    find_ranges,
    prepare,
    quantize_prepared,
    read_calibration_batches,
)
from edgeopt.graph.rounding.packing import PLANES
from edgeopt.graph.rounding.static_weights import round_to_nearest, symmetric_levels
from edgeopt.records.quantization import FakeQuantActivation, FakeQuantSites, FakeQuantWeight
from edgeopt.records.recipe import Quantize

_READ_SAMPLE_COUNT = 4
"""Samples to run: enough to distinguish the values of a graph."""
_INT8_BITS = 8
_QUANTIZED_SUFFIX = "_QuantizeLinear_Output"
"""``onnxruntime.quantization`` appends this to a value's name."""
_Arrays = dict[str, NDArray[Any]]


def read_fake_quant_sites(
    model: onnx.ModelProto, step: Quantize, calibration: Path, inputs: Path, out: Path
) -> FakeQuantSites:
    """Return where the int8 file of a float model rounds, and write the values there.

    Args:
        model: A float model; it is changed.
        step: How it is quantized.
        calibration: As in ``edgeopt.graph.quantization.static.quantize``.
        inputs: A file in the same format, whose first ``_READ_SAMPLE_COUNT`` samples are run.
        out: Becomes an ``.npz`` with ``input/NAME``, ``activation/NAME``, ``weight/NAME`` (from the float model) and
            ``output/NAME`` (of the int8 model, computed by its QDQ nodes without integer kernels).
    """
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        prepared = prepare(model, calibration, step.samples, Path(folder))
        ranges = find_ranges(prepared, step, calibration)
        quantized = quantize_prepared(prepared, step, ranges)
        few = frozenset[str]()
        if step.weight_bits in PLANES:
            assert step.weight_bits is not None
            few = round_to_nearest(prepared.model, quantized, step.weight_bits)
    batch = next(read_calibration_batches(inputs, read_batch_axes(prepared.model.graph), _READ_SAMPLE_COUNT))
    activations = _find_activations(quantized, prepared)
    levels = _find_levels(onnx.TensorProto.INT8, reduce_range=step.reduce_range, symmetric=True)
    weights = tuple(
        msgspec.structs.replace(weight, levels=symmetric_levels(step.weight_bits or _INT8_BITS))
        if weight.tensor in few
        else weight
        for weight in _find_weights(quantized, prepared, levels)
    )
    floats = read_initializers(prepared.model.graph)
    values = {f"input/{name}": value for name, value in batch.items()}
    computed = _run(prepared.model, batch, [activation.tensor for activation in activations])
    values |= {f"activation/{name}": value for name, value in computed.items()}
    values |= {f"weight/{weight.tensor}": floats[weight.tensor] for weight in weights}
    outputs = [value.name for value in quantized.graph.output]
    values |= {f"output/{name}": value for name, value in _run(quantized, batch, outputs).items()}
    np.savez(out, **values)  # type: ignore[arg-type]  # numpy's own arguments have other names
    types = {"uint8": onnx.TensorProto.UINT8, "int8": onnx.TensorProto.INT8}
    return FakeQuantSites(
        activations=activations,
        weights=weights,
        activation_levels=_find_levels(types[step.activations]),
        ranges={name: (float(low), float(high)) for name, (low, high) in _list_ends(ranges)},
    )


def _list_ends(ranges: Any) -> list[tuple[str, tuple[Any, Any]]]:
    return [(name, data.range_value) for name, data in ranges.items()]


def _find_levels(dtype: int, *, reduce_range: bool = False, symmetric: bool = False) -> tuple[int, int]:
    low, high = get_qmin_qmax_for_qType(dtype, reduce_range, symmetric)
    return int(low), int(high)


def _find_activations(quantized: onnx.ModelProto, prepared: PreparedModel) -> tuple[FakeQuantActivation, ...]:
    """Return the values of the float graph that quantize nodes round, in the graph's order."""
    constants, readers = read_initializers(quantized.graph), find_consumers(quantized.graph)
    producers = {name: node for node in prepared.model.graph.node for name in node.output}
    float_values = producers.keys() | {value.name for value in prepared.model.graph.input}
    activations = []
    for node in quantized.graph.node:
        tensor = str(node.output[0]).removesuffix(_QUANTIZED_SUFFIX)
        reader = next((user for user, _ in readers.get(node.output[0], []) if user.op_type == "DequantizeLinear"), None)
        if node.op_type != "QuantizeLinear" or tensor not in float_values or reader is None:
            continue
        scale, zero = (constants[name].item() for name in reader.input[1:3])
        shift = 0.0
        if list(node.input[1:3]) != list(reader.input[1:3]):
            shift = _find_shift(producers.get(tensor), constants[node.input[2]].item() * scale)
        activations.append(FakeQuantActivation(tensor=tensor, scale=scale, zero_point=int(zero), shift=shift))
    return tuple(activations)


def _find_shift(node: onnx.NodeProto | None, offset: float) -> float:
    """Return what rounding its offset to a whole number of steps adds to a hard sigmoid.

    See ``edgeopt.graph.quantization.hard_sigmoid``.
    """
    attributes = {} if node is None else {attribute.name: attribute.f for attribute in node.attribute}
    return offset - float(attributes.get("beta", offset))


def _find_weights(
    quantized: onnx.ModelProto, prepared: PreparedModel, levels: tuple[int, int]
) -> tuple[FakeQuantWeight, ...]:
    """Return the weights that dequantize nodes read, all with the same levels."""
    constants, floats, readers = (
        read_initializers(quantized.graph),
        read_initializers(prepared.model.graph),
        find_consumers(quantized.graph),
    )
    dequantizers = {node.output[0]: node for node in quantized.graph.node if node.op_type == "DequantizeLinear"}
    weights = {}
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
        weights[tensor] = FakeQuantWeight(
            tensor=tensor, axis=axis if scale.ndim else None, input_scale=input_scale, levels=levels
        )
    return tuple(weights.values())


def _run(model: onnx.ModelProto, batch: _Arrays, names: list[str]) -> _Arrays:
    """Return the named values of a model, inputs included."""
    wanted = [name for name in dict.fromkeys(names) if name not in batch]
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    outputs = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    computed = dict(zip(wanted, session.run(wanted, batch), strict=True)) if wanted else {}
    return {name: batch[name] if name in batch else computed[name] for name in names}
