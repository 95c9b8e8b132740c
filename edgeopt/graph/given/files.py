"""Reads a model that the user gives: one file, or a file and others next to it that hold its weights.

In: a path. Out: a ``GivenModel``, with everything in one piece. Each refusal names the file and the next step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from edgeopt.errors import TaskError
from edgeopt.graph.given.structure import count_bytes, find_fault, walk_tensors
from edgeopt.graph.model import lower_ir

MAX_MODEL_BYTES = 2**31 - 1
"""Protobuf's limit for one message, which a model in one file is."""
_GIT_LFS_START = b"version https://git-lfs"


class GivenModel(NamedTuple):
    """A model in one piece."""

    model: onnx.ModelProto
    content: bytes
    """The bytes of the user's file, if nothing had to be changed; otherwise of ``model``."""
    is_changed: bool
    """Whether ``content`` differs from the user's file."""
    size_bytes: int
    """Of all the user's files."""
    other_files: tuple[str, ...]
    """Those that hold weights, relative to the model's folder."""
    opened_batch: int | None = None
    """The fixed batch size of the user's file, if its batch was made dynamic."""


def read_given(path: Path) -> GivenModel:
    """Read a model with the weights that it keeps in other files; a batch size written as -1 or 0 becomes dynamic.

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
    other_files = _load_weights(path, model, len(data))
    fault = find_fault(model)
    if fault is not None:
        raise TaskError(f"{path} {fault}. {_EXPORT_AGAIN}")
    is_changed = _open_dimensions(model.graph) or bool(other_files)
    content = model.SerializeToString(deterministic=True) if is_changed else data
    total = len(data) + sum((path.parent / name).stat().st_size for name in other_files)
    return GivenModel(model, content, is_changed, total, other_files)


def baseline_content(given: GivenModel, max_ir: int) -> bytes:
    """Return the bytes of the file that a build starts from.

    The file format's version is only a header: if the target does not load it, it is lowered to the oldest one that the
    operator sets allow.
    """
    if given.model.ir_version <= max_ir:
        return given.content
    copy = onnx.ModelProto.FromString(given.content)
    lower_ir(copy)
    lowered: bytes = copy.SerializeToString(deterministic=True)
    return lowered


@contextmanager
def one_file(path: Path, given: GivenModel) -> Iterator[Path]:
    """Give a block the path of a given model in one file: its own, or that of a copy with everything in one piece.

    Args:
        path: Of the user's file.
        given: What ``read_given`` returned for it.
    """
    if not given.is_changed:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="edgeopt-given-") as folder:
        packed = Path(folder) / path.name
        packed.write_bytes(given.content)
        yield packed


_EXPORT_AGAIN = "Copy it again, or export it again."


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise TaskError(f"{path} is a folder: give the .onnx file in it.")
    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise TaskError(_too_large(path, path.stat().st_size))
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


def _too_large(path: Path, size_bytes: int) -> str:
    return (
        f"{path} has {size_bytes / 1e9:.2f} GB with its weights; edgeopt needs the model in one file, which may have "
        f"at most {MAX_MODEL_BYTES / 1e9:.2f} GB (protobuf's limit). Export it in float16 or in parts."
    )


class _Place(NamedTuple):
    """Where a tensor's values are."""

    tensor: TensorProto
    location: str
    """Relative to the model's folder."""
    offset: int
    length: int | None
    """None: up to the end of the file."""


def _load_weights(path: Path, model: onnx.ModelProto, own_bytes: int) -> tuple[str, ...]:
    """Move the values of tensors in other files into the model; return the names of those files."""
    places = [_find_place(path, tensor) for tensor in walk_tensors(model) if _is_outside(tensor)]
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
    total = own_bytes + sum(lengths)
    if total > MAX_MODEL_BYTES:
        raise TaskError(_too_large(path, total))
    for name in names:
        try:
            with (path.parent / name).open("rb") as stream:
                for place, length in zip(places, lengths, strict=True):
                    if place.location == name:
                        stream.seek(place.offset)
                        _fill(place.tensor, stream.read(length))
        except OSError as error:
            raise TaskError(f"{path.parent / name} cannot be read: {error.strerror}. {_EXPORT_AGAIN}") from error
    return names


def _is_outside(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL


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


def _open_dimensions(graph: onnx.GraphProto) -> bool:
    """Make dimensions dynamic that an exporter wrote as -1 or 0; return whether there were any."""
    found = False
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value <= 0:
                dim.Clear()
                if axis == 0:
                    dim.dim_param = "batch"
                found = True
    return found
