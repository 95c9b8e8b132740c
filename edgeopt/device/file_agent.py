"""The courier: keeps and hands out files on a device. It needs Python alone, and is never stored there.

In: JSON lines on stdin. Out: for each a line, ``edgeopt-worker`` and JSON, as ``edgeopt/bench/worker.py`` answers. It
ends when stdin does. Files are named by their SHA-256, so that what is there already is not sent again; what nobody
asked for during a day is removed.
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
    """Return the folder for files: in the user's cache, or a fresh temporary one where that cannot be written."""
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
        with contextlib.suppress(OSError):  # another courier was faster
            if path.is_file() and now - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


def hash_file(path: Path) -> str:
    """Return a file's SHA-256 in hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def have(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Tell whether a file is there, whole; a file that is asked for stays another day."""
    there = path.is_file() and hash_file(path) == request["sha256"]
    if there:
        os.utime(path)
    return {"have": there}


def part_of(path: Path) -> Path:
    """Return where a file is collected; another courier has another place."""
    return path.with_name(f"{path.name}.{os.getpid()}.part")


def begin(path: Path, _request: dict[str, Any]) -> dict[str, Any]:
    """Begin to collect a file."""
    part_of(path).write_bytes(b"")
    return {}


def write(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Add bytes to a file that is collected."""
    with part_of(path).open("ab") as stream:
        stream.write(base64.b64decode(request["data"]))
    return {}


def keep(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Keep a file that was collected, if its hash is right."""
    kept = hash_file(part_of(path)) == request["sha256"]
    if kept:
        part_of(path).replace(path)
    else:
        part_of(path).unlink()
    return {"kept": kept}


def read(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Return bytes of a file; none at its end."""
    with path.open("rb") as stream:
        stream.seek(request["offset"])
        return {"data": base64.b64encode(stream.read(request["bytes"])).decode()}


def remove(path: Path, _request: dict[str, Any]) -> dict[str, Any]:
    """Remove a file, or what was collected of it."""
    path.unlink(missing_ok=True)
    part_of(path).unlink(missing_ok=True)
    return {}


DEEDS: dict[str, Callable[[Path, dict[str, Any]], dict[str, Any]]] = {
    "have": have,
    "begin": begin,
    "write": write,
    "keep": keep,
    "hash": lambda path, _request: {"sha256": hash_file(path)},
    "read": read,
    "remove": remove,
}


def answer(value: dict[str, Any]) -> None:
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
            answer({"ok": True, "folder": str(folder)})
            continue
        try:
            answer({"ok": True, **DEEDS[request["do"]](folder / request["name"], request)})
        except OSError as error:
            free = shutil.disk_usage(folder).free / 1e6
            reason = f"{error.strerror} in {folder}, where {free:.1f} MB are free"
            answer({"ok": False, "kind": "device", "reason": reason})


if __name__ == "__main__":
    main()
