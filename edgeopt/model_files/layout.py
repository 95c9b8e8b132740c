"""How a model lies on the disk: in one file, or as a pair, if one file cannot hold it.

Protobuf, the format of ``.onnx``, ends at 2 GiB. The graph of a pair is the ``.onnx``; its large tensors are in a file
next to it that is named by the SHA-256 of its content. So the graph, which holds that name, stands for the whole: its
hash tells pairs apart, and a pair can be copied, renamed and sent to a device without any change to it.

This module only looks at files, and imports onnx where it reads one.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import shutil
from pathlib import Path

WEIGHTS_SUFFIX = ".data"
_MAX_FILE_BYTES = 2**31 - 2**24
"""Protobuf's limit, and room for the graph."""
_TEST_SETTING = "_EDGEOPT_MAX_FILE_BYTES"
"""Environment variable with a lower limit, also for subprocesses, so that tests can make pairs of a few kB."""


def max_file_bytes() -> int:
    """Return how many bytes of weights one file may hold; a model with more is a pair."""
    return int(os.environ.get(_TEST_SETTING) or _MAX_FILE_BYTES)


def weight_files(model: Path) -> list[Path]:
    """Return the files next to a model that hold weights; none for a single file, or if it is no ``.onnx``.

    They may be missing. Files with other names than a pair's are not among them: a given model is read by
    ``edgeopt.graph.given.files``.
    """
    import onnx
    from google.protobuf.message import DecodeError

    from edgeopt.model_files.tensors import external_entries, walk_initializers

    if model.suffix != ".onnx" or not model.is_file() or not _names_weights(model):
        return []
    try:
        graph = onnx.load_model(model, load_external_data=False).graph
    except DecodeError:
        return []
    locations = [external_entries(tensor).get("location", "") for tensor in walk_initializers(graph)]
    return [model.parent / location for location in dict.fromkeys(locations) if is_weights_name(location)]


def _names_weights(model: Path) -> bool:
    """Tell whether a file has the bytes of the end of a weights file's name: most are large, and have none."""
    with model.open("rb") as stream:
        if not os.fstat(stream.fileno()).st_size:
            return False
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(WEIGHTS_SUFFIX.encode()) >= 0


def is_weights_name(location: str) -> bool:
    """Tell whether a pair's weights may have that name: a SHA-256 in hex digits, and nothing that leaves the folder."""
    return re.fullmatch(rf"[0-9a-f]{{64}}\{WEIGHTS_SUFFIX}", location) is not None


def model_parts(model: Path) -> list[Path]:
    """Return all files of a model, the graph first."""
    return [model, *weight_files(model)]


def has_all_parts(model: Path) -> bool:
    """Tell whether a model and its weights are there."""
    return model.is_file() and all(path.is_file() for path in weight_files(model))


def measure_bytes(model: Path) -> int:
    """Return the size of all files of a model."""
    return sum(path.stat().st_size for path in model_parts(model))


def hash_of_file(path: Path) -> str:
    """Return a file's SHA-256 in hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_unchanged(model: Path, sha256: str) -> bool:
    """Tell whether a model that edgeopt wrote still has its content: its hash, and those that its weights are named by.

    Args:
        model: The file.
        sha256: Of the graph's file.
    """
    if hash_of_file(model) != sha256:
        return False
    return all(path.is_file() and hash_of_file(path) == path.stem for path in weight_files(model))


def copy_model(source: Path, target: Path, *, link_weights: bool = False) -> None:
    """Copy a model; files with weights keep their names.

    Args:
        source: The model.
        target: Path of the copy.
        link_weights: Whether the copy may share files of weights with ``source`` on the disk.
    """
    for path in weight_files(source):
        if link_weights:
            place_weights(path, target.parent)
        else:
            shutil.copyfile(path, target.parent / path.name)
    shutil.copyfile(source, target)


def move_model(source: Path, target: Path) -> None:
    """Move a model within a file system, weights first, so that the graph is never without them.

    Its folder must not hold other models with the same weights.
    """
    for path in weight_files(source) if source.parent != target.parent else ():
        place_weights(path, target.parent)
        path.unlink()
    source.replace(target)


def remove_model(model: Path) -> None:
    """Remove a model, and its weights, if there are any."""
    for path in [*weight_files(model), model]:
        path.unlink(missing_ok=True)


def place_weights(path: Path, folder: Path) -> None:
    """Put a file of weights into a folder, too: by a link, or by a copy where links are not possible."""
    target = folder / path.name
    if target.exists():
        return
    try:
        os.link(path, target)
    except FileExistsError:  # by another thread, just now
        return
    except OSError:
        shutil.copyfile(path, target)
