"""Reads the facts of an ``.onnx`` file: parameters, multiply-accumulates, sizes, hash, inputs, outputs, operators."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import onnx
from onnx import TensorProto

from edgeopt.graph.counting.bodies import Shape
from edgeopt.graph.counting.macs import count_macs
from edgeopt.graph.counting.parameters import (
    INTEGER_OPERATORS,
    count_parameters,
    has_integer_weights,
    stored_tensors,
)
from edgeopt.graph.given.values import describe_type, model_inputs
from edgeopt.graph.model import load, read_batch_axes, read_initializers, read_opset, walk_graphs
from edgeopt.graph.rounding.packing import unpack
from edgeopt.graph.weights.tables import find_tables
from edgeopt.model_files.layout import hash_of_file, max_file_bytes, model_parts

_STAGE = "facts"
_DEFLATE_LEVEL = 9
_SAMPLE_BYTES = 2**20
_MAIN_TYPE_RATIO = 0.01
"""Share of the parameters from which on a type is named."""
MATRIX_PRODUCTS = ("MatMul", "Gemm")
RECURRENT_CELLS = ("LSTM",)
"""Recurrent cells with an int8 kernel in ONNX Runtime."""


class ValueInfo(NamedTuple):
    """An input or an output; a string in ``shape`` is a dynamic dimension."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


class OnnxFacts(NamedTuple):
    """The facts of one file."""

    parameters: int
    nonzero_parameters: int
    weight_types: tuple[str, ...]
    """Of at least 1 % of the parameters each, the most frequent first; a bias in int32 is only named without others."""
    macs: int
    """Multiply-accumulates of convolutions, matrix products and recurrent cells, for one sample (``count_macs``)."""
    opset: int
    ir_version: int
    size_bytes: int
    download_bytes: int
    """After deflate."""
    is_download_estimated: bool
    """Whether that is an estimate, as for files above 2 GiB."""
    sha256: str
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    operators: dict[str, int]
    notes: tuple[str, ...]
    """On what could not be counted."""


def read_facts(path: Path, sample_shapes: Mapping[str, Shape] | None = None) -> OnnxFacts:
    """Read the facts of one file.

    Args:
        path: The file.
        sample_shapes: Of inputs, for one sample; dynamic dimensions of others count as 1.

    Raises:
        StepError: it cannot be read.
    """
    model = load(path, _STAGE)
    parts = model_parts(path)
    size_bytes = sum(part.stat().st_size for part in parts)
    operators = Counter(node.op_type for graph in walk_graphs(model.graph) for node in graph.node)
    packed_bits = unpack(model)
    parameters, macs = count_parameters(model), count_macs(model, sample_shapes)
    return OnnxFacts(
        parameters=parameters.total,
        nonzero_parameters=parameters.nonzero,
        weight_types=_main_types(_with_packed(parameters.types, model, packed_bits)),
        macs=macs.total // _samples_at_once(model.graph),
        opset=read_opset(model),
        ir_version=model.ir_version,
        size_bytes=size_bytes,
        download_bytes=sum(map(measure_deflated, parts)),
        is_download_estimated=size_bytes > max_file_bytes(),
        sha256=hash_of_file(path),
        inputs=tuple(_read_value(value) for value in model_inputs(model.graph)),
        outputs=tuple(_read_value(value) for value in model.graph.output),
        operators=dict(operators.most_common()),
        notes=macs.notes,
    )


def _samples_at_once(graph: onnx.GraphProto) -> int:
    """Return the fixed batch size of a graph: one number in all its inputs and outputs; 1 if there is none.

    A single dimension says nothing of a batch: a sound of ``[16000]`` is one sample.
    """
    dims = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.input}
    axes = read_batch_axes(graph).items()
    sizes = {dims[name][axis] for name, axis in axes if axis is not None and axis < len(dims[name])}
    has_rows = any(len(dims[name]) > 1 for name, _ in axes)
    size = sizes.pop() if len(sizes) == 1 and has_rows else 0
    outputs = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.output]
    return size if size and all(size in shape[:2] for shape in outputs) else 1


def measure_deflated(path: Path) -> int:
    """Return a file's size after deflate; that of one too large to be compressed whole is estimated from every 16th MB.

    Deflate takes minutes for a GB, and the weights of a network are alike all over its file.
    """
    size_bytes = path.stat().st_size
    if size_bytes <= max_file_bytes():
        return len(zlib.compress(path.read_bytes(), _DEFLATE_LEVEL))
    read = deflated = 0
    with path.open("rb") as stream:
        for start in range(0, size_bytes, 16 * _SAMPLE_BYTES):
            stream.seek(start)
            block = stream.read(_SAMPLE_BYTES)
            read, deflated = read + len(block), deflated + len(zlib.compress(block, _DEFLATE_LEVEL))
    return round(size_bytes * deflated / read)


def _read_value(value: onnx.ValueInfoProto) -> ValueInfo:
    """Return the name, shape and type of an input or output."""
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim)
    return ValueInfo(value.name, shape, describe_type(value.type))


def _with_packed(types: Counter[str], model: onnx.ModelProto, bits: Mapping[str, int]) -> Counter[str]:
    """Return how many weights there are of each type, with the bits that packed ones are stored in."""
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer if tensor.name in bits}
    packed = Counter[str]()
    for name, size in sizes.items():
        packed[f"int{bits[name]}"] += size
    return types - Counter(int8=packed.total()) + packed


def _main_types(types: Counter[str]) -> tuple[str, ...]:
    """Return the types of most weights."""
    counted = Counter({name: count for name, count in types.items() if name != "int32"}) or types
    least = _MAIN_TYPE_RATIO * counted.total()
    return tuple(name for name, count in counted.most_common() if count >= least)


def is_quantized(model: onnx.ModelProto) -> bool:
    """Tell whether a model already computes in integers, or stores its weights in them."""
    kinds = {node.op_type for graph in walk_graphs(model.graph) for node in graph.node}
    kinds |= {node.op_type for function in model.functions for node in function.node}
    return bool(kinds & INTEGER_OPERATORS) or has_integer_weights(model)


def has_half_weights(model: onnx.ModelProto) -> bool:
    """Tell whether a model stores weights in 16 bits."""
    halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    return any(tensor.data_type in halves for tensor in stored_tensors(model.graph).values())


def is_mostly_products(model: onnx.ModelProto, sample_shapes: Mapping[str, Shape] | None = None) -> bool:
    """Tell whether recurrent cells and products of activations with weights are most of a network's work.

    Dynamic dimensions have the sizes of a sample, or else 1.
    """
    weights = set(stored_tensors(model.graph))
    work = {True: 0, False: 0}
    for node, macs in count_macs(model, sample_shapes).by_node:
        work[node.op_type in RECURRENT_CELLS or (node.op_type in MATRIX_PRODUCTS and node.input[1] in weights)] += macs
    return work[True] > work[False]


def measure_packable_bytes_ratio(model: onnx.ModelProto) -> float:
    """Return the share of the stored bytes, 0..1, that belongs to tables and to weights of products."""
    stored = read_initializers(model.graph)
    transposed = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Transpose"}
    weights = {node.input[1] for node in model.graph.node if node.op_type in MATRIX_PRODUCTS}
    found = {transposed.get(name, name) for name in weights} | find_tables(model.graph).keys()
    total = sum(values.nbytes for values in stored.values())
    return sum(stored[name].nbytes for name in found if name in stored) / total if total else 0.0
