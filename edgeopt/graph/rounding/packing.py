"""Stores int8 tensors whose values fit in few bits densely; ONNX Runtime unpacks them when it loads the file.

Every node of the chain reads constants only, so ONNX Runtime (1.17 to 1.32) computes it once, before it chooses
kernels. The session then holds the int8 tensors that it would otherwise have read from the file, and runs as fast.

    bytes (1, n) ─ BitShift left ─ BitShift right ─ Reshape ─ Cast ─ Gather in a table ─ Split ─ Reshape ─ the tensor

Four bits are halves of bytes. Five and six bits are four and one or two more, three are two and one, from a second
array of bytes, which an ``Add`` before the ``Gather`` joins. These are the operators with which ONNX Runtime needs the
fewest bytes while it unpacks: about 10 for each weight of 4 bits. (It does not fold its own operators, and has no 8-bit
``Sub``.) All tensors of a width are in one array, so that its nodes are paid for once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeopt.graph.model import (
    Arrays,
    drop_unused_initializers,
    find_consumers,
    read_initializers,
    read_opset,
    replace_nodes,
)

PLANES: dict[int, tuple[int, ...]] = {3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2)}
"""From the bits of a value to the bits that each of its arrays holds, the lowest first; each divides a byte."""
MIN_PACKED_VALUES = 512
"""Smaller tensors save little more than their own nodes take."""
_CHAIN_BYTES = 400
_TENSOR_BYTES = 60
"""What a chain takes in a compact file, and what each tensor adds to it, besides the packed values."""
_MAX_CHAIN_VALUES = 1 << 20
"""Of one array."""
_BYTE = 8
_MIN_OPSET = 13
"""The first in which ``Split`` takes sizes as an input."""
_Bytes = NDArray[np.uint8]


def pack(model: onnx.ModelProto) -> int:
    """Pack the int8 tensors that fit in few bits, in place; return their number. Without a gain, nothing changes."""
    if read_opset(model) < _MIN_OPSET:
        return 0
    graph = model.graph
    outputs, readers = {value.name for value in graph.output}, find_consumers(graph)
    groups: dict[int, list[tuple[str, NDArray[Any]]]] = {}
    for name, values in read_initializers(graph).items():
        bits = _bits_of(values)
        if bits is not None and name not in outputs and readers.get(name):
            groups.setdefault(bits, []).append((name, values))
    groups = {bits: tensors for bits, tensors in groups.items() if _pays(bits, tensors)}
    nodes: list[onnx.NodeProto] = []
    for bits, tensors in sorted(groups.items()):
        for index, chunk in enumerate(_chunks(tensors)):
            nodes += _write_chain(graph, f"packed{bits}_{index}", bits, chunk)
    if nodes:
        packed = {name for tensors in groups.values() for name, _ in tensors}
        kept = [onnx.TensorProto.FromString(one.SerializeToString()) for one in graph.initializer]
        del graph.initializer[:]
        graph.initializer.extend(one for one in kept if one.name not in packed)
        replace_nodes(graph, [*nodes, *graph.node])
    return sum(map(len, groups.values()))


def _bits_of(values: NDArray[Any]) -> int | None:
    """Return the fewest bits that hold every value of an int8 tensor; None if there is nothing to gain."""
    if values.dtype != np.int8 or values.size < MIN_PACKED_VALUES:
        return None
    fits = (bits for bits in PLANES if -(2 ** (bits - 1)) <= values.min() and values.max() < 2 ** (bits - 1))
    return next(fits, None)


def _pays(bits: int, tensors: list[tuple[str, NDArray[Any]]]) -> bool:
    """Tell whether packing saves more than its nodes take."""
    saved = sum(values.size for _, values in tensors) * (_BYTE - bits) // _BYTE
    return saved > _CHAIN_BYTES + _TENSOR_BYTES * len(tensors)


def _chunks(tensors: list[tuple[str, NDArray[Any]]]) -> Iterator[list[tuple[str, NDArray[Any]]]]:
    """Split tensors into lists of at most ``_MAX_CHAIN_VALUES`` values, or one tensor."""
    chunk: list[tuple[str, NDArray[Any]]] = []
    for one in tensors:
        if chunk and sum(values.size for _, values in [*chunk, one]) > _MAX_CHAIN_VALUES:
            yield chunk
            chunk = []
        chunk.append(one)
    yield chunk


def _write_chain(
    graph: onnx.GraphProto, prefix: str, bits: int, tensors: list[tuple[str, NDArray[Any]]]
) -> list[onnx.NodeProto]:
    """Store tensors in ``bits`` each, and return the nodes that make them int8 again."""
    stored = graph.initializer

    def constant(name: str, values: NDArray[Any]) -> str:
        stored.append(numpy_helper.from_array(values, f"{prefix}_{name}"))
        return f"{prefix}_{name}"

    nodes: list[onnx.NodeProto] = []

    def node(operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [f"{prefix}_{name}"], f"{prefix}_{name}_node", **attributes))
        return f"{prefix}_{name}"

    half = 2 ** (bits - 1)
    flat = np.concatenate([values.reshape(-1) for _, values in tensors]).astype(np.int32) + half
    flat = np.concatenate([flat, np.zeros(-len(flat) % _BYTE, np.int32)]).astype(np.uint8)
    line = constant("line", np.array([-1], np.int64))
    index, used = "", 0
    for width in PLANES[bits]:
        rows = _BYTE // width
        shifts = (np.arange(rows)[::-1] * width).astype(np.uint8).reshape(rows, 1)
        stored_bytes = constant(f"bytes{width}", _fill_bytes((flat >> used) & (2**width - 1), width))
        up = node("BitShift", [stored_bytes, constant(f"up{width}", shifts)], f"high{width}", direction="LEFT")
        shift = constant(f"down{width}", np.array(_BYTE - width, np.uint8))
        down = node("BitShift", [up, shift], f"low{width}", direction="RIGHT")
        if used:
            place = constant(f"place{width}", np.array(used, np.uint8))
            down = node("BitShift", [down, place], f"placed{width}", direction="LEFT")
        plane = node("Cast", [node("Reshape", [down, line], f"line{width}")], f"plane{width}", to=TensorProto.INT32)
        index = node("Add", [index, plane], "index") if index else plane
        used += width
    table = constant("table", np.arange(-half, half, dtype=np.int8))
    values_of = node("Gather", [table, index], "values")
    sizes = [values.size for _, values in tensors]
    padding = len(flat) - sum(sizes)
    parts = [f"{name}_line" for name, _ in tensors] + ([f"{prefix}_padding"] if padding else [])
    split = constant("sizes", np.array([*sizes, *([padding] if padding else [])], np.int64))
    nodes.append(helper.make_node("Split", [values_of, split], parts, f"{prefix}_split", axis=0))
    for position, (name, values) in enumerate(tensors):
        shape = constant(f"shape{position}", np.array(values.shape, np.int64))
        nodes.append(helper.make_node("Reshape", [f"{name}_line", shape], [name], f"{name}_unpacked"))
    return nodes


def _fill_bytes(values: _Bytes, width: int) -> _Bytes:
    """Return ``(1, n)`` bytes: row i of the values, ``(8 / width, n)``, at bits ``i * width`` and up."""
    rows = values.reshape(_BYTE // width, -1)
    shifted = [row << (index * width) for index, row in enumerate(rows)]
    return np.asarray(np.bitwise_or.reduce(shifted), np.uint8).reshape(1, -1)


def unpack(model: onnx.ModelProto) -> dict[str, int]:
    """Undo ``pack``, in place: store the int8 tensors again. Return the bits that each of them fits in, by name."""
    graph = model.graph
    if not any(node.op_type == "BitShift" for node in graph.node):
        return {}
    constants = read_initializers(graph)
    makers = {name: node for node in graph.node for name in node.output}
    readers = find_consumers(graph)
    found: Arrays = {}
    removed = set[str]()
    for split in [node for node in graph.node if node.op_type == "Split"]:
        names = _nodes_before(split, makers, constants)
        last = [node for name in split.output for node, _ in readers.get(name, [])]
        if names is None or not last or any(node.op_type != "Reshape" for node in last):
            continue
        inside = {*split.output, *names}
        names |= {node.output[0] for node in (split, *last)}
        if any(node.output[0] not in names for name in inside for node, _ in readers.get(name, [])):
            continue
        chain = [node for node in graph.node if names & set(node.output)]
        known = _compute(chain, constants)
        found |= {node.output[0]: known[node.output[0]] for node in last}
        removed |= names
    replace_nodes(graph, [node for node in graph.node if not removed & set(node.output)])
    graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in found.items())
    drop_unused_initializers(graph)
    return {name: bits for name, values in found.items() if (bits := _bits_of(values)) is not None}


_CHAIN_OPERATORS = ("BitShift", "Reshape", "Cast", "Add", "Gather")
"""Before the ``Split``."""


def _nodes_before(split: onnx.NodeProto, makers: dict[str, onnx.NodeProto], constants: Arrays) -> set[str] | None:
    """Return the first outputs of the nodes that a ``Split`` depends on; None if they are no chain of ``pack``."""
    table = makers.get(split.input[0])
    if table is None or table.op_type != "Gather" or not set(split.input[1:]) <= constants.keys():
        return None
    if table.input[0] not in constants or constants[table.input[0]].dtype != np.int8:
        return None
    names, waiting, kinds = set[str](), [table], set[str]()
    while waiting:
        node = waiting.pop()
        if node.op_type not in _CHAIN_OPERATORS:
            return None
        names.add(node.output[0])
        kinds.add(node.op_type)
        for name in node.input:
            if name not in constants and name not in makers:
                return None
            if name not in constants:
                waiting.append(makers[name])
    return names if "BitShift" in kinds else None


def _compute(chain: list[onnx.NodeProto], constants: Arrays) -> Arrays:
    """Return every value of a chain, by name."""
    known: dict[str, NDArray[Any]] = dict(constants)
    for node in chain:
        inputs = [known[name] for name in node.input]
        match node.op_type:
            case "BitShift":
                is_left = any(one.name == "direction" and one.s == b"LEFT" for one in node.attribute)
                results = [(inputs[0] << inputs[1] if is_left else inputs[0] >> inputs[1]).astype(np.uint8)]
            case "Cast":
                results = [inputs[0].astype(np.int32)]
            case "Reshape":
                results = [inputs[0].reshape(inputs[1])]
            case "Add":
                results = [inputs[0] + inputs[1]]
            case "Gather":
                results = [inputs[0][inputs[1]]]
            case "Split":
                results = np.split(inputs[0], np.cumsum(inputs[1])[:-1])
            case other:
                raise AssertionError(f"{other} is in no chain")
        known |= dict(zip(node.output, results, strict=True))
    return known
