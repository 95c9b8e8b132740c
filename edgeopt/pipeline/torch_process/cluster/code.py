"""The user's code, as far as nodes of a cluster need it: Python files, settings and weights, but no data."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from edgeopt.errors import ConfigError
from edgeopt.tasks.given.onnx_trainable import TRAINING_SUFFIX

_CODE = {".py", ".toml", ".json", ".yaml", ".yml", ".txt", ".cfg", ".ini"}
_WEIGHTS = {".pt", ".pth", ".ckpt", ".safetensors", ".onnx"}
_MAX_CODE_BYTES = 1 << 20
_MAX_WEIGHTS_BYTES = 64 << 20
_MAX_ALL_BYTES = 400 << 20
"""Ray takes at most 512 MiB."""
_OTHERS = ("pyvenv.cfg", "ledger.sqlite", "choice.json")
"""A folder with one of these is an environment, a workspace or a result."""


def code_of(task: str) -> Path | None:
    """Return the file of a task or of its module; None if the task comes with edgeopt or another installed package."""
    source, _, _ = task.rpartition(":")
    if not source or task.endswith((TRAINING_SUFFIX, ".onnx")):
        return None
    if source.endswith(".py"):
        return Path(source).resolve()
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    found = importlib.util.find_spec(source.partition(".")[0])
    if found is None or found.origin is None or "site-packages" in found.origin:
        return None
    return Path(found.origin).resolve()


def hash_code(path: Path) -> str:
    """Return the hash of a file of code."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def root_of(task: str, code: Path) -> Path:
    """Return the folder that travels: of ``file.py:name`` the file's, of ``module:name`` the one with the module."""
    is_package = code.name == "__init__.py" and not task.rpartition(":")[0].endswith(".py")
    return code.parents[1] if is_package else code.parent


def copy_code(root: Path, into: Path) -> None:
    """Copy the code of a folder and of those in it.

    Raises:
        ConfigError: it is too much.
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
        copy = into / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _files_of_code(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        if here != root and any(name in names for name in _OTHERS):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for path in (here / name for name in sorted(names)):
            limit = _MAX_CODE_BYTES if path.suffix in _CODE else _MAX_WEIGHTS_BYTES if path.suffix in _WEIGHTS else -1
            if path.is_file() and path.stat().st_size <= limit:
                yield path
