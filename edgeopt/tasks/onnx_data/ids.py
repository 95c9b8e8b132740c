"""Inputs that are ids: which rows of a stored table they may name, and whether the user's do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from edgeopt.errors import DataError
from edgeopt.tasks.onnx_data.samples import SampleGroup

_PASSING = frozenset(("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose", "Expand"))
"""Operators that move ids, but keep their values."""


def find_id_limits(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the inputs that index the rows of a stored table (``Gather``), each with the smallest number of rows."""
    rows = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    sources = {value.name: value.name for value in graph.input}
    limits: dict[str, int] = {}
    for node in graph.node:  # in the order of computation
        if node.op_type == "Constant":
            stored = [one.t.dims for one in node.attribute if one.name == "value"]
            if stored and stored[0] and node.output:
                rows[node.output[0]] = stored[0][0]
        elif node.op_type in _PASSING and node.input and node.output and node.input[0] in sources:
            sources[node.output[0]] = sources[node.input[0]]
        elif node.op_type == "Identity" and node.input and node.output and node.input[0] in rows:
            rows[node.output[0]] = rows[node.input[0]]
        elif node.op_type == "Gather" and len(node.input) == 2:
            table, indices = node.input
            is_first = not any(one.name == "axis" and one.i for one in node.attribute)
            if is_first and table in rows and indices in sources:
                name = sources[indices]
                limits[name] = min(limits.get(name, rows[table]), rows[table])
    return limits


def check_ids(source: Path | str, graph: onnx.GraphProto, groups: Sequence[SampleGroup]) -> None:
    """Check that ids name rows of their table, from its first or, if they are negative, from its end.

    Args:
        source: The data, for errors.
        graph: Of the model.
        groups: The samples.

    Raises:
        DataError: some do not; the message names the first.
    """
    for name, rows in find_id_limits(graph).items():
        for values in (group.inputs[name] for group in groups if name in group.inputs):
            if values.dtype.kind not in "iu" or not (outside := (values < -rows) | (values >= rows)).any():
                continue
            place = tuple(int(index) for index in np.argwhere(outside)[0])
            where = f" in row {place[0]}" if place else ""
            raise DataError(
                f"{source}: '{name}' has {int(np.count_nonzero(outside)):,} ids that are no row of the model's table, "
                f"the first of them {int(values[place])}{where}: it has {rows:,} rows, so ids are 0 to {rows - 1}."
            )
