"""A network's file at any widths, sliced out of the original's file: what latency is measured on before any training.

Which size of the file follows which group of channels is not derived from its operators but learned: the same network,
exported at other widths, differs from the original exactly in the sizes that follow. In: two or more files of one
network with the widths of each. Out: files at other widths. Weights are the original's first channels.

Example: a convolution's weight is (64, 32, 3, 3) in the original, where group ``a`` has 64 channels and ``b`` 32, and
(40, 24, 3, 3) in a file with 40 and 24 of them. At 16 and 8 it is (16, 8, 3, 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper
from onnx.shape_inference import infer_shapes

from edgeopt.errors import StepError
from edgeopt.graph.model import graphs
from edgeopt.records.groups import Dimension

LATENCY_TABLE_STAGE = "latency table"
MARK = "edgeopt"
"""Names of nodes and of their outputs begin with this and the node's number, so that a profile can be read."""

_Widths = Mapping[str, int]


class Size(NamedTuple):
    """A size that follows widths: ``factor`` times the size of a dimension of the network's."""

    factor: Fraction
    dimension: Dimension

    def at(self, widths: _Widths) -> int:
        """Return the size at these widths."""
        return int(self.factor * self.dimension.size(widths))


class Sizes:
    """Finds what a size follows.

    Args:
        dimensions: What sizes of this network can follow.
        widths: Of each file, the original's first.

    Raises:
        StepError: two dimensions cannot be told apart by these files.
    """

    def __init__(self, dimensions: Iterable[Dimension], widths: Sequence[_Widths]) -> None:
        self.widths = widths
        self._by_ratio: dict[tuple[float, ...], Dimension] = {}
        for dimension in sorted(dimensions, key=lambda one: one.size(widths[0])):
            known = self._by_ratio.setdefault(self._ratios([dimension.size(one) for one in widths]), dimension)
            if _multiple(known, dimension) is None:
                raise StepError(LATENCY_TABLE_STAGE, "two groups of channels have the same widths in all files.")

    @staticmethod
    def _ratios(sizes: Sequence[int]) -> tuple[float, ...]:
        return tuple(round(size / sizes[0], 9) for size in sizes)

    def follow(self, sizes: Sequence[int]) -> Size | None:
        """Return what a size that is ``sizes`` in the files follows; None where it is the same in all.

        Raises:
            StepError: it follows nothing known.
        """
        if len(set(sizes)) == 1:
            return None
        dimension = self._by_ratio.get(self._ratios(sizes)) if all(sizes) else None
        if dimension is None:
            raise StepError(
                LATENCY_TABLE_STAGE, f"a size of the graph changes in a way that is not understood: {list(sizes)}."
            )
        return Size(Fraction(sizes[0], dimension.size(self.widths[0])), dimension)


def _multiple(first: Dimension, second: Dimension) -> float | None:
    """Return how many times ``first`` the other is at any widths; None where that depends on the widths."""
    if first.per_channel.keys() != second.per_channel.keys():
        return None
    parts = [(first.per_channel[name], second.per_channel[name]) for name in first.per_channel]
    ratios = {other / one for one, other in parts}
    if first.fixed or second.fixed:
        ratios.add(second.fixed / first.fixed if first.fixed else -1.0)
    return ratios.pop() if len(ratios) == 1 else None


def are_distinguishable(dimensions: Iterable[Dimension], widths: Sequence[_Widths]) -> bool:
    """Tell whether files at these widths show for every size which of the dimensions it follows."""
    try:
        Sizes(dimensions, widths)
    except StepError:
        return False
    return True


class Template:
    """A network's file at any widths.

    Args:
        models: The original's file and others of the same network; they are renamed in place.
        sizes: Made with the widths of these files, in this order.

    Raises:
        StepError: the files differ in more than sizes.
    """

    def __init__(self, models: Sequence[onnx.ModelProto], sizes: Sizes) -> None:
        self.sizes = sizes
        self.original = models[0]
        for model in models:
            spell_out(model)
            rename(model)
        layouts = [_layout(model.graph) for model in models]
        if any(layout != layouts[0] for layout in layouts):
            raise StepError(LATENCY_TABLE_STAGE, "the graph has other nodes at other widths.")
        self._cuts: dict[str, tuple[Size | None, ...]] = {}
        self._literals: dict[str, list[Size | None]] = {}
        self._attributes: dict[tuple[int, str], list[Size | None]] = {}
        for tensors in zip(*(model.graph.initializer for model in models), strict=True):
            self._learn_tensor(tensors)
        for index, nodes in enumerate(zip(*(model.graph.node for model in models), strict=True)):
            for attributes in zip(*(node.attribute for node in nodes), strict=True):
                self._learn_attribute(index, attributes)

    def _learn_tensor(self, tensors: Sequence[onnx.TensorProto]) -> None:
        shapes = [tuple(tensor.dims) for tensor in tensors]
        if all(math.prod(shape) == 1 for shape in shapes) and tensors[0].data_type != onnx.TensorProto.INT64:
            return  # a scalar, whether it is written as () or as (1,)
        if len({len(shape) for shape in shapes}) > 1:
            raise StepError(LATENCY_TABLE_STAGE, f"'{tensors[0].name}' has another rank at other widths.")
        cuts = tuple(self.sizes.follow(sizes) for sizes in zip(*shapes, strict=True))
        if any(cuts):
            self._cuts[tensors[0].name] = cuts
        elif tensors[0].data_type == onnx.TensorProto.INT64:
            values = [numpy_helper.to_array(tensor).ravel().tolist() for tensor in tensors]
            literals = [self.sizes.follow(entries) for entries in zip(*values, strict=True)]
            if any(literals):
                self._literals[tensors[0].name] = literals

    def _learn_attribute(self, index: int, attributes: Sequence[AttributeProto]) -> None:
        if attributes[0].type not in (AttributeProto.INT, AttributeProto.INTS):
            return
        values = [list(one.ints) if one.type == AttributeProto.INTS else [one.i] for one in attributes]
        if len({len(entries) for entries in values}) > 1:
            raise StepError(
                LATENCY_TABLE_STAGE, f"attribute '{attributes[0].name}' has another length at other widths."
            )
        sizes = [self.sizes.follow(entries) for entries in zip(*values, strict=True)]
        if any(sizes):
            self._attributes[index, attributes[0].name] = sizes

    def at(self, widths: _Widths) -> onnx.ModelProto:
        """Return the file at ``widths``, which name every group; none is wider than in the original."""
        model = onnx.ModelProto()
        model.CopyFrom(self.original)
        for tensor in model.graph.initializer:
            if tensor.name in self._cuts:
                cuts = self._cuts[tensor.name]
                part = tuple(slice(None) if cut is None else slice(cut.at(widths)) for cut in cuts)
                array = np.ascontiguousarray(numpy_helper.to_array(tensor)[part])
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            elif tensor.name in self._literals:
                array = numpy_helper.to_array(tensor)
                values = _rewritten(array.ravel().tolist(), self._literals[tensor.name], widths)
                changed = np.array(values, dtype=array.dtype).reshape(array.shape)
                tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
        for (index, name), sizes in self._attributes.items():
            attribute = next(one for one in model.graph.node[index].attribute if one.name == name)
            if attribute.type == AttributeProto.INTS:
                attribute.ints[:] = _rewritten(attribute.ints, sizes, widths)
            else:
                attribute.i = _rewritten([attribute.i], sizes, widths)[0]
        return model


def _rewritten(values: Iterable[int], sizes: Iterable[Size | None], widths: _Widths) -> list[int]:
    return [value if size is None else size.at(widths) for value, size in zip(values, sizes, strict=True)]


def spell_out(model: onnx.ModelProto) -> None:
    """Write alike, in place, what exporters and simplifiers write in one way or another according to the sizes.

    A split into equal parts says how many there are, any other how large they are: here all say how large. Constants
    have numbers for names, and equal ones (the shapes of two reshapes, the scales of two layers) are one: here they
    are named after who reads them, and of shapes and scalars each reader has its own.
    """
    shapes = {value.name: value.type.tensor_type.shape.dim for value in infer_shapes(model).graph.value_info}
    found = {one.name: one for one in model.graph.initializer}
    names: dict[str, str] = {}
    mine: list[onnx.TensorProto] = []
    for index, node in enumerate(model.graph.node):
        parts = _split_sizes(node, shapes)
        if parts is not None:
            node.input.append(f"{MARK}{index}_in1")
            mine.append(numpy_helper.from_array(np.array(parts, np.int64), node.input[-1]))
        for place, name in enumerate(node.input):
            if name not in found:
                continue
            single = found[name].data_type == onnx.TensorProto.INT64 or math.prod(found[name].dims) == 1
            if single or name not in names:
                names[name] = f"{MARK}{index}_in{place}"
                mine.append(onnx.TensorProto())
                mine[-1].CopyFrom(found[name])
                mine[-1].name = names[name]
            node.input[place] = names[name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(mine)


def _split_sizes(node: onnx.NodeProto, shapes: Mapping[str, Sequence[Any]]) -> list[int] | None:
    """Return the sizes of the parts of a split that tells their number, without that; None for every other node."""
    count = next((one for one in node.attribute if one.name == "num_outputs"), None)
    axis = next((one.i for one in node.attribute if one.name == "axis"), 0)
    if node.op_type != "Split" or count is None or any(name not in shapes for name in node.output):
        return None
    sizes = [int(shapes[name][axis].dim_value) for name in node.output]
    if not all(sizes):
        return None  # a size that the file leaves open
    node.attribute.remove(count)
    return sizes


def rename(model: onnx.ModelProto) -> None:
    """Name every node ``edgeoptN_OPERATOR`` and every inner value after the node that makes it, in place.

    Raises:
        StepError: a node holds graphs of its own.
    """
    if any(inner is not model.graph for inner in list(graphs(model.graph))[1:]):
        raise StepError(LATENCY_TABLE_STAGE, "the graph has branches or loops.")
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    made: dict[str, str] = {}
    for index, node in enumerate(model.graph.node):
        node.name = f"{MARK}{index}_{node.op_type}"
        for number, output in enumerate(node.output):
            if output and output not in kept:
                made[output] = f"{MARK}{index}_{number}"
        node.input[:] = [made.get(name, name) for name in node.input]
        node.output[:] = [made.get(name, name) for name in node.output]
    del model.graph.value_info[:]


def _layout(graph: onnx.GraphProto) -> object:
    """Return what files of one network have in common: operators, links and names, with no size in it."""
    nodes = [
        (node.op_type, node.domain, tuple(node.input), tuple(node.output), tuple(one.name for one in node.attribute))
        for node in graph.node
    ]
    return nodes, [(tensor.name, tensor.data_type) for tensor in graph.initializer]


def describe_node(node: onnx.NodeProto) -> str:
    """Return an operator and its attributes in one line, the same for equal layers of any network."""
    parts = [f"{one.name}={helper.get_attribute_value(one)!r}" for one in node.attribute]
    return f"{node.op_type}({', '.join(sorted(parts))})"
