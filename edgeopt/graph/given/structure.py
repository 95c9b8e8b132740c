"""Finds what makes a file a damaged model: values that nothing computes, cycles, names given twice, wrong sizes.

In: a model as it was read. Out: words on the first fault. ONNX Runtime would refuse these too, but other libraries that
read the model crash on some of them.
"""

from __future__ import annotations

import graphlib
import math
from collections import Counter
from collections.abc import Collection, Iterator

import onnx
from onnx import TensorProto, helper

from edgeopt.graph.model import STANDARD_DOMAINS, inner_graphs, read_names, read_opset, walk_graphs
from edgeopt.model_files.tensors import PACKED_BITS, count_bytes

_SHOWN_NAMES = 4


def find_fault(model: onnx.ModelProto) -> str | None:
    """Return what is wrong with a model, in words that follow its name; None if nothing is."""
    return next(_find_faults(model), None)


def _find_faults(model: onnx.ModelProto) -> Iterator[str]:
    if any(isinstance(text, bytes) for text in _texts(model)):  # as protobuf gives what is not UTF-8
        yield "is damaged: a name in it is not text"
    domains = {entry.domain for entry in model.opset_import}
    uses_standard = any(node.domain in STANDARD_DOMAINS for node in model.graph.node)
    if uses_standard and not domains & set(STANDARD_DOMAINS):
        yield "is damaged: it does not name the version of the standard operator set"
    for tensor in walk_tensors(model):
        fault = _fault_of_tensor(tensor)
        if fault is not None:
            yield f"is damaged: tensor '{tensor.name}' {fault}"
    yield from _faults_of_graph(model.graph, frozenset(), read_opset(model))


def _faults_of_graph(graph: onnx.GraphProto, outer: Collection[str], opset: int) -> Iterator[str]:
    """Yield the faults of a graph and of those in its nodes; it may read the values ``outer`` from outside."""
    weights = [tensor.name for tensor in graph.initializer] + [one.values.name for one in graph.sparse_initializer]
    for words, names in (("inputs", [value.name for value in graph.input]), ("stored tensors", weights)):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            yield f"is damaged: two {words} have the name '{twice[0]}'"
    computed = Counter(name for node in graph.node for name in node.output if name)
    given = {*weights, *(value.name for value in graph.input)}
    twice = [name for name, count in computed.items() if count > 1 or name in given]
    if twice:
        yield f"is damaged: the value '{twice[0]}' is given or computed twice"
    known = {*given, *computed, *outer}
    for node in graph.node:
        least = _least_inputs(node, opset)
        if len(node.input) < least or not node.output:
            yield f"is damaged: {_name(node)} has {len(node.input)} inputs and {len(node.output)} outputs"
        if any(_lacks_tensor(node, attribute) for attribute in node.attribute):
            yield f"is damaged: {_name(node)} has an attribute without its tensor"
        missing = [name for name in node.input if name and name not in known]
        if missing:
            yield f"is damaged: {_name(node)} reads '{missing[0]}', which nothing computes"
    for value in graph.output:
        if value.name not in known:
            yield f"is damaged: nothing computes its output '{value.name}'"
    yield from _cycles(graph)
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from _faults_of_graph(inner, known, opset)


def _texts(model: onnx.ModelProto) -> Iterator[str]:
    """Yield the names in a model."""
    yield from (entry.domain for entry in model.opset_import)
    nodes = [node for function in model.functions for node in function.node]
    for graph in walk_graphs(model.graph):
        nodes.extend(graph.node)
        for value in (*graph.input, *graph.output, *graph.value_info):
            yield value.name
            yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
    for node in nodes:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
    for tensor in walk_tensors(model):
        yield from (tensor.name, *(text for entry in tensor.external_data for text in (entry.key, entry.value)))


def _lacks_tensor(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> bool:
    is_tensor = attribute.type == onnx.AttributeProto.TENSOR
    needs_tensor = is_tensor or (node.op_type == "Constant" and attribute.name == "value")
    is_reference = bool(attribute.ref_attr_name)
    return needs_tensor and not is_reference and not (is_tensor and attribute.HasField("t"))


def _least_inputs(node: onnx.NodeProto, opset: int) -> int:
    """Return how many inputs a node needs in its operator set: axes and pads were attributes once; 0 if unknown."""
    if node.domain not in STANDARD_DOMAINS:
        return 0
    try:
        return int(onnx.defs.get_schema(node.op_type, opset).min_input)
    except onnx.defs.SchemaError:  # no such operator, or only in a later set
        return 0


def _cycles(graph: onnx.GraphProto) -> Iterator[str]:
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs = {
        index: {makers[name] for name in read_names(node) if name in makers} for index, node in enumerate(graph.node)
    }
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        shown = " and ".join(_name(graph.node[index]) for index in error.args[1][1 : 1 + _SHOWN_NAMES])
        yield f"is damaged: it computes in a circle, through {shown}"


def _name(node: onnx.NodeProto) -> str:
    return f"{node.op_type} '{node.name}'" if node.name else f"{node.op_type} (of '{', '.join(node.output)}')"


def walk_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor that a model stores."""
    nodes = [node for function in model.functions for node in function.node]
    for graph in walk_graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        nodes.extend(graph.node)
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _fault_of_tensor(tensor: TensorProto) -> str | None:
    """Return what is wrong with a stored tensor; nothing is found out about one in another file."""
    if any(size < 0 for size in tensor.dims):
        return f"has the shape {tuple(tensor.dims)}"
    if tensor.data_type == TensorProto.UNDEFINED or tensor.data_type not in TensorProto.DataType.values():
        return f"has an unknown type ({tensor.data_type})"
    needed = count_bytes(tensor)
    if tensor.data_location == TensorProto.EXTERNAL or tensor.data_type == TensorProto.STRING or needed is None:
        return None
    if tensor.HasField("raw_data"):
        found = len(tensor.raw_data)
        return None if found == needed else f"of shape {tuple(tensor.dims)} has {found:,} bytes instead of {needed:,}"
    field = helper.tensor_dtype_to_field(tensor.data_type)
    found, values = len(getattr(tensor, field)), math.prod(tensor.dims)
    is_complex = tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128)
    is_packed = TensorProto.DataType.Name(tensor.data_type) in PACKED_BITS
    wanted = 2 * values if is_complex else needed if is_packed else values
    return None if found == wanted else f"of shape {tuple(tensor.dims)} has {found:,} values instead of {wanted:,}"
