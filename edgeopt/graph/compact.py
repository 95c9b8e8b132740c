"""Compact: fewer bytes, bit for bit the same outputs.

Removed: metadata, inferred shapes, operator sets and initializers that nothing uses, attributes at their default,
zero points that are zero (if every ONNX Runtime since 1.17 fuses without them), second copies of equal initializers,
transposed copies of matrices, and long inner names. Names of inputs and outputs stay.
"""

from __future__ import annotations

import itertools
import string
from collections import Counter
from collections.abc import Iterator

import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeopt.graph.model import (
    drop_metadata,
    drop_unused_initializers,
    find_consumers,
    lower_ir,
    read_initializers,
    read_opset,
    separate_names,
    walk_graphs,
)
from edgeopt.graph.weights.tied import store_tied_once
from edgeopt.model_files.tensors import hash_values, is_external

_CONVOLUTIONS = ("Conv", "ConvTranspose", "QLinearConv")


def compact(model: onnx.ModelProto, *, keep_names: bool = False) -> dict[str, str]:
    """Shrink ``model`` in place; a second call changes nothing.

    Args:
        model: The model.
        keep_names: Whether inner values and nodes keep their names.

    Returns:
        What each new name of an inner value stands for.
    """
    lower_ir(model)
    drop_metadata(model)
    _drop_zero_points(model.graph)
    for graph in walk_graphs(model.graph):
        for node in graph.node:
            _drop_default_attributes(node, read_opset(model))
    _move_shared_up(model.graph)
    _share_initializers(model.graph)
    store_tied_once(model.graph)
    drop_unused_initializers(model.graph)
    return {} if keep_names else _shorten_names(model.graph)


def _drop_zero_points(graph: onnx.GraphProto) -> None:
    """Remove the zero points of convolution weights and of biases if they are zero, which is the default.

    ONNX Runtime 1.17 to 1.32 still fuse such a convolution. A ``Gemm`` whose weight has no zero point is not fused by
    1.32 and fails in 1.17, so those zero points stay.
    """
    constants, readers = read_initializers(graph), find_consumers(graph)
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or len(node.input) < 3 or node.input[2] not in constants:
            continue
        dtype = helper.np_dtype_to_tensor_dtype(constants[node.input[2]].dtype)
        uses = readers.get(node.output[0], [])
        is_weight = dtype == TensorProto.INT8 and all(user.op_type == "Conv" and index == 1 for user, index in uses)
        if (dtype == TensorProto.INT32 or (is_weight and uses)) and not constants[node.input[2]].any():
            del node.input[2]


def _drop_default_attributes(node: onnx.NodeProto, opset: int) -> None:
    """Remove attributes that are at their default."""
    if node.domain not in ("", "ai.onnx"):
        return
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    kept = []
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        declared = schema.attributes.get(attribute.name)
        default = declared.default_value if declared is not None else None
        if default is not None and default.type and helper.get_attribute_value(default) == value:
            continue
        if node.op_type in _CONVOLUTIONS and _is_convolution_default(attribute.name, value):
            continue
        kept.append(attribute)
    if len(kept) < len(node.attribute):
        copies = [onnx.AttributeProto.FromString(attribute.SerializeToString()) for attribute in kept]
        del node.attribute[:]
        node.attribute.extend(copies)


def _is_convolution_default(name: str, value: object) -> bool:
    """Tell whether an attribute of a convolution is at the default that its schema gives only in words.

    The kernel's shape follows from the weight's.
    """
    if name == "kernel_shape":
        return True
    values = set(value) if isinstance(value, (list, tuple)) else set()
    return (name in ("strides", "dilations") and values == {1}) or (name == "pads" and values == {0})


def _move_shared_up(graph: onnx.GraphProto) -> None:
    """Move initializers of branches and loop bodies to the top graph, if another graph has an equal one.

    Folding constants writes a weight of the top graph that several branches reshape into each of them.
    """
    bodies = [body for body in walk_graphs(graph) if body is not graph]
    if not bodies:
        return
    separate_names(graph)
    stored = [tensor for one in (graph, *bodies) for tensor in one.initializer]
    keys = {one.name: _value_key(one) for one in stored if one.data_type != TensorProto.STRING}
    counts = Counter(keys.values())
    repeated = {name for name, key in keys.items() if counts[key] > 1}
    for body in bodies:
        visible = {value.name for value in body.output}
        moved = [one for one in body.initializer if one.name in repeated - visible]
        graph.initializer.extend(moved)
        for tensor in moved:
            body.initializer.remove(tensor)


def _value_key(tensor: onnx.TensorProto) -> tuple[int, tuple[int, ...], bytes]:
    """Return what is equal for equal tensors."""
    return tensor.data_type, tuple(tensor.dims), hash_values(tensor)


def _share_initializers(graph: onnx.GraphProto) -> None:
    """Merge equal initializers of the top graph, and store all of them as raw bytes."""
    visible = {value.name for value in (*graph.input, *graph.output)}
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    shapes = Counter((tensor.data_type, tuple(tensor.dims)) for tensor in graph.initializer)
    renamed: dict[str, str] = {}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.STRING:
            continue
        if not tensor.HasField("raw_data") and not is_external(tensor):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
        if tensor.name in visible:
            continue
        if shapes[tensor.data_type, tuple(tensor.dims)] > 1:
            renamed[tensor.name] = first.setdefault(_value_key(tensor), tensor.name)
    for inner in walk_graphs(graph):
        for node in inner.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]


def _shorten_names(graph: onnx.GraphProto) -> dict[str, str]:
    """Give inner values the shortest names, the most used ones first, and remove the names of nodes.

    Returns:
        New name to old name, of those that changed.
    """
    kept = {value.name for value in (*graph.input, *graph.output)}
    uses: Counter[str] = Counter()
    for inner in walk_graphs(graph):
        uses.update(tensor.name for tensor in inner.initializer)
        uses.update(value.name for value in (*inner.input, *inner.output))
        for node in inner.node:
            node.name = ""
            uses.update((*node.input, *node.output))
    fresh = (name for name in _generate_names() if name not in kept)
    ranked = sorted((name for name in uses if name and name not in kept), key=lambda name: -uses[name])
    short = dict(zip(ranked, fresh, strict=False))
    for inner in walk_graphs(graph):
        for value in (*inner.initializer, *inner.input, *inner.output):
            value.name = short.get(value.name, value.name)
        for node in inner.node:
            node.input[:] = [short.get(name, name) for name in node.input]
            node.output[:] = [short.get(name, name) for name in node.output]
    return {new: old for old, new in short.items() if new != old}


def _generate_names() -> Iterator[str]:
    """Yield ``a``, ``b``, ..., ``aa``, ``ab``, ..."""
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_letters, repeat=length):
            yield "".join(letters)
