"""Models in memory: the large tensors of a pair stay in their file, and are mapped into memory when they are read.

An external tensor of a model that ``read_model`` returned names its file by an absolute path. ``write_model`` decides
again whether the model fits into one file.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeopt.model_files.layout import WEIGHTS_SUFFIX, is_weights_name, max_file_bytes, place_weights

_MIN_EXTERNAL_BYTES = 1024
"""Smaller tensors stay in the graph of a pair, where tools find the sizes and axes that they may be."""
_ALIGNMENT_BYTES = 4096
"""Weights begin at a page of memory, so that ONNX Runtime can map them."""
_BLOCK_BYTES = 2**24
PACKED_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
"""Types of which several values share a byte."""


def walk_initializers(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Yield the initializers of a graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from walk_initializers(inner)


def is_external(tensor: TensorProto) -> bool:
    """Tell whether a tensor's values are in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def external_entries(tensor: TensorProto) -> dict[str, str]:
    """Return where the values of an external tensor are: ``location``, ``offset`` and ``length``."""
    return {entry.key: entry.value for entry in tensor.external_data} if is_external(tensor) else {}


def count_bytes(tensor: TensorProto) -> int | None:
    """Return how many bytes a tensor's values have; None if its type is unknown."""
    try:
        name = TensorProto.DataType.Name(tensor.data_type)
        bits = PACKED_BITS.get(name) or 8 * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, ValueError):
        return None
    values = int(np.prod([int(size) for size in tensor.dims], dtype=object))
    return -(-values * bits // 8)


def tensor_values(tensor: TensorProto) -> NDArray[Any]:
    """Return a tensor's values: an external one's are mapped from its file, and cannot be changed."""
    if not is_external(tensor):
        return numpy_helper.to_array(tensor)
    place = _place_of(tensor)
    if TensorProto.DataType.Name(tensor.data_type) in PACKED_BITS:
        packed = TensorProto(dims=tensor.dims, data_type=tensor.data_type, raw_data=_read(place))
        return numpy_helper.to_array(packed)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape = tuple(tensor.dims)
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.asarray(np.memmap(place.file, dtype, "r", place.offset, shape))


def count_model_bytes(model: onnx.ModelProto) -> int:
    """Return the bytes of a model with those of its external tensors."""
    outside = (count_bytes(tensor) or 0 for tensor in walk_initializers(model.graph) if is_external(tensor))
    return int(model.ByteSize()) + sum(outside)


def in_memory(tensor: TensorProto) -> TensorProto:
    """Return a tensor whose values are in memory, for tools that read no other files: itself, or a copy."""
    if not is_external(tensor):
        return tensor
    copy = TensorProto()
    copy.CopyFrom(tensor)
    _take_in(copy)
    return copy


def copy_model_proto(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model; both refer to the same files for their external tensors."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def set_external(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Make a tensor external, and drop its values from memory."""
    kept = TensorProto(dims=tensor.dims, data_type=tensor.data_type, name=tensor.name)
    kept.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        kept.external_data.add(key=key, value=str(value))
    tensor.CopyFrom(kept)


def read_model(path: Path) -> onnx.ModelProto:
    """Read a model that ``write_model`` wrote; the large tensors of a pair stay in their file.

    Raises:
        OSError, DecodeError: it cannot be read, or its weights are missing or too short.
        ValueError: it keeps weights in a file that is not a pair's; the words follow the model's name.
    """
    model = onnx.load_model(path, load_external_data=False)
    outside = [tensor for tensor in walk_initializers(model.graph) if is_external(tensor)]
    foreign = [tensor.name for tensor in outside if not is_weights_name(external_entries(tensor).get("location", ""))]
    if foreign:
        raise ValueError(f"keeps {len(foreign)} tensors in other files ('{foreign[0]}'). Save it as one file.")
    for tensor in outside:
        entries, length = external_entries(tensor), count_bytes(tensor) or 0
        file, offset = path.parent / entries["location"], int(entries.get("offset", "0"))
        if file.stat().st_size < offset + length:
            raise OSError(f"{file} is too short")
        refer_to(tensor, file, offset, length)
    return model


def read_from_elsewhere(path: Path) -> onnx.ModelProto:
    """Read a model that an exporter wrote, whose weights may be in any files of its folder; they stay there.

    Raises:
        OSError, DecodeError: it cannot be read.
    """
    model = onnx.load_model(path, load_external_data=False)
    for tensor in walk_initializers(model.graph):
        if is_external(tensor):
            entries = external_entries(tensor)
            file = path.parent / entries["location"]
            refer_to(tensor, file, int(entries.get("offset", "0")), count_bytes(tensor) or 0)
    return model


def refer_to(tensor: TensorProto, file: Path, offset: int, length: int) -> None:
    """Let a tensor have the values in a file; a small one takes them into memory, where tools look for sizes and axes.

    Raises:
        OSError: the file cannot be read.
    """
    set_external(tensor, str(file.absolute()), offset, length)
    if length < _MIN_EXTERNAL_BYTES:
        _take_in(tensor)


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model to one file, or as a pair if it does not fit; equal models give equal bytes.

    Afterwards the large tensors of a pair are no longer in memory.
    """
    content = _whole(model)
    if content is None:
        weights = _place_all(model, path.parent)
        content = _graph_bytes(model, weights.name)
    path.write_bytes(content)


def hash_model(model: onnx.ModelProto) -> str:
    """Return the SHA-256 in hex digits that the file, or the graph of the pair, would have if it were written."""
    content = _whole(model)
    if content is None:
        digest = hashlib.sha256()
        for block in _stream(model):
            digest.update(block)
        copy = copy_model_proto(model)
        for tensor, offset in _lay_out(copy):
            set_external(tensor, "", offset, count_bytes(tensor) or 0)
        content = _graph_bytes(copy, digest.hexdigest() + WEIGHTS_SUFFIX)
    return hashlib.sha256(content).hexdigest()


def weights_as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose external tensors are inputs, for tools that look at a graph but not at large values.

    A model without any is returned itself.
    """
    if not any(map(is_external, walk_initializers(model.graph))):
        return model
    copy = copy_model_proto(model)
    for tensor in [one for one in walk_initializers(copy.graph) if is_external(one)]:
        if all(value.name != tensor.name for value in copy.graph.input):
            copy.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    _drop_external(copy.graph)
    return copy


def inputs_as_weights(
    changed: onnx.ModelProto,
    model: onnx.ModelProto,
    convert: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
) -> onnx.ModelProto:
    """Undo ``weights_as_inputs`` after a tool changed its result.

    Args:
        changed: What the tool made of it, changed in place.
        model: The model before.
        convert: Gives the values of an input that the tool gave another type, a part at a time.
    """
    stored = {tensor.name: tensor for tensor in walk_initializers(model.graph) if is_external(tensor)}
    own = {value.name for value in model.graph.input}
    for value in list(changed.graph.input):
        if value.name not in stored:
            continue
        tensor = changed.graph.initializer.add()
        tensor.CopyFrom(stored[value.name])
        if value.type.tensor_type.elem_type != tensor.data_type:
            assert convert is not None, "only a tool that changes types needs it"
            tensor.CopyFrom(numpy_helper.from_array(_convert_in_parts(tensor_values(tensor), convert), value.name))
        if value.name not in own:
            changed.graph.input.remove(value)
    return changed


def _convert_in_parts(values: NDArray[Any], convert: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[Any]:
    """Return converted values; only a part of them is in memory in both types."""
    flat = values.reshape(-1)
    parts = [convert(flat[start : start + _BLOCK_BYTES]) for start in range(0, max(1, flat.size), _BLOCK_BYTES)]
    return np.concatenate(parts).reshape(values.shape)


def hash_values(tensor: TensorProto) -> bytes:
    """Return what is equal for tensors of equal bytes."""
    digest = hashlib.sha256()
    for block in _blocks(tensor):
        digest.update(block)
    return digest.digest()


class _Place(NamedTuple):
    """Where an external tensor's values are."""

    file: Path
    offset: int
    length: int


def _place_of(tensor: TensorProto) -> _Place:
    entries = external_entries(tensor)
    return _Place(Path(entries["location"]), int(entries["offset"]), int(entries["length"]))


def _read(place: _Place) -> bytes:
    with place.file.open("rb") as stream:
        stream.seek(place.offset)
        return stream.read(place.length)


def _take_in(tensor: TensorProto) -> None:
    """Take an external tensor's values into memory."""
    values = _read(_place_of(tensor))
    tensor.ClearField("data_location")
    del tensor.external_data[:]
    tensor.raw_data = values


def _drop_external(graph: onnx.GraphProto) -> None:
    """Remove the external initializers of a graph and of those inside its nodes."""
    for tensor in [one for one in graph.initializer if is_external(one)]:
        graph.initializer.remove(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    _drop_external(inner)


def _whole(model: onnx.ModelProto) -> bytes | None:
    """Return the bytes of a model in one file; None if it does not fit. Its tensors are then all in memory."""
    tensors = list(walk_initializers(model.graph))
    if sum(count_bytes(tensor) or 0 for tensor in tensors) > max_file_bytes():
        return None
    for tensor in tensors:
        if is_external(tensor):
            _take_in(tensor)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _lay_out(model: onnx.ModelProto) -> list[tuple[TensorProto, int]]:
    """Return the tensors of a pair that are not in its graph, each with its offset."""
    placed, offset = [], 0
    for tensor in walk_initializers(model.graph):
        length = count_bytes(tensor)
        if length is None or length < _MIN_EXTERNAL_BYTES:
            continue
        placed.append((tensor, offset))
        offset += -(-length // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    return placed


def _place_all(model: onnx.ModelProto, folder: Path) -> Path:
    """Put the large tensors of a model into a file of weights in a folder, and let them refer to it."""
    placed = _lay_out(model)
    weights = _find_laid_out(placed)
    if weights is None:
        partial = folder / f"weights.partial-{os.getpid()}-{threading.get_ident()}{WEIGHTS_SUFFIX}"
        digest = hashlib.sha256()
        try:
            with partial.open("wb") as stream:
                for block in _stream(model):
                    digest.update(block)
                    stream.write(block)
            weights = folder / (digest.hexdigest() + WEIGHTS_SUFFIX)
            partial.replace(weights)
        finally:
            partial.unlink(missing_ok=True)
    else:
        place_weights(weights, folder)
    for tensor, offset in placed:
        set_external(tensor, str((folder / weights.name).absolute()), offset, count_bytes(tensor) or 0)
    return weights


def _find_laid_out(placed: list[tuple[TensorProto, int]]) -> Path | None:
    """Return the file that already holds these tensors, and only them, at these offsets."""
    if not all(is_external(tensor) for tensor, _ in placed):
        return None
    found = [_place_of(tensor) for tensor, _ in placed]
    file = found[0].file
    end = found[-1].offset + -(-found[-1].length // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    is_same = all((one.file, one.offset) == (file, offset) for one, (_, offset) in zip(found, placed, strict=True))
    return file if is_same and is_weights_name(file.name) and file.stat().st_size == end else None


def _stream(model: onnx.ModelProto) -> Iterator[bytes]:
    """Yield the large tensors of a model one after the other, each filled up to the alignment."""
    for tensor, _ in _lay_out(model):
        yield from _blocks(tensor)
        yield bytes(-(count_bytes(tensor) or 0) % _ALIGNMENT_BYTES)


def _blocks(tensor: TensorProto) -> Iterator[bytes]:
    """Yield a tensor's bytes as a file holds them."""
    if is_external(tensor):
        place = _place_of(tensor)
        with place.file.open("rb") as stream:
            stream.seek(place.offset)
            left = place.length
            while left:
                block = stream.read(min(left, _BLOCK_BYTES))
                if not block:
                    raise OSError(f"{place.file} ends before the values of '{tensor.name}'")
                yield block
                left -= len(block)
    elif tensor.HasField("raw_data"):
        yield tensor.raw_data
    else:
        yield numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data


def _graph_bytes(model: onnx.ModelProto, weights_name: str) -> bytes:
    """Return the bytes of a pair's graph, whose tensors are at their offsets."""
    absolute = []
    for tensor in walk_initializers(model.graph):
        for entry in tensor.external_data:
            if entry.key == "location":
                absolute.append((entry, entry.value))
                entry.value = weights_name
    content: bytes = model.SerializeToString(deterministic=True)
    for entry, value in absolute:
        entry.value = value
    return content
