"""Drops rows of embedding tables that no training sample reads; ids without a row of their own share one row.

The ids are looked up in a small table of integers first. It is as long as the old table, so a negative id still counts
from the end, and an id out of range is still an error.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeopt.errors import StepError
from edgeopt.graph.model import lift_constants, replace_nodes
from edgeopt.graph.weights.id_tables import Bits, IdTable, find_id_tables, is_row_lookup, passes_rows
from edgeopt.model_files.tensors import tensor_values
from edgeopt.records.recipe import DropUnseenRows
from edgeopt.records.unseen_rows import KeptRows

_STAGE = "drop-unseen-rows"
_LOOKUP_BYTES = 256
"""Of two nodes and their names, before names are shortened."""


def choose_rows(
    tables: list[IdTable], seen: Mapping[str, Bits], unknown_ids: Mapping[str, int]
) -> tuple[DropUnseenRows | None, dict[str, str]]:
    """Return the step that makes a float file smaller, if any, and why tables are not in it, by name.

    Args:
        tables: Of ``edgeopt.graph.weights.id_tables.find_id_tables``.
        seen: By table, whether each row is read.
        unknown_ids: Input to the id whose row ids without one read; the mean of the dropped rows for other inputs.
    """
    chosen: dict[str, KeptRows] = {}
    saved: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for table in tables:
        own = seen[table.name].copy()
        unknown = next((unknown_ids[name] for name in table.inputs if name in unknown_ids), None)
        if unknown is not None and not table.is_direct:
            reasons[table.name] = "numbers are added to its ids, so that the row of an unknown id is not known"
            continue
        if unknown is not None and not 0 <= unknown < table.rows:
            reasons[table.name] = f"the unknown id {unknown} has no row: there are {table.rows:,}"
            continue
        if unknown is not None:
            own[unknown] = True
        ids = pack_rows(own)
        kept = int(own.sum())
        chosen[table.name] = KeptRows(inputs=table.inputs, rows=table.rows, kept=kept, ids=ids, unknown_id=unknown)
        saved[table.name] = (table.rows - kept - (unknown is None)) * table.row_bytes
    for table in tables:  # tables that are read at the same ids share what it costs to look these up
        if table.name not in chosen:
            continue
        alike = [other.name for other in tables if other.name in chosen and other.indices == table.indices]
        alike = [name for name in alike if chosen[name].ids == chosen[table.name].ids]
        cost = table.rows * _place_type(chosen[table.name].kept + 1).itemsize + _LOOKUP_BYTES * len(table.indices)
        if sum(saved[name] for name in alike) <= cost:
            kept = chosen[table.name].kept
            reasons[table.name] = f"{kept:,} of its {table.rows:,} rows are read, so dropping the others saves nothing"
    left = {name: kept for name, kept in chosen.items() if name not in reasons}
    return DropUnseenRows(tables=left) if left else None, reasons


def drop_rows(model: onnx.ModelProto, step: DropUnseenRows) -> None:
    """Apply the step, in place.

    Raises:
        StepError: a table is not in the graph, or is read in another way than by ids of an input.
    """
    graph = model.graph
    lift_constants(graph)
    found = {table.name: table for table in find_id_tables(graph)[0]}
    nodes = list(graph.node)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    maps: dict[str, str] = {}
    for name, kept in step.tables.items():
        if name not in found or found[name].rows != kept.rows:
            raise StepError(_STAGE, f"the graph has no table '{name}' of {kept.rows} rows that ids of an input read.")
        places, rows = _shrink(tensor_values(stored[name]), kept)
        stored[name].CopyFrom(numpy_helper.from_array(rows, name))
        key = f"{kept.ids} {kept.unknown_id}"
        if key not in maps:
            maps[key] = f"{name}_places"
            graph.initializer.append(numpy_helper.from_array(places, maps[key]))
        nodes = _look_up_places(nodes, name, rows.ndim, maps[key])
    replace_nodes(graph, nodes)
    resized = {*step.tables, *(name for node in nodes if passes_rows(node) for name in node.output)}
    for value in [value for value in graph.value_info if value.name in resized]:
        graph.value_info.remove(value)


def _shrink(table: NDArray[np.generic], kept: KeptRows) -> tuple[NDArray[np.integer], NDArray[np.generic]]:
    """Return the new place of each old row, and the rows that are left; the mean is the last one."""
    own = unpack_rows(kept.ids, kept.rows)
    rows = table[own]
    places = np.full(kept.rows, len(rows), np.int64)
    places[own] = np.arange(len(rows))
    if kept.unknown_id is not None:
        places[~own] = places[kept.unknown_id]
    elif not own.all():
        mean = table[~own].astype(np.float64).mean(0, keepdims=True).astype(table.dtype)
        rows = np.concatenate([rows, mean])
    assert np.array_equal(rows[places[own]].view(np.uint8), table[own].view(np.uint8)), "a row changed"
    return places.astype(_place_type(len(rows))), rows


def _place_type(rows: int) -> np.dtype[np.integer]:
    """Return the smallest type that can number the rows."""
    return np.dtype(next(kind for kind in (np.uint8, np.uint16, np.int32) if rows - 1 <= np.iinfo(kind).max))


def _look_up_places(nodes: list[onnx.NodeProto], table: str, ndim: int, places: str) -> list[onnx.NodeProto]:
    """Return the nodes with the ids of a table replaced by the places of its rows."""
    changed: list[onnx.NodeProto] = []
    holders, made = {table}, {name for node in nodes for name in node.output}
    for node in nodes:
        if node.input and node.input[0] in holders and passes_rows(node):
            holders.add(node.output[0])
        if not (node.input and node.input[0] in holders and is_row_lookup(node, ndim)):
            changed.append(node)
            continue
        row = f"{node.input[1]}_{places}"
        if row not in made:  # a Cast, since only 32 and 64 bits may be indices
            made.add(row)
            changed += [
                helper.make_node("Gather", [places, node.input[1]], [f"{row}_narrow"], f"{row}_narrow"),
                helper.make_node("Cast", [f"{row}_narrow"], [row], row, to=TensorProto.INT32),
            ]
        looked_up = onnx.NodeProto.FromString(node.SerializeToString())
        looked_up.input[1] = row
        changed.append(looked_up)
    return changed


def pack_rows(bits: Bits) -> str:
    """Return bits as text; see ``KeptRows.ids``."""
    return base64.b64encode(zlib.compress(np.packbits(bits).tobytes(), 9)).decode()


def unpack_rows(text: str, count: int) -> Bits:
    """Return that number of bits from their text."""
    return np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8), count=count).astype(bool)
