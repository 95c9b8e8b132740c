"""The file agent: stores and returns files on a device. It only needs Python, and is never stored there itself.

In: JSON lines on stdin. Out: one line for each, ``edgeopt-worker`` and JSON, as ``edgeopt/bench/worker.py`` answers. It
ends when stdin does. Files are named by their SHA-256, so that a file is only sent once; files that were not used for a
day are removed.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STALE_SECONDS = 86400.0


def make_folder() -> Path:
    """Return the folder for files: in the user's cache, or a new temporary one if that cannot be written."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeopt"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return Path(tempfile.mkdtemp(prefix="edgeopt-"))
    return folder


def remove_stale(folder: Path, now: float) -> None:
    """Remove files that were not used for a day."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another file agent was faster
            if path.is_file() and now - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


def hash_file(path: Path) -> str:
    """Return a file's SHA-256 in hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def check_file(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Answer whether a file is there and complete; asking keeps it for another day."""
    complete = path.is_file() and hash_file(path) == request["sha256"]
    if complete:
        os.utime(path)
    return {"have": complete}


def part_path(path: Path) -> Path:
    """Return the path that a file is received in; each file agent has its own."""
    return path.with_name(f"{path.name}.{os.getpid()}.part")


def begin_file(path: Path, _request: dict[str, Any]) -> dict[str, Any]:
    """Begin to receive a file."""
    part_path(path).write_bytes(b"")
    return {}


def append_block(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Append bytes to a file that is being received."""
    with part_path(path).open("ab") as stream:
        stream.write(base64.b64decode(request["data"]))
    return {}


def keep_file(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Keep a file that was received, if its hash is right."""
    kept = hash_file(part_path(path)) == request["sha256"]
    if kept:
        part_path(path).replace(path)
    else:
        part_path(path).unlink()
    return {"kept": kept}


def read_block(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Return bytes of a file; none at the end."""
    with path.open("rb") as stream:
        stream.seek(request["offset"])
        return {"data": base64.b64encode(stream.read(request["bytes"])).decode()}


def remove_file(path: Path, _request: dict[str, Any]) -> dict[str, Any]:
    """Remove a file, or the part of it that was received."""
    path.unlink(missing_ok=True)
    part_path(path).unlink(missing_ok=True)
    return {}


HANDLERS: dict[str, Callable[[Path, dict[str, Any]], dict[str, Any]]] = {
    "have": check_file,
    "begin": begin_file,
    "write": append_block,
    "keep": keep_file,
    "hash": lambda path, _request: {"sha256": hash_file(path)},
    "read": read_block,
    "remove": remove_file,
}


def write_answer(value: dict[str, Any]) -> None:
    """Write one line."""
    sys.stdout.write(f"edgeopt-worker {json.dumps(value)}\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until stdin ends."""
    folder = make_folder()
    remove_stale(folder, time.time())
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "hello":
            write_answer({"ok": True, "folder": str(folder)})
            continue
        try:
            write_answer({"ok": True, **HANDLERS[request["do"]](folder / request["name"], request)})
        except OSError as error:
            free_mb = shutil.disk_usage(folder).free / 1e6
            reason = f"{error.strerror} in {folder} ({free_mb:.1f} MB free)"
            write_answer({"ok": False, "kind": "device", "reason": reason})


if __name__ == "__main__":
    main()
