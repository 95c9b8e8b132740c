"""Tied weights: a matrix that a graph also uses transposed, as a language model's table of tokens in its last layer."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeopt.graph.model import Arrays, drop_unused_initializers, load, read_initializers, replace_nodes, save

_STAGE = "export"
_MIN_BYTES = 1024
"""Of a matrix that is worth a node of its own. ONNX Runtime transposes it once, when it loads the file."""


def write_tied_once(path: Path) -> None:
    """Change a file so that it holds its tied weights once: some exporters write them twice.

    Raises:
        StepError: the file cannot be read.
    """
    model = load(path, _STAGE)
    if store_tied_once(model.graph):
        save(model, path)


def store_tied_once(graph: onnx.GraphProto) -> int:
    """Write matrices that equal another one transposed as a ``Transpose`` of it, in place.

    Of two such matrices, the one that a ``Gather`` reads stays, since it is read row by row.

    Returns:
        How many were replaced.
    """
    visible = {value.name for value in (*graph.input, *graph.output)}
    tables = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    matrices = {
        name: values
        for name, values in read_initializers(graph).items()
        if values.ndim == 2 and values.nbytes >= _MIN_BYTES and min(values.shape) > 1 and name not in visible
    }
    shapes = {(values.dtype, values.shape) for values in matrices.values()}
    kept: dict[tuple[str, bytes], str] = {}
    transposes = []
    for name in sorted(matrices, key=lambda name: name not in tables):
        values = matrices[name]
        if (values.dtype, values.shape[::-1]) not in shapes:
            continue
        source = kept.get(_key(values.T))
        if source is None or name in tables:
            kept.setdefault(_key(values), name)
            continue
        transposes.append(helper.make_node("Transpose", [source], [name], f"{name}_transposed", perm=[1, 0]))
    if transposes:
        replaced = {node.output[0] for node in transposes}
        stored = [tensor for tensor in graph.initializer if tensor.name not in replaced]
        copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in stored]
        del graph.initializer[:]
        graph.initializer.extend(copies)
        replace_nodes(graph, [*transposes, *graph.node])
    return len(transposes)


def _key(values: np.ndarray) -> tuple[str, bytes]:
    """Return what is equal for equal matrices."""
    # bytes, because arrays of types that numpy lacks (bfloat16, float8) have no buffer
    return f"{values.dtype}{values.shape}", hashlib.sha256(values.tobytes()).digest()


def store_tied_apart(graph: onnx.GraphProto) -> None:
    """Undo ``store_tied_once``: quantizers look for weights among the initializers."""
    constants: Arrays = read_initializers(graph)
    nodes = []
    for node in graph.node:
        perm = next((list(one.ints) for one in node.attribute if one.name == "perm"), [1, 0])
        source = constants.get(node.input[0]) if node.op_type == "Transpose" else None
        if source is None or source.ndim != 2 or perm != [1, 0]:
            nodes.append(node)
            continue
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(source.T), node.output[0]))
    if len(nodes) < len(graph.node):
        replace_nodes(graph, nodes)
        drop_unused_initializers(graph)
