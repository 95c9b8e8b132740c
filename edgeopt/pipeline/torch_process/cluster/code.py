"""The user's code, as far as nodes of a cluster need it: Python files, settings and weights, but no data."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edgeopt.errors import ConfigError
from edgeopt.task.load import check_task_file
from edgeopt.tasks.given.onnx_trainable import TRAINING_SUFFIX

_CODE = {".py", ".toml", ".json", ".yaml", ".yml", ".txt", ".cfg", ".ini"}
_WEIGHTS = {".pt", ".pth", ".ckpt", ".safetensors", ".onnx"}
_MAX_CODE_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 64 << 20
_MAX_ALL_BYTES = 400 << 20
"""Ray takes at most 512 MiB."""
_OTHERS = {"pyvenv.cfg", "conda-meta", "ledger.sqlite", "choice.json"}
"""A folder with one of these is an environment, a workspace or a result."""
_INSTALLED = {"site-packages", "dist-packages"}
"""Folders of installed packages; Debian has names of its own."""
_LEFT_OUT = {"__pycache__", "node_modules", *_INSTALLED}


class TaskCode(NamedTuple):
    """The user's own code of a task."""

    file: Path
    """Of the task, of its module, or of the package with its module; absolute."""
    root: Path
    """The folder that travels: of ``file.py:name`` the file's, of ``module:name`` the one that holds the module, of
    ``package.module:name`` the one that holds the package's folder."""


def code_of(task: str) -> TaskCode | None:
    """Return the user's code of a task.

    Returns:
        None for a ready task, a given ``.onnx``, and a module that is installed, comes with edgeopt or isn't found.

    Raises:
        TaskError: the task's file does not exist.
    """
    source, _, _ = task.rpartition(":")
    if not source or task.endswith((TRAINING_SUFFIX, ".onnx")):
        return None
    if source.endswith(".py"):
        check_task_file(Path(source))
        file = Path(source).resolve()
        return TaskCode(file, file.parent)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    found = _find_module(source)
    if found is None or _INSTALLED.intersection(found.file.parts):
        return None
    return found


def _find_module(name: str) -> TaskCode | None:
    """Return the code with a module, without importing anything: user code runs only where it is guarded."""
    first, *others = name.split(".")
    if first in ("", "__main__", __name__.partition(".")[0]):
        return None
    spec = importlib.util.find_spec(first)
    if spec is None:
        return None
    if spec.has_location and spec.origin is not None:
        file = Path(spec.origin).resolve()
        return TaskCode(file, file.parent if spec.submodule_search_locations is None else file.parents[1])
    for location in spec.submodule_search_locations or () if others else ():
        folder = Path(location).resolve()
        module = folder.joinpath(*others)
        for file in (module / "__init__.py", module.with_name(f"{module.name}.py")):
            if file.is_file():
                return TaskCode(file, folder.parent)
    return None


def hash_code(root: Path) -> str:
    """Return the hash of the Python files that would travel, with their names.

    Args:
        root: As in ``TaskCode``.

    Raises:
        ConfigError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in _files_of_code(root):
        if path.suffix != ".py":
            continue
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be read ({error.strerror}), and the nodes of a cluster need all Python files in "
                f"{root}. Make it readable, or move the task's file into a folder of its own."
            ) from error
        digest.update(os.fsencode(path.relative_to(root).as_posix()) + f"\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def check_code_size(root: Path) -> None:
    """Check that the code of a folder is not too much to send.

    Raises:
        ConfigError: it is.
    """
    total = 0
    for path in _files_of_code(root):
        total += path.stat().st_size
        if total > _MAX_ALL_BYTES:
            raise ConfigError(
                f"the code and weights in {root} are more than {_MAX_ALL_BYTES >> 20} MiB, too much to send to a "
                "cluster. Move the task's file into a folder of its own, or put the folder where every node has it "
                "under the same path."
            )


def large_weights(root: Path) -> list[Path]:
    """Return the files of weights that don't travel, because each is too large."""
    return [path for path in _own_files(root) if path.suffix in _WEIGHTS and path.stat().st_size > MAX_WEIGHTS_BYTES]


def copy_code(root: Path, into: Path) -> None:
    """Copy the code of a folder and of those in it.

    Raises:
        ConfigError: it is too much.
    """
    check_code_size(root)
    for path in _files_of_code(root):
        copy = into / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _files_of_code(root: Path) -> Iterator[Path]:
    for path in _own_files(root):
        if path.stat().st_size <= (_MAX_CODE_BYTES if path.suffix in _CODE else MAX_WEIGHTS_BYTES):
            yield path


def _own_files(root: Path) -> Iterator[Path]:
    """Yield code and weights of any size, but none of an environment, a workspace or a result."""
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        if here != root and not _OTHERS.isdisjoint((*folders, *names)):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _LEFT_OUT)
        for path in (here / name for name in sorted(names)):
            if (path.suffix in _CODE or path.suffix in _WEIGHTS) and path.is_file():
                yield path
