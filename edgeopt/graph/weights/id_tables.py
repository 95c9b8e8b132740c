"""Tables of embeddings that are read by the ids of an input: which a graph has, and which of their rows a batch reads.

Found is each table that only ``Gather`` reads, by rows, at ids that come from inputs: moved, cast, cut, or with numbers
added to them. A position table whose rows depend on the length is not one: a longer input reads other rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from edgeopt.errors import StepError
from edgeopt.graph.model import STANDARD_DOMAINS, find_consumers, walk_graphs
from edgeopt.model_files.tensors import in_memory

Bits = NDArray[np.bool_]

_STAGE = "drop-unseen-rows"
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_MOVING = frozenset(
    ("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose", "Expand", "Slice", "Gather", "Tile")
)
"""Operators that move or leave out ids of their first input; the others are sizes and positions."""
_COMPUTING = frozenset(("Add", "Sub", "Mul", "Max", "Min", "Clip", "Mod", "Concat"))
"""Operators that compute ids from all of their inputs."""


class IdTable(NamedTuple):
    """A table, and how it is read."""

    name: str
    rows: int
    row_bytes: float
    indices: tuple[str, ...]
    """The values that it is read at."""
    inputs: tuple[str, ...]
    """Of the graph, that these come from."""
    is_direct: bool
    """Whether its rows are the ids of the inputs themselves: nothing is added to them."""


class _Source(NamedTuple):
    inputs: frozenset[str]
    is_direct: bool


def find_id_tables(graph: onnx.GraphProto) -> tuple[list[IdTable], dict[str, str]]:
    """Return the float tables that are read by ids of inputs, and why other tables are not among them, by name.

    Args:
        graph: Its constants are initializers (``edgeopt.graph.model.lift_constants``).
    """
    tables: list[IdTable] = []
    reasons: dict[str, str] = {}
    readers = find_consumers(graph)
    inner = {name for one in list(walk_graphs(graph))[1:] for node in one.node for name in node.input}
    visible = {value.name for value in graph.output}
    sources = _trace_sources(graph)
    for tensor in graph.initializer:
        if tensor.data_type not in _FLOATS or not tensor.dims:
            continue
        lookups, other = _find_lookups(readers, tensor.name, len(tensor.dims))
        if not lookups:
            continue
        found = [sources.get(node.input[1]) for node in lookups]
        inputs = sorted({name for one in found if one is not None for name in one.inputs})
        if other is not None:
            reasons[tensor.name] = f"{other} reads it too"
        elif {tensor.name, *(name for node in lookups for name in node.input)} & inner or tensor.name in visible:
            reasons[tensor.name] = "an inner graph reads it, or it is an output"
        elif not inputs or any(one is None or not one.inputs for one in found):
            reasons[tensor.name] = "its rows are not read at the ids of an input"
        else:
            count = int(np.prod(tensor.dims))
            bytes_each = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            tables.append(
                IdTable(
                    name=tensor.name,
                    rows=tensor.dims[0],
                    row_bytes=count * bytes_each / max(1, tensor.dims[0]),
                    indices=tuple(dict.fromkeys(node.input[1] for node in lookups)),
                    inputs=tuple(inputs),
                    is_direct=all(one is not None and one.is_direct for one in found),
                )
            )
    return tables, reasons


def _find_lookups(
    readers: Mapping[str, list[tuple[onnx.NodeProto, int]]], name: str, ndim: int
) -> tuple[list[onnx.NodeProto], str | None]:
    """Return the nodes that look up rows of a table, also behind a ``Cast``, and the operator of one that does not."""
    lookups: list[onnx.NodeProto] = []
    other: str | None = None
    for node, index in readers.get(name, []):
        if is_row_lookup(node, ndim) and index == 0:
            lookups.append(node)
        elif passes_rows(node):
            deeper, odd = _find_lookups(readers, node.output[0], ndim)
            lookups, other = lookups + deeper, other or odd or (None if deeper else node.op_type)
        else:
            other = other or node.op_type
    return lookups, other


def is_row_lookup(node: onnx.NodeProto, ndim: int) -> bool:
    """Tell whether a node reads rows of a tensor with that many dimensions."""
    axis = next((one.i for one in node.attribute if one.name == "axis"), 0)
    return node.op_type == "Gather" and node.domain in STANDARD_DOMAINS and axis in (0, -ndim)


def passes_rows(node: onnx.NodeProto) -> bool:
    """Tell whether a node returns its input row by row."""
    return node.op_type in ("Cast", "Identity") and node.domain in STANDARD_DOMAINS


def _trace_sources(graph: onnx.GraphProto) -> dict[str, _Source]:
    """Return the inputs that each value's ids come from; none for constants. Values that are no ids are missing."""
    constants = {tensor.name for tensor in graph.initializer}
    sources = {value.name: _Source(frozenset([value.name]), True) for value in graph.input}
    sources |= {name: _Source(frozenset(), True) for name in constants}
    for node in graph.node:  # in the order of computation
        if node.domain not in STANDARD_DOMAINS or node.op_type not in _MOVING | _COMPUTING:
            continue
        read = [name for name in node.input if name] if node.op_type in _COMPUTING else list(node.input[:1])
        known = [sources[name] for name in read if name in sources]
        if len(known) == len(read):
            is_direct = all(one.is_direct for one in known) and (node.op_type in _MOVING or node.op_type == "Concat")
            sources[node.output[0]] = _Source(frozenset().union(*(one.inputs for one in known)), is_direct)
    return sources


class IdReader:
    """Collects which rows of tables batches read.

    Args:
        model: Its constants are initializers.
        tables: Of ``find_id_tables``.
    """

    def __init__(self, model: onnx.ModelProto, tables: list[IdTable]) -> None:
        self.tables = tables
        wanted = list(dict.fromkeys(name for table in tables for name in table.indices))
        part = _part_before(model, wanted)
        self.seen: dict[str, Bits] = {table.name: np.zeros(table.rows, bool) for table in tables}
        """By table: whether each row was read."""
        self.key = hashlib.sha256(repr(tables).encode() + part.SerializeToString(deterministic=True)).hexdigest()
        """Equal for readers that find the same rows in the same batches."""
        self._inputs = [value.name for value in part.graph.input]
        self._names, self._evaluator = wanted, ReferenceEvaluator(part)

    def read(self, batch: Mapping[str, NDArray[Any]]) -> None:
        """Note the rows that a batch reads.

        Raises:
            StepError: the ids cannot be computed, or an id has no row.
        """
        try:
            outputs = self._evaluator.run(None, {name: batch[name] for name in self._inputs})
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            raise StepError(_STAGE, f"the ids that a table is read at cannot be computed: {error}") from error
        ids = {name: np.unique(np.asarray(values)) for name, values in zip(self._names, outputs, strict=True)}
        for table in self.tables:
            for name in table.indices:
                rows = np.where(ids[name] < 0, ids[name] + table.rows, ids[name])  # as Gather counts from the end
                if rows.size and not 0 <= rows.min() <= rows.max() < table.rows:
                    raise StepError(_STAGE, f"an id of {table.inputs[0]!r} has no row in '{table.name}'.")
                self.seen[table.name][rows.astype(np.int64)] = True


def _part_before(model: onnx.ModelProto, wanted: list[str]) -> onnx.ModelProto:
    """Return the part of a model that computes some values, with only the inputs and constants that it reads."""
    graph = model.graph
    needed, nodes = set(wanted), []
    for node in reversed(graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= set(node.input)
    constants = [in_memory(tensor) for tensor in graph.initializer if tensor.name in needed]
    stored = {tensor.name for tensor in constants}
    part = helper.make_graph(
        nodes[::-1],
        "ids",
        [value for value in graph.input if value.name in needed - stored],
        [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in wanted],
        constants,
    )
    return helper.make_model(part, opset_imports=list(model.opset_import), ir_version=model.ir_version)
