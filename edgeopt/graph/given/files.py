"""Reads a model that the user gives: one file, or a file and others next to it that hold its weights.

In: a path. Out: a ``GivenModel``, in one piece unless that would be too large for one file: then its large tensors stay
in the user's files. Each refusal names the file and the next step.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from edgeopt.errors import TaskError
from edgeopt.graph.given.structure import find_fault, walk_tensors
from edgeopt.graph.model import are_nodes_sorted, lower_ir, read_batch_axes, sort_nodes, walk_graphs
from edgeopt.model_files.layout import max_file_bytes
from edgeopt.model_files.tensors import (
    copy_model_proto,
    count_bytes,
    hash_model,
    is_external,
    refer_to,
    walk_initializers,
    write_model,
)

_MAX_GRAPH_BYTES = 2**31 - 1
"""Protobuf's limit for one message, which a file is."""
_GIT_LFS_START = b"version https://git-lfs"


class GivenModel(NamedTuple):
    """A model as edgeopt reads it."""

    model: onnx.ModelProto
    content: bytes | None
    """The bytes of the user's file, if nothing had to be changed; otherwise of ``model``. None if they do not fit into
    one file: then ``model`` refers to the user's files for its large tensors."""
    is_changed: bool
    """Whether ``content`` differs from the user's file."""
    size_bytes: int
    """Of all the user's files."""
    other_files: tuple[str, ...]
    """Those that hold weights, relative to the model's folder."""
    opened_batch: int | None = None
    """The fixed batch size of the user's file, if its batch was made dynamic."""


def read_given(path: Path) -> GivenModel:
    """Read a model with the weights that it keeps in other files.

    A batch size written as -1 or 0 becomes dynamic. Nodes are put into the order of computation, which ONNX asks for:
    converters to float16 append some at the end, and ONNX Runtime sorts them itself.

    Raises:
        TaskError: the file is missing, damaged, too large or not an ONNX model, or a file with weights is.
    """
    data = _read_bytes(path)
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise TaskError(f"{path} cannot be read as an ONNX model ({error}). {_EXPORT_AGAIN}") from error
    if not model.graph.node and not model.graph.output:
        raise TaskError(f"{path} cannot be read as an ONNX model: it has no graph. {_EXPORT_AGAIN}")
    other_files = _load_weights(path, model)
    fault = find_fault(model)
    if fault is not None:
        raise TaskError(f"{path} {fault}. {_EXPORT_AGAIN}")
    unsorted = [graph for graph in walk_graphs(model.graph) if not are_nodes_sorted(graph)]
    for graph in reversed(unsorted):  # the inner ones first: sorting copies the nodes that hold them
        sort_nodes(graph)
    is_changed = _open_dimensions(model.graph) or bool(other_files) or bool(unsorted)
    content = _content_of(model) if is_changed else data
    total = len(data) + sum((path.parent / name).stat().st_size for name in other_files)
    return GivenModel(model, content, is_changed, total, other_files)


def _content_of(model: onnx.ModelProto) -> bytes | None:
    if any(map(is_external, walk_initializers(model.graph))):
        return None
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def with_model(given: GivenModel, model: onnx.ModelProto) -> GivenModel:
    """Return a given model with changes that were made to it."""
    return given._replace(model=model, content=_content_of(model), is_changed=True)


def baseline_of(given: GivenModel, max_ir: int) -> GivenModel:
    """Return the model that a build starts from.

    The file format's version is only a header: if the target does not load it, it is lowered to the oldest one that the
    operator sets allow.
    """
    if given.model.ir_version <= max_ir:
        return given
    copy = copy_model_proto(given.model)
    lower_ir(copy)
    return with_model(given, copy)


def write_given(given: GivenModel, path: Path) -> None:
    """Write a given model to a file, or as a pair if it does not fit into one."""
    if given.content is not None:
        path.write_bytes(given.content)
    else:
        write_model(copy_model_proto(given.model), path)  # the given one goes on referring to the user's files


def hash_given(given: GivenModel) -> str:
    """Return the SHA-256 in hex digits of the file that ``write_given`` writes."""
    return hash_model(given.model) if given.content is None else hashlib.sha256(given.content).hexdigest()


@contextmanager
def one_file(path: Path, given: GivenModel) -> Iterator[Path]:
    """Give a block the path of a given model as edgeopt writes files: its own, or that of a copy.

    The copy is a single file, or a pair if it would be too large.

    Args:
        path: Of the user's file.
        given: What ``read_given`` returned for it.
    """
    if not given.is_changed:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="edgeopt-given-") as folder:
        packed = Path(folder) / path.name
        write_given(given, packed)
        yield packed


_EXPORT_AGAIN = "Copy it again, or export it again."


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise TaskError(f"{path} is a folder: give the .onnx file in it.")
    try:
        if path.stat().st_size > _MAX_GRAPH_BYTES:
            raise TaskError(
                f"{path} has {path.stat().st_size / 1e9:.2f} GB, and an .onnx file holds at most "
                f"{_MAX_GRAPH_BYTES / 1e9:.2f} GB (protobuf's limit): larger weights are in a file next to it. Export "
                "it again with external data."
            )
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise TaskError(f"there is no file {path}.") from error
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror}.") from error
    if not data:
        raise TaskError(f"{path} cannot be read as an ONNX model: it is empty. {_EXPORT_AGAIN}")
    if data.startswith(_GIT_LFS_START):
        raise TaskError(f"{path} is a Git LFS pointer, not the model itself. Run `git lfs pull` in its repository.")
    return data


class _Place(NamedTuple):
    """Where a tensor's values are."""

    tensor: TensorProto
    location: str
    """Relative to the model's folder."""
    offset: int
    length: int | None
    """None: up to the end of the file."""


def _load_weights(path: Path, model: onnx.ModelProto) -> tuple[str, ...]:
    """Move the values of tensors in other files into the model, if they fit; return the names of those files.

    If they do not, large initializers stay there, and refer to the files by absolute paths.
    """
    places = [_find_place(path, tensor) for tensor in walk_tensors(model) if is_external(tensor)]
    names = tuple(dict.fromkeys(place.location for place in places))
    for name in names:
        if not (path.parent / name).is_file():
            tensors = [place.tensor.name for place in places if place.location == name]
            more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
            raise TaskError(
                f"{path} keeps weights ('{tensors[0]}'{more}) in {path.parent / name}, and there is no such file. Put "
                "it next to the model as it was exported, or export the model as a single file."
            )
    lengths = [_check_length(path, place) for place in places]
    staying: dict[int, TensorProto] = {}
    if sum(count_bytes(tensor) or 0 for tensor in walk_tensors(model)) > max_file_bytes():
        staying = {id(tensor): tensor for tensor in walk_initializers(model.graph)}
    for name in names:
        try:
            with (path.parent / name).open("rb") as stream:
                for place, length in zip(places, lengths, strict=True):
                    if place.location == name and id(place.tensor) in staying:
                        refer_to(place.tensor, path.parent / name, place.offset, length)
                    elif place.location == name:
                        stream.seek(place.offset)
                        _fill(place.tensor, stream.read(length))
        except OSError as error:
            raise TaskError(f"{path.parent / name} cannot be read: {error.strerror}. {_EXPORT_AGAIN}") from error
    return names


def _fill(tensor: TensorProto, values: bytes) -> None:
    tensor.raw_data = values
    tensor.ClearField("data_location")
    del tensor.external_data[:]


def _find_place(path: Path, tensor: TensorProto) -> _Place:
    """Return where a tensor's values are; only files in the model's own folder, or deeper, are read."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    is_inside = not (Path(location).is_absolute() or PureWindowsPath(location).drive or ".." in Path(location).parts)
    if not location or not is_inside:
        raise TaskError(
            f"{path} keeps the weights of '{tensor.name}' in '{location}', which is outside the model's folder. "
            "edgeopt reads only files in that folder. Save the model again with its weights next to it."
        )
    try:
        offset, length = int(entries.get("offset", "0")), entries.get("length")
        place = _Place(tensor, location, offset, None if length is None else int(length))
    except ValueError as error:
        raise TaskError(f"{path} is damaged: tensor '{tensor.name}' ({error}). {_EXPORT_AGAIN}") from error
    if place.offset < 0 or (place.length is not None and place.length < 0):
        raise TaskError(f"{path} is damaged: tensor '{tensor.name}' begins or ends before its file. {_EXPORT_AGAIN}")
    return place


def _check_length(path: Path, place: _Place) -> int:
    """Return the number of bytes of a tensor, which its file must have."""
    tensor, file = place.tensor, path.parent / place.location
    stored = file.stat().st_size
    length = max(0, stored - place.offset) if place.length is None else place.length
    needed = count_bytes(tensor)
    if place.offset + length > stored or (needed is not None and length < needed):
        end = place.offset + max(length, needed or 0)
        raise TaskError(
            f"{file} is too short: it has {stored:,} bytes, but the values of '{tensor.name}' are in the bytes "
            f"{place.offset:,} to {end:,}. {_EXPORT_AGAIN}"
        )
    if needed is not None and length > needed and place.length is not None:
        raise TaskError(
            f"{path} is damaged: '{tensor.name}' of shape {tuple(tensor.dims)} has {needed:,} bytes, but "
            f"{length:,} are stored. {_EXPORT_AGAIN}"
        )
    return length if needed is None else needed


_NO_NAMES = frozenset({"?", "??", "*", "-1", "none", "null", "nan", "unk", "unknown"})
"""What exporters write for the name of a dimension that has none."""


def _open_dimensions(graph: onnx.GraphProto) -> bool:
    """Make dimensions dynamic that an exporter wrote as -1, 0 or ``?``; return whether there were any.

    Dimensions of one name have one size, but exporters write ``?`` for any that they do not know. The batch of each
    input is then called ``batch``, so that it is found again.
    """
    unknown = [
        (value, axis)
        for value in (*graph.input, *graph.output, *graph.value_info)
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        if (dim.HasField("dim_value") and dim.dim_value <= 0) or dim.dim_param.lower() in _NO_NAMES
    ]
    if not unknown:
        return False
    batch_axes = read_batch_axes(graph)
    for value, axis in unknown:
        value.type.tensor_type.shape.dim[axis].Clear()
    for value in graph.input:
        dims, batch_axis = value.type.tensor_type.shape.dim, batch_axes.get(value.name)
        if batch_axis is not None and batch_axis < len(dims) and dims[batch_axis].dim_value <= 0:
            dims[batch_axis].dim_param = "batch"
    for output in graph.output:
        dims = output.type.tensor_type.shape.dim
        is_named = any(dim.dim_param == "batch" for dim in dims)  # as of a sequence whose steps come first
        if (output.name, 0) in {(value.name, axis) for value, axis in unknown} and not is_named:
            dims[0].dim_param = "batch"
    return True
