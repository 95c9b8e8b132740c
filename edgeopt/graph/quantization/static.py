"""Quantize: static int8 with quantize and dequantize nodes (QDQ).

``onnxruntime.quantization`` writes the nodes. This module chooses the nodes to quantize and the source of the ranges.
Runs in a subprocess (``edgeopt.graph.jobs``).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from edgeopt.errors import StepError
from edgeopt.graph.facts import has_half_weights
from edgeopt.graph.model import (
    READ_INSIDE,
    STANDARD_DOMAINS,
    find_consumers,
    lift_constants,
    load,
    lower_ir,
    name_nodes,
    read_batch_axes,
    read_initializers,
    read_opset,
    save,
    sort_nodes,
    walk_graphs,
)
from edgeopt.graph.pooling import write_global_average_pools
from edgeopt.graph.preparation.attempts import attempt
from edgeopt.graph.preparation.masks import find_mask_nodes
from edgeopt.graph.preparation.operator_sets import convert_operator_set
from edgeopt.graph.preparation.shapes import prepare_shapes
from edgeopt.graph.preparation.widening import widen_halves
from edgeopt.graph.quantization.activations import ArrayBatches
from edgeopt.graph.quantization.bias_correction import correct_biases
from edgeopt.graph.quantization.calibration import ActivationRanges, to_tensors_data
from edgeopt.graph.quantization.cross_layer_equalization import equalize
from edgeopt.graph.quantization.hard_sigmoid import write_hard_sigmoids
from edgeopt.graph.quantization.hard_swish import write_hard_swishes
from edgeopt.graph.quantization.weight_axes import find_single_scale_weights
from edgeopt.graph.rounding.packing import PLANES
from edgeopt.graph.rounding.static_weights import round_again, round_to_nearest
from edgeopt.graph.small_constants import find_small_constant_nodes
from edgeopt.records.codec import from_json
from edgeopt.records.quantization import FakeQuantSites
from edgeopt.records.recipe import Quantize

_STAGE = "quantize"
_NOTHING = "no operator of this graph was quantized: this variant is skipped."
_CHANNEL_OPSET = 13
"""The first with a scale for each channel."""
_MIN_OPSET = 10
"""The first with QuantizeLinear."""
_MIN_INT8_INPUT_CHANNELS = 4
"""An int8 convolution gathers its input first; with fewer channels, that costs more time than int8 saves."""
_PRODUCTS = ("Gemm", "MatMul")
_REMOVABLE = ("Relu", "Clip")
"""Activations that the quantizer removes."""
_WEIGHTED = ("Conv", "ConvTranspose", *_PRODUCTS)
OPERATORS = sorted({*QDQRegistry, *QLinearOpsRegistry})
"""Operators that ``onnxruntime.quantization`` quantizes by default."""
_TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}


@dataclass(frozen=True)
class PreparedModel:
    """A float model ready to be quantized any number of times: every node has a name, and shapes are inferred."""

    model: onnx.ModelProto
    ranges: ActivationRanges
    batches: ArrayBatches
    float_nodes: tuple[str, ...]
    """Nodes that stay float whatever the recipe says: int8 is slower there, or would round a small constant away."""
    notes: tuple[str, ...]


def quantize(model: onnx.ModelProto, step: Quantize, calibration: Path) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return the model in int8 with QDQ nodes, and notes.

    Args:
        model: A float model; its convolutions' batch norms are folded.
        step: Types, ranges, calibration method, and the nodes that stay float.
        calibration: A batch file (``edgeopt.bench.worker.write_batches``) with the names of the graph's inputs. For
            trained ranges, the JSON of ``FakeQuantSites``.

    Raises:
        StepError: the operator set is too old, or the calibration file lacks what the graph needs.
    """
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        prepared = prepare(model, calibration, step.samples, Path(folder))
        unknown = sorted(set(step.float_nodes) - {node.name for node in prepared.model.graph.node})
        if unknown:
            raise StepError(_STAGE, f"the recipe leaves '{unknown[0]}' in float, but the graph has no such node.")
        if step.equalize:
            prepared = equalize_prepared(prepared, Path(folder))
        notes = list(prepared.notes)
        quantized = quantize_prepared(prepared, step, find_ranges(prepared, step, calibration), notes=notes)
        if step.weight_bits in PLANES and step.calibration == "trained":
            assert step.weight_bits is not None
            round_to_nearest(prepared.model, quantized, step.weight_bits)
        elif step.weight_bits is not None:
            bits_of = dict(step.bits_of)
            count = round_again(prepared.model, quantized, prepared.batches, step.weight_bits, bits_of)
            notes.append(f"quantize: {count} tensors rounded so that errors cancel over the calibration samples")
    if not any(node.op_type == "QuantizeLinear" for node in quantized.graph.node):
        raise StepError(_STAGE, _NOTHING)
    return quantized, tuple(notes)


def prepare(model: onnx.ModelProto, calibration: Path, samples: int, folder: Path) -> PreparedModel:
    """Infer shapes, name the nodes, and find those that stay float in any case.

    Args:
        model: A float model; it is changed.
        calibration: As in ``quantize``.
        samples: Number of its samples to use.
        folder: For the prepared file, which must exist as long as the result is used.

    Raises:
        StepError: the graph has no operator of ONNX itself, such as trees; or as ``_raise_operator_set`` says.
    """
    if not any(node.domain in STANDARD_DOMAINS for graph in walk_graphs(model.graph) for node in graph.node):
        raise StepError(_STAGE, _NOTHING)
    lower_ir(model)
    if has_half_weights(model):
        widen_halves(model)
    axes = read_batch_axes(model.graph)
    model, notes = _raise_operator_set(model, calibration, axes, samples)
    write_global_average_pools(model)
    name_nodes(model.graph)
    plain, path = folder / "plain.onnx", folder / "prepared.onnx"
    save(model, plain)
    failure = prepare_shapes(plain, path)
    notes += [failure] if failure else []
    prepared = load(path, _STAGE)
    lift_constants(prepared.graph)
    name_nodes(prepared.graph)
    float_nodes = _find_faster_in_float(prepared)
    notes += [
        f"quantize: '{name}' stays float: it reads fewer than {_MIN_INT8_INPUT_CHANNELS} channels"
        for name in float_nodes
    ]
    small = [name for name in find_small_constant_nodes(prepared.graph) if name not in float_nodes]
    if small:
        notes.append(f"quantize: {len(small)} nodes around constants below 6e-5 stay float, such as '{small[0]}'")
    masks = [name for name in find_mask_nodes(prepared.graph) if name not in (*float_nodes, *small)]
    if masks:
        notes.append(f"quantize: {len(masks)} nodes around the mask of a softmax stay float, such as '{masks[0]}'")
    inside = [name for name in _find_read_inside(prepared.graph) if name not in (*float_nodes, *small, *masks)]
    notes += [f"quantize: '{name}' stays float: a branch or a loop body reads it" for name in inside]

    def batches() -> Iterator[dict[str, NDArray[Any]]]:
        return read_calibration_batches(calibration, axes, samples)

    facts = calibration.stat()
    kept = calibration.with_name(f"ranges-{calibration.stem}-{facts.st_size}-{facts.st_mtime_ns}-{samples}")
    ranges = ActivationRanges(prepared, path, batches, kept)
    return PreparedModel(prepared, ranges, batches, (*float_nodes, *small, *masks, *inside), tuple(notes))


def _raise_operator_set(
    model: onnx.ModelProto, calibration: Path, axes: Mapping[str, int | None], samples: int
) -> tuple[onnx.ModelProto, list[str]]:
    """Return the model in an operator set that knows a scale for each channel, if it can be had, and notes.

    Raises:
        StepError: it cannot, and the operator set has no quantization at all.
    """
    version = read_opset(model)
    if version >= _CHANNEL_OPSET:
        return model, []
    batch = next(read_calibration_batches(calibration, axes, samples))
    raised, reason = convert_operator_set(model, _CHANNEL_OPSET, batch)
    if raised is not None:
        return raised, [f"quantize: operator set {version} raised to {_CHANNEL_OPSET}, for a scale for each channel"]
    if version < _MIN_OPSET:
        raise StepError(_STAGE, f"int8 needs operator set {_MIN_OPSET} or newer, the file has {version}: {reason}.")
    return model, [f"quantize: one scale for each tensor, because operator set {version} cannot be raised ({reason})"]


def equalize_prepared(prepared: PreparedModel, folder: Path) -> PreparedModel:
    """Return the same network with equalized channels; see ``edgeopt.graph.quantization.cross_layer_equalization``.

    Args:
        prepared: The float model; it is not changed.
        folder: For the new file, which must exist as long as the result is used.
    """
    model, path = onnx.ModelProto.FromString(prepared.model.SerializeToString()), folder / "equalized.onnx"
    count = equalize(model, prepared.batches)
    save(model, path)
    note = f"quantize: channels equalized between {count} pairs of convolutions"
    ranges = ActivationRanges(model, path, prepared.batches, prepared.ranges.kept)
    return dataclasses.replace(prepared, model=model, ranges=ranges, notes=(*prepared.notes, note))


def find_ranges(prepared: PreparedModel, step: Quantize, calibration: Path) -> TensorsData:
    """Return the ranges for a step: calibrated, or those that the network was trained with.

    Raises:
        StepError: the network was trained with the ranges of another graph.
    """
    if step.calibration != "trained":
        return prepared.ranges.find(step.calibration)
    trained = from_json(calibration.read_bytes(), FakeQuantSites).ranges
    graph = prepared.model.graph
    known = {value.name for value in graph.input} | {name for node in graph.node for name in node.output}
    unknown = sorted(trained.keys() - known)
    if unknown:
        raise StepError(_STAGE, f"the network was trained with a range for '{unknown[0]}', which this graph lacks.")
    return to_tensors_data(trained)


def quantize_prepared(
    prepared: PreparedModel,
    step: Quantize,
    ranges: TensorsData,
    only: tuple[str, ...] = (),
    notes: list[str] | None = None,
) -> onnx.ModelProto:
    """Return the quantized model.

    Args:
        prepared: The float model; it is not changed.
        step: Types, and the nodes that stay float.
        ranges: Ranges of its activations.
        only: The only nodes to quantize; empty for all that can be.
        notes: Is given a note if the quantizer needed another way.
    """
    told = [] if notes is None else notes
    model = onnx.ModelProto.FromString(prepared.model.SerializeToString())
    if step.correct_bias:
        rounded = _insert_pairs(model, prepared, step, ranges, only, [])
        correct_biases(model, rounded, prepared.batches)
    quantized = _insert_pairs(model, prepared, step, ranges, only, told)
    if step.activations == "uint8":
        write_hard_swishes(quantized)
        write_hard_sigmoids(quantized)
    _remove_output_rounding(quantized)
    return quantized


def _insert_pairs(
    model: onnx.ModelProto,
    prepared: PreparedModel,
    step: Quantize,
    ranges: TensorsData,
    only: tuple[str, ...],
    notes: list[str],
) -> onnx.ModelProto:
    """Return a float model with quantize and dequantize nodes; if the quantizer gives up, in the next way.

    Raises:
        StepError: it gives up in every way.
    """
    per_channel = step.per_channel and read_opset(model) >= _CHANNEL_OPSET
    one_scale = {"quant_type": QuantType.QInt8, "symmetric": True}
    overrides = {name: [one_scale] for name in find_single_scale_weights(model.graph)} if per_channel else {}
    ways = [
        ("", per_channel, OPERATORS),
        ("only in convolutions and matrix products", per_channel, list(_WEIGHTED)),
        ("with one scale for each tensor", False, OPERATORS),
    ]
    failures: list[str] = []
    for words, by_channel, operators in ways:
        quantizer = QDQQuantizer(
            onnx.ModelProto.FromString(model.SerializeToString()),
            by_channel,
            step.reduce_range,
            QuantType.QInt8,
            _TYPES[step.activations],
            ranges,
            list(only),
            [*prepared.float_nodes, *step.float_nodes],
            operators,
            {"TensorQuantOverrides": overrides},
        )
        reason = attempt(quantizer.quantize_model).reason
        if reason is not None:
            failures.append(reason)
            continue
        if failures:
            notes.append(f"quantize: {words}, because onnxruntime.quantization failed: {failures[0]}")
        quantized: onnx.ModelProto = quantizer.model.model
        sort_nodes(quantized.graph)  # the new nodes come last
        return quantized
    raise StepError(_STAGE, f"onnxruntime.quantization fails on this graph: {failures[0]}")


def _remove_output_rounding(model: onnx.ModelProto) -> None:
    """Remove the last quantize and dequantize nodes if a matrix product makes a graph's output.

    Its kernel sums in int32 and can output floats: rounding them to 8 bits would cost nodes and accuracy for nothing.
    """
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    readers = find_consumers(graph)
    for value in graph.output:
        last = producers.get(value.name)
        quantizer = producers.get(last.input[0]) if last is not None and last.op_type == "DequantizeLinear" else None
        product = producers.get(quantizer.input[0]) if quantizer is not None else None
        if last is None or quantizer is None or product is None or product.op_type not in _PRODUCTS:
            continue
        if len(readers[product.output[0]]) == len(readers[quantizer.output[0]]) == 1:
            graph.node.remove(last)
            graph.node.remove(quantizer)
            product.output[0] = value.name


def _find_faster_in_float(model: onnx.ModelProto) -> list[str]:
    """Return the names of convolutions that read an input of the graph with few channels, and of its resizing."""
    inputs = {value.name for value in model.graph.input}
    resized = {
        node.output[0]: node.name for node in model.graph.node if node.op_type == "Resize" and node.input[0] in inputs
    }
    weights = read_initializers(model.graph)
    found = [
        node
        for node in model.graph.node
        if node.op_type == "Conv"
        and node.input[0] in inputs | resized.keys()
        and node.input[1] in weights
        and weights[node.input[1]].shape[1] < _MIN_INT8_INPUT_CHANNELS
    ]
    resizing = dict.fromkeys(resized[node.input[0]] for node in found if node.input[0] in resized)
    return [*resizing, *(node.name for node in found)]


def _find_read_inside(graph: onnx.GraphProto) -> list[str]:
    """Return the names of activations that graphs inside nodes read.

    The quantizer removes an activation whose rounding clips the same values, but leaves its readers inside other graphs
    with the values before it.
    """
    inner = {name for name, uses in find_consumers(graph).items() if any(index == READ_INSIDE for _, index in uses)}
    return [node.name for node in graph.node if node.op_type in _REMOVABLE and inner & set(node.output)]


def read_calibration_batches(
    path: Path, axes: Mapping[str, int | None], samples: int
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield batches from a calibration file, up to ``samples`` samples.

    Args:
        path: A batch file.
        axes: The batch dimension of each input, see ``edgeopt.graph.model.read_batch_axes``.
        samples: How many.
    """
    remaining = samples
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = json.loads(file["names.json"])
            missing = [name for name in axes if name not in stored]
            if missing:
                raise StepError(_STAGE, f"{path} has no arrays for input '{missing[0]}', only {', '.join(stored)}.")
            keys = {name: stored.index(name) for name in axes}
            for index in itertools.count():
                if remaining <= 0 or any(f"{index}/{key}" not in file for key in keys.values()):
                    break
                batch = {name: file[f"{index}/{key}"] for name, key in keys.items()}
                count = min(remaining, count_batch(batch, axes))
                remaining -= count
                yield {
                    name: values if (axis := axes[name]) is None else values.take(range(count), axis)
                    for name, values in batch.items()
                }
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StepError(_STAGE, f"{path} lacks calibration batches for inputs {list(axes)} ({error}).") from error
    if remaining == samples:
        raise StepError(_STAGE, f"{path} has no batches.")


def count_batch(batch: Mapping[str, NDArray[Any]], axes: Mapping[str, int | None]) -> int:
    """Return how many samples a batch has."""
    return next((int(values.shape[axis]) for name, values in batch.items() if (axis := axes[name]) is not None), 1)
