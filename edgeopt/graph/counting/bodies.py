"""The graphs inside a node: how often they run, and the shapes of what goes into them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeopt.graph.model import inner_graphs
from edgeopt.graph.preparation.attempts import attempt
from edgeopt.model_files.tensors import in_memory

_ON_SIZES = (
    "Constant", "Identity", "Cast", "Gather", "Slice", "Concat", "Squeeze", "Unsqueeze", "Reshape", "Add", "Sub", "Mul",
    "Div", "Min", "Max", "ReduceMin", "ReduceMax", "ReduceProd", "Equal", "Where", "ConstantOfShape",
    "Transpose",
)  # fmt: skip
"""Operators with which graphs compute trip counts and shapes from sizes."""
_SIZES_AT = {"Reshape": 1, "Expand": 1, "Tile": 1, "ConstantOfShape": 0, "Resize": 3, "Upsample": 1, "Pad": 1}
"""Operators whose outputs are as large as an input says, and its place."""
_FIRST_SCAN_OF_TODAY = 9
"""Operator set from which on a Scan has no batch dimension of its own."""
_DATA_DEPENDENT = "its trip count depends on data"
Shape = tuple[int, ...]
KnownShapes = Mapping[str, Shape]


class Body(NamedTuple):
    """A graph inside a node."""

    node: onnx.NodeProto
    graph: onnx.GraphProto
    """A copy; its inputs have the shapes of the first pass, as far as these are known."""
    times: int
    """How often it runs; 1 if that is not known."""
    why_once: str = ""
    """Why it is not known how often it runs; empty if it is."""


def find_bodies(node: onnx.NodeProto, graph: onnx.GraphProto, shapes: KnownShapes, opset: int) -> Iterator[Body]:
    """Yield the graphs inside a node: of an If both branches.

    Args:
        node: A node of the graph.
        graph: Around it.
        shapes: Of values in the graph.
        opset: Version of the standard operator set.
    """
    for inner in inner_graphs(node):
        copy = onnx.GraphProto.FromString(inner.SerializeToString())
        if node.op_type == "If":
            yield Body(node, copy, 1)
        elif node.op_type == "Loop":
            yield _of_loop(node, copy, graph, shapes, opset)
        elif node.op_type == "Scan" and opset >= _FIRST_SCAN_OF_TODAY:
            yield _of_scan(node, copy, shapes)
        else:
            yield Body(node, copy, 1, "edgeopt does not know how often it runs")


def _of_loop(
    node: onnx.NodeProto, body: onnx.GraphProto, graph: onnx.GraphProto, shapes: KnownShapes, opset: int
) -> Body:
    """A Loop has inputs (trip count, condition, states ...), its body (iteration, condition, states ...)."""
    for value in body.input[:2]:
        if not value.type.tensor_type.HasField("shape"):
            _set_shape(value, ())
    for value, name in zip(body.input[2:], node.input[2:], strict=False):
        _set_shape(value, shapes.get(name))
    is_limited = bool(node.input and node.input[0])
    count = _compute(node.input[0], graph, shapes, opset) if is_limited else None
    runs_on = _is_true(node.input[1] if len(node.input) > 1 else "", graph, shapes, opset) and _keeps_on(body, opset)
    if count is None or not runs_on:
        return Body(node, body, 1, _DATA_DEPENDENT)
    return Body(node, body, max(0, int(count.reshape(-1)[0])))


def _of_scan(node: onnx.NodeProto, body: onnx.GraphProto, shapes: KnownShapes) -> Body:
    """A Scan has inputs (states ..., sequences ...); its body gets one step of each sequence."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    scanned = int(attributes["num_scan_inputs"])
    states = len(node.input) - scanned
    axes = attributes.get("scan_input_axes") or [0] * scanned
    times: int | None = None
    for place, (value, name) in enumerate(zip(body.input, node.input, strict=False)):
        shape = shapes.get(name)
        if place >= states and shape:
            axis = axes[place - states] % len(shape)
            times = shape[axis]
            shape = (*shape[:axis], *shape[axis + 1 :])
        _set_shape(value, shape)
    return Body(node, body, 1, "its sequence has an unknown length") if times is None else Body(node, body, times)


def shape_loop_outputs(body: Body, outputs: Sequence[onnx.ValueInfoProto]) -> Iterator[onnx.ValueInfoProto]:
    """Yield the outputs of a Loop with types: its states, if their shapes stay the same, and stacked values.

    Args:
        body: Of the Loop.
        outputs: Of the body, with inferred types: condition, states, values to stack.
    """
    given = body.graph.input[2:]
    for place, (name, value) in enumerate(zip(body.node.output, outputs[1:], strict=False)):
        tensor = value.type.tensor_type
        dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
        is_state = place < len(given)
        if is_state and tensor.shape != given[place].type.tensor_type.shape:
            continue
        if name and tensor.HasField("shape") and (is_state or not body.why_once):
            yield helper.make_tensor_value_info(name, tensor.elem_type, dims if is_state else [body.times, *dims])


def read_shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    """Return the shapes of a graph's values that have no dynamic dimensions."""
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        is_known = all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in dims)
        if value.type.tensor_type.HasField("shape") and is_known:
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def _set_shape(value: onnx.ValueInfoProto, shape: Shape | None) -> None:
    if shape is None:
        return
    dims = value.type.tensor_type.shape
    del dims.dim[:]
    dims.dim.extend([onnx.TensorShapeProto.Dimension(dim_value=size) for size in shape])
    if not shape:
        dims.SetInParent()


def _keeps_on(body: onnx.GraphProto, opset: int) -> bool:
    """Tell whether a Loop's body never ends it: its condition is the one that it got, or true."""
    producers = {name: node for node in body.node for name in node.output}
    name = body.output[0].name
    while name in producers and producers[name].op_type in ("Identity", "Cast"):
        name = producers[name].input[0]
    return name == body.input[1].name or _is_true(name, body, {}, opset)


def _is_true(name: str, graph: onnx.GraphProto, shapes: KnownShapes, opset: int) -> bool:
    found = _compute(name, graph, shapes, opset) if name else np.ones(())
    return found is not None and bool(found.reshape(-1)[0])


def _compute(name: str, graph: onnx.GraphProto, shapes: KnownShapes, opset: int) -> np.ndarray | None:
    """Return a value that is made of constants and sizes only; None for any other."""
    return _Sizes(graph, shapes, opset).compute(name)


def write_computed_sizes(graph: onnx.GraphProto, opset: int) -> bool:
    """Store what a graph computes from known sizes, if the shape of a node follows from it; return whether any was.

    ONNX's inference follows such chains of nodes only in part: not through an ``Unsqueeze`` before operator set 13.

    Args:
        graph: With inferred shapes; changed in place.
        opset: Version of the standard operator set.
    """
    shapes = read_shapes(graph)
    sizes = _Sizes(graph, shapes, opset)
    found = list[onnx.TensorProto]()
    for node in graph.node:
        place = _SIZES_AT.get(node.op_type)
        if place is None or len(node.input) <= place or node.output[0] in shapes or node.input[place] in sizes.stored:
            continue
        values = sizes.compute(node.input[place])
        if values is not None:
            found.append(numpy_helper.from_array(values, f"{node.output[0]}/sizes"))
            node.input[place] = found[-1].name
    graph.initializer.extend(found)
    return bool(found)


class _Sizes:
    """Computes values of a graph that are made of constants and sizes only."""

    def __init__(self, graph: onnx.GraphProto, shapes: KnownShapes, opset: int) -> None:
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self._nodes = graph.node
        self._producers = {output: index for index, node in enumerate(graph.node) for output in node.output if output}
        self._shapes, self._opset = shapes, opset

    def compute(self, name: str) -> np.ndarray | None:
        """Return a value; None if it is made of anything else."""
        known: list[onnx.TensorProto] = []
        needed, seen, waiting = set[int](), set[str](), [name]
        while waiting:
            one = waiting.pop()
            if not one or one in seen:
                continue
            seen.add(one)
            index = self._producers.get(one)
            node = None if index is None else self._nodes[index]
            if one in self.stored:
                known.append(in_memory(self.stored[one]))
            elif node is not None and node.op_type == "Shape" and node.input[0] in self._shapes:
                ends: dict[str, int] = {attribute.name: int(attribute.i) for attribute in node.attribute}
                sizes = self._shapes[str(node.input[0])][ends.get("start", 0) : ends.get("end")]
                known.append(numpy_helper.from_array(np.array(sizes, np.int64), one))
            elif node is not None and index is not None and node.op_type in _ON_SIZES:
                needed.add(index)
                waiting += node.input
            else:
                return None
        nodes = [self._nodes[index] for index in sorted(needed)]
        part = helper.make_graph(nodes, "part", [], [onnx.ValueInfoProto(name=name)], known)
        found = attempt(lambda: next(iter(ReferenceEvaluator(part, opsets={"": self._opset}).run(None, {})))).result
        return None if found is None else np.asarray(found)
