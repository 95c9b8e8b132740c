"""Reads the facts of an ``.onnx`` file: parameters, multiply-accumulates, sizes, hash, inputs, outputs, operators."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeopt.graph.given.values import describe_type, model_inputs, name_element
from edgeopt.graph.model import load, read_initializers, read_opset, walk_graphs
from edgeopt.graph.rounding.packing import unpack
from edgeopt.graph.weights.matmul_nbits import count_packed_weights
from edgeopt.graph.weights.tables import find_row_scales, find_tables

_STAGE = "facts"
_DEFLATE_LEVEL = 9
_MAIN_TYPE_RATIO = 0.01
"""Share of the parameters from which on a type is named."""
_WEIGHTS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_QUANTIZED = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32)
# inputs that hold scales and zero points, which are not parameters of the network
_SCALE_INPUTS: dict[str, tuple[int, ...]] = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QLinearAdd": (1, 2, 4, 5, 6, 7),
    "QLinearMul": (1, 2, 4, 5, 6, 7),
    "QLinearGlobalAveragePool": (1, 2, 3, 4),
    "QLinearAveragePool": (1, 2, 3, 4),
    "QLinearSigmoid": (1, 2, 3, 4),
    "QLinearLeakyRelu": (1, 2, 3, 4),
    "QGemm": (1, 2, 4, 5, 7, 8),
    "MatMulInteger": (2, 3),
    "DynamicQuantizeLSTM": (8, 9, 10, 11),
}
# from ONNX Runtime's own operators to the standard operator of the same shapes and the inputs that it keeps
_STANDARD_OPERATORS: dict[str, tuple[str, tuple[int, ...]]] = {
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QLinearSigmoid": ("Sigmoid", (0,)),
    "QLinearLeakyRelu": ("LeakyRelu", (0,)),
    "QGemm": ("Gemm", (0, 3)),
}
MATRIX_PRODUCTS = ("MatMul", "Gemm")
RECURRENT_CELLS = ("LSTM",)
"""Recurrent cells with an int8 kernel in ONNX Runtime."""
Shape = tuple[int, ...]


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
    """Multiply-accumulates of convolutions, matrix products and recurrent cells, for one sample."""
    opset: int
    ir_version: int
    size_bytes: int
    download_bytes: int
    """After deflate."""
    sha256: str
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    operators: dict[str, int]


def read_facts(path: Path, sample_shapes: Mapping[str, Shape] | None = None) -> OnnxFacts:
    """Read the facts of one file.

    Args:
        path: The file.
        sample_shapes: Of inputs, for one sample; dynamic dimensions of others count as 1.

    Raises:
        StepError: it cannot be read.
    """
    model = load(path, _STAGE)
    data = path.read_bytes()
    operators = Counter(node.op_type for graph in walk_graphs(model.graph) for node in graph.node)
    packed_bits = unpack(model)
    parameters, nonzero, types = _count_parameters(model.graph, packed_bits)
    return OnnxFacts(
        parameters=parameters,
        nonzero_parameters=nonzero,
        weight_types=_main_types(types),
        macs=sum(macs for _, macs in count_macs_by_node(model, sample_shapes)),
        opset=read_opset(model),
        ir_version=model.ir_version,
        size_bytes=len(data),
        download_bytes=len(zlib.compress(data, _DEFLATE_LEVEL)),
        sha256=hashlib.sha256(data).hexdigest(),
        inputs=tuple(_read_value(value) for value in model_inputs(model.graph)),
        outputs=tuple(_read_value(value) for value in model.graph.output),
        operators=dict(operators.most_common()),
    )


def _read_value(value: onnx.ValueInfoProto) -> ValueInfo:
    """Return the name, shape and type of an input or output."""
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim)
    return ValueInfo(value.name, shape, describe_type(value.type))


def _main_types(types: Counter[str]) -> tuple[str, ...]:
    """Return the types of most weights."""
    counted = Counter({name: count for name, count in types.items() if name != "int32"}) or types
    least = _MAIN_TYPE_RATIO * counted.total()
    return tuple(name for name, count in counted.most_common() if count >= least)


def _stored_tensors(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """Return the initializers, and the values of ``Constant`` nodes with more than one element, by name."""
    tensors = {tensor.name: tensor for inner in walk_graphs(graph) for tensor in inner.initializer}
    for inner in walk_graphs(graph):
        for node in inner.node:
            for attribute in node.attribute if node.op_type == "Constant" else ():
                if attribute.name == "value" and math.prod(attribute.t.dims) > 1:
                    tensors[node.output[0]] = attribute.t
    return tensors


def _count_parameters(graph: onnx.GraphProto, packed_bits: Mapping[str, int]) -> tuple[int, int, Counter[str]]:
    """Return the number of weights, of those not zero (for int8: not equal to their zero point), and of each type."""
    scales: set[str] = set()
    quantized: set[str] = set()
    zero_points: dict[str, str] = {}
    for inner in walk_graphs(graph):
        for node in inner.node:
            indices = _SCALE_INPUTS.get(node.op_type, ())
            scales |= {node.input[index] for index in indices if index < len(node.input)}
            if indices or node.op_type == "Cast":  # of weights that are stored in int8
                quantized |= {name for index, name in enumerate(node.input) if index not in indices}
            if node.op_type == "DequantizeLinear" and len(node.input) > 2:
                zero_points[node.input[0]] = node.input[2]
        dynamic = {node.output[1] for node in inner.node if node.op_type == "DynamicQuantizeLinear"}
        scales |= {name for node in inner.node if dynamic & set(node.input) for name in node.input}
        row_scales = find_row_scales(inner)
        quantized |= row_scales.keys()
        scales |= set(row_scales.values())
    tensors = _stored_tensors(graph)
    total = nonzero = 0
    types: Counter[str] = Counter()
    packed = {
        node.input[1]: node for inner in walk_graphs(graph) for node in inner.node if node.op_type == "MatMulNBits"
    }
    for node in packed.values():
        count, used = count_packed_weights(
            node, {name: numpy_helper.to_array(tensors[name]) for name in node.input[1:]}
        )
        total, nonzero = total + count, nonzero + used
        types[f"int{next((one.i for one in node.attribute if one.name == 'bits'), 4)}"] += count
        scales |= set(node.input[1:])
    for name, tensor in tensors.items():
        if name in scales or tensor.data_type not in (*_WEIGHTS, *(_QUANTIZED if name in quantized else ())):
            continue
        values = numpy_helper.to_array(tensor)
        total += values.size
        types[f"int{packed_bits[name]}" if name in packed_bits else name_element(tensor.data_type)] += values.size
        zero = tensors.get(zero_points.get(name, ""))
        point = np.zeros(()) if zero is None else numpy_helper.to_array(zero)
        if point.ndim == 1:  # one for each slice along axis 0
            point = np.reshape(point, (-1, *[1] * (values.ndim - 1))) if len(point) == values.shape[0] else 0 * point[0]
        nonzero += int(np.count_nonzero(values != point))
    return total, nonzero, types


def count_macs_by_node(
    model: onnx.ModelProto, sample_shapes: Mapping[str, Shape] | None = None
) -> list[tuple[onnx.NodeProto, int]]:
    """Return the multiply-accumulates for one sample of each node of the top graph that has any.

    They are 0 if the shapes of the node cannot be inferred, or a dynamic dimension of 1 is too small for it.
    """
    shapes = _infer_shapes_of_one_sample(model, sample_shapes or {})
    return [(node, _MACS[node.op_type](node, shapes)) for node in model.graph.node if node.op_type in _MACS]


def is_quantized(model: onnx.ModelProto) -> bool:
    """Tell whether a model already computes in integers, or stores its weights in them."""
    kinds = {node.op_type for graph in walk_graphs(model.graph) for node in graph.node}
    return bool(kinds & {*_SCALE_INPUTS, "ConvInteger", "MatMulNBits"})


def has_half_weights(model: onnx.ModelProto) -> bool:
    """Tell whether a model stores weights in 16 bits."""
    halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    return any(tensor.data_type in halves for tensor in _stored_tensors(model.graph).values())


def is_mostly_products(model: onnx.ModelProto, sample_shapes: Mapping[str, Shape] | None = None) -> bool:
    """Tell whether recurrent cells and products of activations with weights are most of a network's work.

    Dynamic dimensions have the sizes of a sample, or else 1.
    """
    weights = set(_stored_tensors(model.graph))
    work = {True: 0, False: 0}
    for node, macs in count_macs_by_node(model, sample_shapes):
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


def _infer_shapes_of_one_sample(model: onnx.ModelProto, sample_shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the shapes that can be inferred if every dynamic dimension of the inputs is that of a sample, or 1."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    for value in (*copy.graph.input, *copy.graph.output):
        sizes = sample_shapes.get(value.name, ())
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") and value in copy.graph.input:
                dim.dim_value = sizes[axis] if axis < len(sizes) else 1
            elif not dim.HasField("dim_value"):
                dim.Clear()
    del copy.graph.value_info[:]
    for node in copy.graph.node:
        if node.op_type == "MatMulNBits":
            _replace_with_product(node, copy.graph)
        elif node.op_type in _STANDARD_OPERATORS:
            standard, indices = _STANDARD_OPERATORS[node.op_type]
            attributes = [attribute for attribute in node.attribute if attribute.name in ("transA", "transB")]
            node.CopyFrom(helper.make_node(standard, [node.input[index] for index in indices], list(node.output)))
            node.attribute.extend(attributes)
    try:
        graph = onnx.shape_inference.infer_shapes(copy, data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        graph = copy.graph  # only what it says itself is known
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        is_known = all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in dims)
        if value.type.tensor_type.HasField("shape") and is_known:
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def _replace_with_product(node: onnx.NodeProto, graph: onnx.GraphProto) -> None:
    """Replace a product with packed weights with a ``MatMul`` of the same shapes."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    weights = f"{node.output[0]}_weights"
    graph.input.append(helper.make_tensor_value_info(weights, TensorProto.FLOAT, [attributes["K"], attributes["N"]]))
    node.CopyFrom(helper.make_node("MatMul", [node.input[0], weights], list(node.output)))


def _count_convolution_macs(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    output, weight = shapes.get(node.output[0]), shapes.get(node.input[3 if node.op_type == "QLinearConv" else 1])
    return math.prod(output) * math.prod(weight[1:]) if output and weight else 0


def _count_transposed_convolution_macs(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    data, weight = shapes.get(node.input[0]), shapes.get(node.input[1])
    return math.prod(data) * math.prod(weight[1:]) if data and weight else 0


def _count_product_macs(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    output, data = shapes.get(node.output[0]), shapes.get(node.input[0])
    is_transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(output) * data[0 if is_transposed else -1] if output and data else 0


def _count_integer_gemm_macs(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    data, weight = shapes.get(node.input[0]), shapes.get(node.input[3])
    is_transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return data[1 if is_transposed else 0] * math.prod(weight) if data and weight else 0


def _count_cell_macs(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    data, weight, recurrent = (shapes.get(name) for name in node.input[:3])
    return data[0] * data[1] * (math.prod(weight) + math.prod(recurrent)) if data and weight and recurrent else 0


_MACS: dict[str, Callable[[onnx.NodeProto, dict[str, Shape]], int]] = {
    "Conv": _count_convolution_macs,
    "QLinearConv": _count_convolution_macs,
    "ConvTranspose": _count_transposed_convolution_macs,
    "Gemm": _count_product_macs,
    "MatMul": _count_product_macs,
    "QLinearMatMul": _count_product_macs,
    "MatMulInteger": _count_product_macs,
    "MatMulNBits": _count_product_macs,
    "QGemm": _count_integer_gemm_macs,
    "LSTM": _count_cell_macs,
    "DynamicQuantizeLSTM": _count_cell_macs,
}
