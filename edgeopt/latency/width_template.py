"""A network's file at any widths, made from files at a few widths, to measure latency before any training.

Which size follows which group of channels is learned from files instead of derived from operators: the same network,
exported at other widths, differs from the original in exactly these sizes. In: two or more files of one network with
the widths of each. Out: files at other widths. Weights are the first channels of the first file, again and again if
there have to be more.

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

from edgeopt.errors import StepError
from edgeopt.graph.model import walk_graphs
from edgeopt.model_files.inferred_shapes import infer_shapes
from edgeopt.records.groups import Dimension

LATENCY_TABLE_STAGE = "latency table"
NODE_PREFIX = "edgeopt"
"""Names of nodes and their outputs begin with this and the node's number, so that a profile's nodes can be found."""

_MAX_COPIED_VALUES = 1 << 20
"""Of a constant that several nodes read; larger ones, which are tied weights, stay one."""

_END = np.iinfo(np.int64).max
"""As the end of a slice."""

_Widths = Mapping[str, int]


class DifferentNodesError(StepError):
    """Files of one network have different nodes at different widths."""


class ScaledSize(NamedTuple):
    """A size that follows widths: ``factor`` times the size of one of the network's dimensions."""

    factor: Fraction
    dimension: Dimension

    def at(self, widths: _Widths) -> int:
        """Return the size at these widths."""
        return int(self.factor * self.dimension.size(widths))


class SizeResolver:
    """Finds the dimension that a size follows.

    Args:
        dimensions: The dimensions that sizes of this network can follow.
        widths: The widths of each file.
        others: Dimensions of no tensor of the network, such as one head's, which nodes may show or fused weights have.
            Of two that these files do not distinguish, neither is known.
        guesses: Further ones, of which those are known that these files distinguish from all of the above.

    Raises:
        StepError: two dimensions are not distinguishable by these files.
    """

    def __init__(
        self,
        dimensions: Iterable[Dimension],
        widths: Sequence[_Widths],
        others: Iterable[Dimension] = (),
        guesses: Iterable[Dimension] = (),
    ) -> None:
        self.widths = widths
        self._by_ratio: dict[tuple[float, ...], Dimension] = {}
        for dimension in sorted(dimensions, key=lambda dimension: dimension.size(widths[0])):
            sizes = [dimension.size(file_widths) for file_widths in widths]
            known = self._by_ratio.setdefault(self._ratios(sizes), dimension)
            if _constant_ratio(known, dimension) is None:
                raise StepError(LATENCY_TABLE_STAGE, "two groups of channels have the same width ratios in all files.")
        further = self._distinguished(others)
        known_ratios = {**self._distinguished(guesses), **further, **self._by_ratio}
        self._by_ratio = {ratios: one for ratios, one in known_ratios.items() if one is not None}

    def _distinguished(self, dimensions: Iterable[Dimension]) -> dict[tuple[float, ...], Dimension | None]:
        """Return dimensions by their ratios in the files; None for ratios that two of them have."""
        found: dict[tuple[float, ...], Dimension | None] = {}
        for dimension in dimensions:
            ratios = self._ratios([dimension.size(file_widths) for file_widths in self.widths])
            same = found.setdefault(ratios, dimension)
            if same is not None and _constant_ratio(same, dimension) is None:
                found[ratios] = None
        return found

    @staticmethod
    def _ratios(sizes: Sequence[int]) -> tuple[float, ...]:
        return tuple(round(size / sizes[0], 9) for size in sizes)

    def resolve(self, sizes: Sequence[int]) -> ScaledSize | None:
        """Return what a size follows, from its values in the files; None if it is the same in all of them.

        Raises:
            StepError: it follows none of the dimensions.
        """
        if len(set(sizes)) == 1:
            return None
        dimension = self._by_ratio.get(self._ratios(sizes)) if all(sizes) else None
        if dimension is None:
            raise StepError(
                LATENCY_TABLE_STAGE, f"a size in the graph follows no known group of channels: {list(sizes)}."
            )
        return ScaledSize(Fraction(sizes[0], dimension.size(self.widths[0])), dimension)


def _constant_ratio(first: Dimension, second: Dimension) -> float | None:
    """Return the size of ``second`` over that of ``first``; None if it depends on the widths."""
    if first.per_channel.keys() != second.per_channel.keys():
        return None
    ratios = {second.per_channel[name] / count for name, count in first.per_channel.items()}
    if first.fixed or second.fixed:
        ratios.add(second.fixed / first.fixed if first.fixed else -1.0)
    return ratios.pop() if len(ratios) == 1 else None


def are_distinguishable(dimensions: Iterable[Dimension], widths: Sequence[_Widths]) -> bool:
    """Return whether files at these widths show, for every size, which of the dimensions it follows."""
    try:
        SizeResolver(dimensions, widths)
    except StepError:
        return False
    return True


class WidthTemplate:
    """A network's file at any widths.

    Args:
        models: The files to learn from, all of one network; their nodes are renamed in place.
        sizes: Made with the widths of these files, in this order.

    Raises:
        DifferentNodesError: the files differ in more than sizes.
        StepError: a size follows no known dimension, or a graph has branches or loops.
    """

    def __init__(self, models: Sequence[onnx.ModelProto], sizes: SizeResolver) -> None:
        self.sizes = sizes
        self.first = models[0]
        for model in models:
            if any(inner is not model.graph for inner in list(walk_graphs(model.graph))[1:]):
                raise StepError(LATENCY_TABLE_STAGE, "the graph has branches or loops.")
            normalize_graph(model)
            rename_nodes(model)
        structures = [_structure(model.graph) for model in models]
        if any(structure != structures[0] for structure in structures):
            raise DifferentNodesError(LATENCY_TABLE_STAGE, "the graph has different nodes at different widths.")
        self._slices: dict[str, tuple[ScaledSize | None, ...]] = {}
        self._literals: dict[str, list[ScaledSize | None]] = {}
        self._attributes: dict[tuple[int, str], list[ScaledSize | None]] = {}
        for tensors in zip(*(model.graph.initializer for model in models), strict=True):
            self._learn_tensor(tensors)
        for index, nodes in enumerate(zip(*(model.graph.node for model in models), strict=True)):
            for attributes in zip(*(node.attribute for node in nodes), strict=True):
                self._learn_attribute(index, attributes)

    def _learn_tensor(self, tensors: Sequence[onnx.TensorProto]) -> None:
        shapes = [tuple(tensor.dims) for tensor in tensors]
        if all(math.prod(shape) == 1 for shape in shapes) and tensors[0].data_type != onnx.TensorProto.INT64:
            return  # a scalar, with shape () or (1,)
        if len({len(shape) for shape in shapes}) > 1:
            raise StepError(LATENCY_TABLE_STAGE, f"'{tensors[0].name}' has different ranks at different widths.")
        slices = tuple(self.sizes.resolve(sizes) for sizes in zip(*shapes, strict=True))
        if any(slices):
            self._slices[tensors[0].name] = slices
        elif tensors[0].data_type == onnx.TensorProto.INT64:
            values = [numpy_helper.to_array(tensor).ravel().tolist() for tensor in tensors]
            literals = [self._resolve_literal(entries) for entries in zip(*values, strict=True)]
            if any(literals):
                self._literals[tensors[0].name] = literals

    def _resolve_literal(self, values: Sequence[int]) -> ScaledSize | None:
        """Return what a number in a shape or a slice follows; what is left, and the end, are right at any widths."""
        return None if values[0] in (-1, _END) else self.sizes.resolve(values)

    def _learn_attribute(self, index: int, attributes: Sequence[AttributeProto]) -> None:
        if attributes[0].type not in (AttributeProto.INT, AttributeProto.INTS):
            return
        values = [list(a.ints) if a.type == AttributeProto.INTS else [a.i] for a in attributes]
        if len({len(entries) for entries in values}) > 1:
            raise StepError(
                LATENCY_TABLE_STAGE, f"attribute '{attributes[0].name}' has different lengths at different widths."
            )
        sizes = [self.sizes.resolve(entries) for entries in zip(*values, strict=True)]
        if any(sizes):
            self._attributes[index, attributes[0].name] = sizes

    def at(self, widths: _Widths) -> onnx.ModelProto:
        """Return the file at ``widths``, which must name every group."""
        model = onnx.ModelProto()
        model.CopyFrom(self.first)
        for tensor in model.graph.initializer:
            if tensor.name in self._slices:
                array = numpy_helper.to_array(tensor)
                for axis, size in enumerate(self._slices[tensor.name]):
                    if size is not None:
                        array = array.take(range(size.at(widths)), axis, mode="wrap")
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
            elif tensor.name in self._literals:
                array = numpy_helper.to_array(tensor)
                entries = _at_widths(array.ravel().tolist(), self._literals[tensor.name], widths)
                changed = np.array(entries, dtype=array.dtype).reshape(array.shape)
                tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
        for (index, name), sizes in self._attributes.items():
            attribute = next(one for one in model.graph.node[index].attribute if one.name == name)
            if attribute.type == AttributeProto.INTS:
                attribute.ints[:] = _at_widths(attribute.ints, sizes, widths)
            else:
                attribute.i = _at_widths([attribute.i], sizes, widths)[0]
        return model


def _at_widths(values: Iterable[int], sizes: Iterable[ScaledSize | None], widths: _Widths) -> list[int]:
    return [value if size is None else size.at(widths) for value, size in zip(values, sizes, strict=True)]


def normalize_graph(model: onnx.ModelProto) -> None:
    """Write splits, shapes and constants in one way, in place; exporters and simplifiers write them by size.

    A split into equal parts gives their number, any other their sizes: here every split gives sizes. Constants have
    numbers for names, and equal ones (the shapes of two reshapes, the zeros of two norms) are shared, perhaps only at
    some widths: here they are named after the node that reads them first, and each reader has its own copy of all but
    the large ones. The same holds for shapes that are put together when the network runs, such as
    ``[batch, length, 64]``: layers share one if they are equally wide.
    """
    _copy_shapes(model.graph)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in infer_shapes(model).value_info}
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    names: dict[str, str] = {}
    constants: list[onnx.TensorProto] = []
    for index, node in enumerate(model.graph.node):
        sizes = _take_split_sizes(node, shapes)
        if sizes is not None:
            node.input.append(f"{NODE_PREFIX}{index}_in1")
            constants.append(numpy_helper.from_array(np.array(sizes, np.int64), node.input[-1]))
        for position, name in enumerate(node.input):
            if name not in initializers:
                continue
            tensor = initializers[name]
            is_copied = math.prod(tensor.dims) <= _MAX_COPIED_VALUES
            if is_copied or name not in names:
                names[name] = f"{NODE_PREFIX}{index}_in{position}"
                constants.append(onnx.TensorProto())
                constants[-1].CopyFrom(tensor)
                constants[-1].name = names[name]
            node.input[position] = names[name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)


def _copy_shapes(graph: onnx.GraphProto) -> None:
    """Give each reader its own copy of a node that puts a shape together from constants and other sizes."""
    constants = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT64}
    visible = {value.name for value in graph.output}
    shared = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "Concat" and constants.intersection(node.input) and node.output[0] not in visible
    }
    nodes: list[onnx.NodeProto] = []

    def add(node: onnx.NodeProto) -> None:
        """Add a node after its own copies of the shapes that it reads."""
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        for position, name in enumerate(node.input):
            if name in shared:
                add(shared[name])
                copied.input[position] = nodes[-1].output[0] = f"{NODE_PREFIX}_shape{len(nodes)}"
        nodes.append(copied)

    for node in graph.node:
        if not shared.keys() & set(node.output):
            add(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _take_split_sizes(node: onnx.NodeProto, shapes: Mapping[str, Sequence[Any]]) -> list[int] | None:
    """Return the part sizes of a split that gives their number, and remove the number; None for every other node."""
    count = next((one for one in node.attribute if one.name == "num_outputs"), None)
    axis = next((one.i for one in node.attribute if one.name == "axis"), 0)
    if node.op_type != "Split" or count is None or any(name not in shapes for name in node.output):
        return None
    sizes = [int(shapes[name][axis].dim_value) for name in node.output]
    if not all(sizes):
        return None  # a dynamic size
    node.attribute.remove(count)
    return sizes


def rename_nodes(model: onnx.ModelProto) -> None:
    """Name every node ``edgeoptN_OPERATOR`` and every inner value after the node that makes it, in place."""
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    renamed: dict[str, str] = {}
    for index, node in enumerate(model.graph.node):
        node.name = f"{NODE_PREFIX}{index}_{node.op_type}"
        for number, output in enumerate(node.output):
            if output and output not in kept:
                renamed[output] = f"{NODE_PREFIX}{index}_{number}"
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    del model.graph.value_info[:]


def _structure(graph: onnx.GraphProto) -> object:
    """Return the parts that files of one network have in common: operators, links and names, without sizes."""
    nodes = [
        (node.op_type, node.domain, tuple(node.input), tuple(node.output), tuple(one.name for one in node.attribute))
        for node in graph.node
    ]
    return nodes, [(tensor.name, tensor.data_type) for tensor in graph.initializer]


def describe_node(node: onnx.NodeProto) -> str:
    """Return an operator and its attributes on one line, the same for equal layers of any network."""
    parts = [f"{one.name}={helper.get_attribute_value(one)!r}" for one in node.attribute]
    return f"{node.op_type}({', '.join(sorted(parts))})"
