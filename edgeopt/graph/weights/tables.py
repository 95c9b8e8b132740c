"""Tables of embeddings in int8: their rows are looked up as integers, and only these become float.

A row has a scale of its own, since a few rows are often much larger than the others. A table that is also the weight of
a product in dynamic int8 (tied weights) takes the integers of that product, so that the file holds them once.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeopt.graph.model import Arrays, drop_unused_initializers, read_initializers, replace_nodes
from edgeopt.graph.rounding.compensation import find_grid
from edgeopt.records.recipe import StoredBits

_MIN_BYTES_RATIO = 0.02
"""Of the stored bytes: a smaller table is not worth three more nodes."""
_INT8_BITS: StoredBits = 8
_MAX_INT8 = 127
_Floats = NDArray[np.float32]


def find_tables(graph: onnx.GraphProto) -> dict[str, _Floats]:
    """Return the float32 matrices, by name, that are only read row by row, and are worth it by their size."""
    constants = read_initializers(graph)
    total = sum(values.nbytes for values in constants.values())
    visible = {value.name for value in graph.output}
    others = {name for node in graph.node for index, name in enumerate(node.input) if not _is_lookup(node) or index}
    return {
        node.input[0]: constants[node.input[0]]
        for node in graph.node
        if _is_lookup(node)
        and node.input[0] in constants
        and node.input[0] not in others | visible
        and node.input[1] not in constants
        and constants[node.input[0]].ndim == 2
        and constants[node.input[0]].dtype == np.float32
        and constants[node.input[0]].nbytes >= _MIN_BYTES_RATIO * total
    }


def _is_lookup(node: onnx.NodeProto) -> bool:
    axis = next((one.i for one in node.attribute if one.name == "axis"), 0)
    return node.op_type == "Gather" and node.domain in ("", "ai.onnx") and axis == 0


def round_rows(table: _Floats, bits: StoredBits = _INT8_BITS) -> tuple[NDArray[np.int8], _Floats]:
    """Round a matrix to int8, row by row.

    Args:
        table: ``(rows, columns)``.
        bits: Of each value; more than 8 are 8.

    Returns:
        The integers, and scales ``(rows, 1)``.
    """
    if bits < _INT8_BITS:
        grid = find_grid(table[None], None, bits, any_sign=True)
        return grid.round(table[None])[0].astype(np.int8), grid.scale[0].astype(np.float32)
    scales = np.abs(table).max(1, keepdims=True) / _MAX_INT8
    scales = np.where(scales > 0, scales, 1).astype(np.float32)
    return np.clip(np.rint(table / scales), -_MAX_INT8, _MAX_INT8).astype(np.int8), scales


def quantize_tables(graph: onnx.GraphProto, rounded: dict[str, tuple[NDArray[np.int8], _Floats]]) -> None:
    """Replace each lookup in a table by one in int8, in place.

    Args:
        graph: The graph.
        rounded: The integers and the scales of each table, by name.
    """
    if not rounded:
        return
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(graph.node):
        if not _is_lookup(node) or node.input[0] not in rounded:
            nodes.append(node)
            continue
        table, indices, name = node.input[0], node.input[1], node.name or f"Gather_{index}"
        rows, cast, scales = (f"{name}_{part}" for part in ("rows", "float", "scales"))
        nodes += [
            helper.make_node("Gather", [f"{table}_int8", indices], [rows], rows),
            helper.make_node("Cast", [rows], [cast], cast, to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{table}_row_scales", indices], [scales], scales),
            helper.make_node("Mul", [cast, scales], list(node.output), name),
        ]
    for table, (values, row_scales) in rounded.items():
        graph.initializer.append(numpy_helper.from_array(values, f"{table}_int8"))
        graph.initializer.append(numpy_helper.from_array(row_scales, f"{table}_row_scales"))
    replace_nodes(graph, nodes)
    drop_unused_initializers(graph)


def match_products(
    tables: dict[str, _Floats], before: Arrays, quantized: Arrays
) -> dict[str, tuple[NDArray[np.int8], _Floats]]:
    """Return tables whose transposition is the weight of a product in dynamic int8, with that product's integers.

    Args:
        tables: The float tables.
        before: The initializers of the float graph.
        quantized: Those of the graph that ``onnxruntime.quantization.quantize_dynamic`` wrote, which names the integers
            and scales of a weight after it.
    """
    found = {}
    for name, table in tables.items():
        for weight, values in before.items():
            names = [f"{weight}_{part}" for part in ("quantized", "scale", "zero_point")]
            if values.shape != table.T.shape or not quantized.keys() >= set(names):
                continue
            integers, scale, zero = (quantized[part] for part in names)
            if integers.dtype == np.int8 and not zero.any() and np.array_equal(values, table.T):
                rows = np.broadcast_to(np.reshape(scale, (-1, 1)), (len(table), 1))
                found[name] = (np.ascontiguousarray(integers.T), np.ascontiguousarray(rows, np.float32))
    return found
