"""Finds outputs whose rows are not samples: their number follows from the values, as after non-maximum suppression.

Such outputs cannot be compared row by row, as another rounding gives another number of rows. In: a graph. Out: the
names of its outputs, each with the operator that decides how many rows there are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeopt.model_files.tensors import tensor_values

_ELEMENTWISE = frozenset(
    {
        "Identity", "Cast", "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Neg", "Abs", "Sqrt", "Exp", "Log", "Floor",
        "Ceil", "Round", "Clip", "Min", "Max", "Relu", "Sigmoid", "Tanh", "Softmax", "LogSoftmax", "And", "Or", "Not",
        "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Where",
    }
)  # fmt: skip
"""Operators that keep the dimensions of their inputs."""


class _Open(NamedTuple):
    """A value of which one dimension is as long as the values say."""

    axis: int
    """0, or 1 as of ``NonZero``, which gives a column for each value."""
    operator: str
    """The type of the operator that decides."""


class _Node(NamedTuple):
    kind: str
    inputs: list[str]
    attributes: dict[str, Any]
    constants: dict[str, NDArray[Any]]

    def axes(self) -> list[int] | None:
        """Return the axes, an attribute or the input after the data; None if they are unknown."""
        if "axes" in self.attributes:
            return [int(axis) for axis in self.attributes["axes"]]
        position = 3 if self.kind == "Slice" else 1
        name = self.inputs[position] if len(self.inputs) > position else ""
        return [int(axis) for axis in self.constants[name]] if name in self.constants else None


def find_selected_outputs(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the outputs whose number of rows depends on the values, each with the type of the operator that decides.

    Only what is certain from the operators: an output that is missing here may still have rows that are not samples.
    """
    constants = {
        tensor.name: tensor_values(tensor).reshape(-1)
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.INT64
    }
    opened: dict[str, _Open] = {}
    for node in graph.node:
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        if node.op_type == "Constant" and "value" in attributes:
            constants[node.output[0]] = numpy_helper.to_array(attributes["value"]).reshape(-1)
            continue
        found = _find_open(_Node(node.op_type, list(node.input), attributes, constants), opened)
        if found is not None:
            opened.update(dict.fromkeys(filter(None, node.output), found))
    return {
        value.name: opened[value.name].operator
        for value in graph.output
        if value.name in opened and opened[value.name].axis == 0
    }


def _find_open(node: _Node, opened: dict[str, _Open]) -> _Open | None:
    """Return the open dimension of a node's outputs; None if they have none, or it is not certain."""
    kind, attributes = node.kind, node.attributes
    if kind == "NonMaxSuppression" or (kind in ("Unique", "Compress") and attributes.get("axis") in (None, 0)):
        return _Open(0, kind)
    if kind == "NonZero":
        return _Open(1, kind)
    if kind in ("Gather", "GatherND"):
        data, indices = (opened.get(name) for name in node.inputs[:2])
        by_rows = attributes.get("axis", 0) == 0 if kind == "Gather" else not attributes.get("batch_dims")
        return indices if by_rows else data
    if kind in _ELEMENTWISE:
        return next((opened[name] for name in node.inputs if name in opened), None)
    source = opened.get(node.inputs[0]) if node.inputs else None
    return None if source is None else _follow(node, source)


def _follow(node: _Node, source: _Open) -> _Open | None:
    """Return the open dimension after an operator that moves dimensions or changes them."""
    axes = node.axes()
    match node.kind:
        case "Transpose":
            order = node.attributes.get("perm", [1, 0])
            return source._replace(axis=order.index(source.axis)) if source.axis in order else None
        case "Squeeze":
            removed = None if axes is None or source.axis in axes else sum(0 <= axis < source.axis for axis in axes)
            return None if removed is None else source._replace(axis=source.axis - removed)
        case "Unsqueeze" if axes is not None and all(axis > source.axis for axis in axes):
            return source
        case "Slice" if axes is not None and source.axis not in axes:
            return source
        case "Split" | "Concat" if node.attributes.get("axis", 0) != source.axis:
            return source
        case "Reshape":
            shape = node.constants.get(node.inputs[1])
            return source._replace(axis=0) if shape is not None and len(shape) and shape[0] == -1 else None
        case "MatMul" | "Gemm" | "ArgMax" if source.axis == 0 and node.attributes.get("axis", -1) != 0:
            return source
    return None
