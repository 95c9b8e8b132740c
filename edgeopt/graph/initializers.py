"""What a file's bytes go to: its stored tensors by size."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from onnx import TensorProto

from edgeopt.graph.model import graphs, load

_STAGE = "inspect"


class StoredTensor(NamedTuple):
    """An initializer, or the value of a ``Constant`` node."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """ONNX's name of the type, such as ``FLOAT``."""
    stored_bytes: int
    """In the file, with its name and shape."""


def stored_tensors(path: Path) -> list[StoredTensor]:
    """Return the tensors that a file holds, largest first.

    Raises:
        StepError: the file cannot be read.
    """
    model = load(path, _STAGE)
    found = []
    for graph in graphs(model.graph):
        constants = [
            (node.output[0], attribute.t)
            for node in graph.node
            if node.op_type == "Constant"
            for attribute in node.attribute
            if attribute.name == "value"
        ]
        for name, tensor in [*((tensor.name, tensor) for tensor in graph.initializer), *constants]:
            kind = TensorProto.DataType.Name(tensor.data_type)
            found.append(StoredTensor(name, tuple(tensor.dims), kind, tensor.ByteSize()))
    return sorted(found, key=lambda tensor: -tensor.stored_bytes)
