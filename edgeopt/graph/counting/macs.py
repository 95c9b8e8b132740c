"""Counts the multiply-accumulates of a graph for one sample, with those of branches and loop bodies.

A body counts as often as it runs, if the graph says how often: a ``Scan`` by its sequence, a ``Loop`` by its trip
count. Of the branches of an ``If`` the one with the most counts. Notes name what could not be counted.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import onnx
import onnx.inliner
from onnx import helper

from edgeopt.graph.counting.bodies import (
    Body,
    KnownShapes,
    find_bodies,
    read_shapes,
    shape_loop_outputs,
    write_computed_sizes,
)
from edgeopt.graph.counting.standard_operators import use_standard_operators
from edgeopt.graph.model import read_opset
from edgeopt.model_files.inferred_shapes import write_inferred_shapes
from edgeopt.model_files.tensors import copy_model_proto

_MAX_COPIED_VALUES = 1024
"""Constants up to this size are copied into a body for shape inference: sizes and axes, not weights."""
_SHOWN_NODES = 3
_MAX_INFERENCES = 8
"""Of shapes that depend on sizes which the one before found: each goes through the whole graph."""
_MACS_OF_A_VALUE = 50
"""Multiply-accumulates in the time in which a value is written: with these, six of seven large networks from packages
did 44 to 65 thousand million a second on one core (x86 with AVX2), and one did 20."""


class MacCount(NamedTuple):
    """The multiply-accumulates of a graph for one sample."""

    by_node: tuple[tuple[onnx.NodeProto, int], ...]
    """Of each node that has any, in all graphs; a node in a body counts as often as the body runs."""
    notes: tuple[str, ...]
    """What is not counted, or only once."""
    values: int = 0
    """Numbers that all nodes write, as far as their shapes are known: what activations and movements cost."""

    @property
    def total(self) -> int:
        """Of all nodes."""
        return sum(count for _, count in self.by_node)

    @property
    def work(self) -> int:
        """What a run costs, in multiply-accumulates: one processor core does about 50 thousand million a second."""
        return self.total + _MACS_OF_A_VALUE * self.values


def count_macs(model: onnx.ModelProto, sample_shapes: KnownShapes | None = None) -> MacCount:
    """Count the multiply-accumulates of a model.

    Args:
        model: The model; names are different in all its graphs.
        sample_shapes: Of inputs, for one sample; dynamic dimensions of others count as 1.
    """
    copy = copy_model_proto(model)
    if copy.functions:
        copy = onnx.inliner.inline_local_functions(copy)
    for value in (*copy.graph.input, *copy.graph.output):
        sizes = (sample_shapes or {}).get(value.name, ())
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") and value in copy.graph.input:
                dim.dim_value = sizes[axis] if axis < len(sizes) else 1
            elif not dim.HasField("dim_value"):
                dim.Clear()
    counter = _Counter(copy)
    counted = counter.count(copy.graph, 1)
    return MacCount(tuple(counted.by_node), tuple(counter.notes()), counted.values)


_BODIES = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
_NodeMacs = tuple[onnx.NodeProto, int]


class _Counted(NamedTuple):
    by_node: list[_NodeMacs]
    outputs: list[onnx.ValueInfoProto]
    """Of the graph, with inferred types."""
    values: int


class _Counter:
    """Counts in a graph, then in the graphs inside it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._unknown: list[str] = []
        self._notes: list[str] = []

    def notes(self) -> list[str]:
        """Return what is not counted, or only once."""
        if not self._unknown:
            return self._notes
        shown = ", ".join(self._unknown[:_SHOWN_NODES])
        more = f" and {len(self._unknown) - _SHOWN_NODES} more" if len(self._unknown) > _SHOWN_NODES else ""
        return [*self._notes, f"MACs of nodes of unknown shape are not counted: {shown}{more}"]

    def count(self, graph: onnx.GraphProto, times: int) -> _Counted:
        """Count in a graph that runs ``times`` times, and whose inputs have known shapes."""
        inferred, counted, values = self._infer(graph, ()), list[_NodeMacs](), 0
        found_outputs: list[onnx.ValueInfoProto] = []
        for node in graph.node:
            if not any(attribute.type in _BODIES for attribute in node.attribute):
                continue
            bodies = list(find_bodies(node, inferred, read_shapes(inferred), read_opset(self._model)))
            found = [self._count_body(body, graph, inferred, times) for body in bodies]
            counted += self._choose(node, [one.by_node for one in found])
            values += sum(one.values for one in found)
            if node.op_type == "Loop":  # ONNX infers no shapes of its outputs
                found_outputs += shape_loop_outputs(bodies[0], found[0].outputs)
                inferred = self._infer(graph, found_outputs)
        shapes = read_shapes(inferred)
        for node in graph.node:
            if node.op_type not in _MACS:
                continue
            macs = _MACS[node.op_type](node, shapes)
            if macs is None:
                self._unknown.append(_name(node))
            counted.append((node, times * (macs or 0)))
        values += times * sum(math.prod(shapes.get(name, (0,))) for node in graph.node for name in node.output)
        kinds = {value.name: value for value in (*inferred.input, *inferred.value_info, *inferred.output)}
        return _Counted(counted, [kinds[value.name] for value in graph.output], values)

    def _choose(self, node: onnx.NodeProto, found: list[list[_NodeMacs]]) -> list[_NodeMacs]:
        """Return the counts of all bodies of a node, or those of its most expensive branch."""
        if node.op_type != "If":
            return [one for part in found for one in part]
        totals = [sum(macs for _, macs in one) for one in found]
        if len(set(totals)) > 1:
            self._notes.append(f"MACs of {_name(node)} are those of its more expensive branch")
        return found[totals.index(max(totals))]

    def _count_body(self, body: Body, outer: onnx.GraphProto, inferred: onnx.GraphProto, times: int) -> _Counted:
        counted = self.count(_with_outer_values(body.graph, outer, inferred), times * body.times)
        if body.why_once and any(macs for _, macs in counted.by_node):
            self._notes.append(f"MACs of {_name(body.node)} are those of one pass through its body: {body.why_once}")
        return counted

    def _infer(self, graph: onnx.GraphProto, known: Sequence[onnx.ValueInfoProto]) -> onnx.GraphProto:
        """Return a graph with inferred shapes, as far as ONNX can tell them and besides those that are known."""
        copy = onnx.ModelProto(ir_version=self._model.ir_version, opset_import=self._model.opset_import)
        copy.graph.CopyFrom(graph)
        del copy.graph.value_info[:]
        copy.graph.value_info.extend(known)
        use_standard_operators(copy.graph)
        with contextlib.suppress(onnx.shape_inference.InferenceError):  # only what it says itself is known then
            write_inferred_shapes(copy, data_prop=True)
            for _ in range(_MAX_INFERENCES):
                if not write_computed_sizes(copy.graph, read_opset(self._model)):
                    break
                write_inferred_shapes(copy, data_prop=True)
        inferred: onnx.GraphProto = copy.graph
        return inferred


def _name(node: onnx.NodeProto) -> str:
    return f"{node.op_type} '{node.name or node.output[0]}'"


def _with_outer_values(body: onnx.GraphProto, outer: onnx.GraphProto, inferred: onnx.GraphProto) -> onnx.GraphProto:
    """Return a body whose inputs are also the values around it; small constants are copied into it."""
    copy: onnx.GraphProto = onnx.GraphProto.FromString(body.SerializeToString())
    own = {value.name for value in copy.input} | {tensor.name for tensor in copy.initializer}
    for tensor in outer.initializer:
        if math.prod(tensor.dims) <= _MAX_COPIED_VALUES and tensor.name not in own:
            copy.initializer.append(tensor)
            own.add(tensor.name)
    for node in outer.node:
        if node.op_type == "Constant" and node.output[0] not in own:
            copy.node.insert(0, node)
            own.add(node.output[0])
    kinds = {value.name: value.type for value in (*inferred.input, *inferred.value_info)}
    kinds |= {one.name: helper.make_tensor_type_proto(one.data_type, one.dims) for one in outer.initializer}
    for name, kind in kinds.items():
        if name not in own:
            copy.input.append(helper.make_value_info(name, kind))
    for value in copy.output:
        value.type.Clear()
    return copy


def _count_convolution(node: onnx.NodeProto, shapes: KnownShapes) -> int | None:
    output, weight = shapes.get(node.output[0]), shapes.get(node.input[3 if node.op_type == "QLinearConv" else 1])
    return math.prod(output) * math.prod(weight[1:]) if output is not None and weight else None


def _count_transposed_convolution(node: onnx.NodeProto, shapes: KnownShapes) -> int | None:
    data, weight = shapes.get(node.input[0]), shapes.get(node.input[1])
    return math.prod(data) * math.prod(weight[1:]) if data and weight else None


def _count_product(node: onnx.NodeProto, shapes: KnownShapes) -> int | None:
    output, data = shapes.get(node.output[0]), shapes.get(node.input[0])
    is_transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    place = 0 if node.op_type in ("Gemm", "FusedGemm") else -2
    return math.prod(output) * data[place if is_transposed else -1] if output is not None and data else None


def _count_integer_gemm(node: onnx.NodeProto, shapes: KnownShapes) -> int | None:
    data, weight = shapes.get(node.input[0]), shapes.get(node.input[3])
    is_transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return data[1 if is_transposed else 0] * math.prod(weight) if data and weight else None


def _count_cell(node: onnx.NodeProto, shapes: KnownShapes) -> int | None:
    data, weight, recurrent = (shapes.get(name) for name in node.input[:3])
    return data[0] * data[1] * (math.prod(weight) + math.prod(recurrent)) if data and weight and recurrent else None


def _count_attention(node: onnx.NodeProto, shapes: KnownShapes) -> int | None:
    """Of inputs ``(b, s, i)`` and weights ``(i, 3 h)``: projections, then products of all pairs of positions."""
    data, weight = shapes.get(node.input[0]), shapes.get(node.input[1])
    if not data or not weight or len(data) != 3:
        return None
    batch, length, _ = data
    return batch * length * math.prod(weight) + 2 * batch * length * length * weight[1] // 3


def _count_many_heads(node: onnx.NodeProto, shapes: KnownShapes) -> int | None:
    """Of queries ``(b, s, h)``, keys ``(b, t, h)`` and values ``(b, t, v)``."""
    query, key, value = (shapes.get(name) for name in (*node.input[:3], "", "")[:3])
    if not query or not key or not value or {len(one) for one in (query, key, value)} != {3}:
        return None
    return query[0] * query[1] * key[1] * (key[2] + value[2])


def _count_linear_model(node: onnx.NodeProto, shapes: KnownShapes) -> int | None:
    data = shapes.get(node.input[0])
    coefficients = next((attribute.floats for attribute in node.attribute if attribute.name == "coefficients"), ())
    return math.prod(data[:-1]) * len(coefficients) if data else None


_MACS: dict[str, Callable[[onnx.NodeProto, KnownShapes], int | None]] = {
    "Conv": _count_convolution,
    "FusedConv": _count_convolution,
    "QLinearConv": _count_convolution,
    "ConvInteger": _count_convolution,
    "ConvTranspose": _count_transposed_convolution,
    "Gemm": _count_product,
    "FusedGemm": _count_product,
    "MatMul": _count_product,
    "FusedMatMul": _count_product,
    "QLinearMatMul": _count_product,
    "MatMulInteger": _count_product,
    "MatMulIntegerToFloat": _count_product,
    "DynamicQuantizeMatMul": _count_product,
    "MatMulNBits": _count_product,
    "MatMulBnb4": _count_product,
    "QGemm": _count_integer_gemm,
    "LSTM": _count_cell,
    "GRU": _count_cell,
    "RNN": _count_cell,
    "DynamicQuantizeLSTM": _count_cell,
    "Attention": _count_attention,
    "QAttention": _count_attention,
    "MultiHeadAttention": _count_many_heads,
    "LinearClassifier": _count_linear_model,
    "LinearRegressor": _count_linear_model,
}
