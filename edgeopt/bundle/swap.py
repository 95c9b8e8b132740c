"""Replace a folder with a finished new one, so that a kill at any moment leaves one of the two, complete.

On Linux the two folders are exchanged in one system call (``renameat2`` with ``RENAME_EXCHANGE``). If the system does
not support that, the old folder is moved aside first; a kill between the two moves leaves it under a name that
``recover`` finds.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def building_path(out: Path) -> Path:
    """Return the sibling in which the new folder is written."""
    return out.with_name(f".{out.name}.building")


def former_path(out: Path) -> Path:
    """Return the sibling to which the old folder is moved if the two cannot be exchanged."""
    return out.with_name(f".{out.name}.former")


def recover(out: Path) -> None:
    """Clean up after a killed swap: restore the old folder if ``out`` is missing, and remove leftovers."""
    former = former_path(out)
    if former.is_dir() and not out.exists():
        former.rename(out)
    for leftover in (former, building_path(out)):
        if leftover.is_dir():
            shutil.rmtree(leftover)


def swap_in(new: Path, out: Path) -> None:
    """Rename ``new`` to ``out`` durably, and remove the folder that was there before.

    Args:
        new: A finished folder next to ``out``.
        out: The new name; it may not exist yet, or be a folder to replace.
    """
    for path in (*new.rglob("*"), new):
        _flush(path)
    if not out.exists():
        new.rename(out)
    elif not any(out.iterdir()):
        new.replace(out)  # POSIX: a rename over an empty folder
    elif _exchange(new, out):
        shutil.rmtree(new)
    else:
        former = former_path(out)
        out.rename(former)
        new.rename(out)
        shutil.rmtree(former)
    _flush(out.parent)


def _exchange(new: Path, out: Path) -> bool:
    """Exchange two folders in one step; False if the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    arguments = (_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(out), _RENAME_EXCHANGE)
    if renameat2(*arguments) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(out))


def _flush(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk; Windows cannot open folders, so they are skipped there."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
