"""The tensors stored in an ``.onnx`` file, by size: where its bytes go."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from onnx import TensorProto

from edgeopt.graph.model import load, walk_graphs
from edgeopt.model_files.tensors import count_bytes, is_external

_STAGE = "inspect"


class StoredTensor(NamedTuple):
    """An initializer, or the value of a ``Constant`` node."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """ONNX's name of the type, such as ``FLOAT``."""
    stored_bytes: int
    """In the file, including its name and shape."""


def _stored_bytes(tensor: TensorProto) -> int:
    outside = count_bytes(tensor) if is_external(tensor) else 0
    return int(tensor.ByteSize()) + (outside or 0)


def list_stored_tensors(path: Path) -> list[StoredTensor]:
    """Return the tensors in a file, largest first.

    Raises:
        StepError: the file cannot be read.
    """
    model = load(path, _STAGE)
    stored = []
    for graph in walk_graphs(model.graph):
        constants = [
            (node.output[0], attribute.t)
            for node in graph.node
            if node.op_type == "Constant"
            for attribute in node.attribute
            if attribute.name == "value"
        ]
        for name, tensor in [*((tensor.name, tensor) for tensor in graph.initializer), *constants]:
            dtype = TensorProto.DataType.Name(tensor.data_type)
            stored.append(StoredTensor(name, tuple(tensor.dims), dtype, _stored_bytes(tensor)))
    return sorted(stored, key=lambda tensor: -tensor.stored_bytes)
