"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

PARTIAL_MARK = ".partial-"
"""In the name of a file that is being written."""


def write_whole(path: Path, content: bytes | Callable[[Path], object], *, durable: bool = False) -> None:
    """Write a file next to its place, then move it there; a kill or a full disk leaves the old one or none.

    Args:
        path: Its place.
        content: Its bytes, or a function that writes to the path it is given, which has the same suffix.
        durable: Whether the file has to survive a power failure: it is on the disk when this returns.
    """
    partial = path.with_name(f"{path.stem}{PARTIAL_MARK}{os.getpid()}-{threading.get_ident()}{path.suffix}")
    try:
        if isinstance(content, bytes):
            partial.write_bytes(content)
        else:
            content(partial)
        if durable:
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):  # such as a folder that cannot be written
            partial.unlink(missing_ok=True)
