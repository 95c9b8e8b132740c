"""Put a finished folder in the place of the old one, so that a kill at any moment leaves one of the two, whole.

On Linux the two folders change places in one system call (``renameat2`` with ``RENAME_EXCHANGE``). Where that does not
exist, the old folder is moved aside first; a kill between the two moves leaves it under a name that ``recover`` knows.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path

AT_FDCWD = -100
RENAME_EXCHANGE = 2


def building_name(out: Path) -> Path:
    """Return the sibling in which a new folder is made."""
    return out.with_name(f".{out.name}.building")


def former_name(out: Path) -> Path:
    """Return the sibling to which the old folder is moved where the two cannot be exchanged."""
    return out.with_name(f".{out.name}.former")


def recover(out: Path) -> None:
    """Finish what a killed swap left behind: bring the old folder back where ``out`` is missing, remove remains."""
    former = former_name(out)
    if former.is_dir() and not out.exists():
        former.rename(out)
    for remains in (former, building_name(out)):
        if remains.is_dir():
            shutil.rmtree(remains)


def swap_in(new: Path, out: Path) -> None:
    """Make ``new`` be ``out``, durably; what was there before is removed.

    Args:
        new: A finished folder beside ``out``.
        out: Its place; may not exist, or be a folder that may go.
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
        former = former_name(out)
        out.rename(former)
        new.rename(out)
        shutil.rmtree(former)
    _flush(out.parent)


def _exchange(new: Path, out: Path) -> bool:
    """Exchange two folders in one step; False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    arguments = (AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(out), RENAME_EXCHANGE)
    if renameat2(*arguments) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(out))


def _flush(path: Path) -> None:
    """Bring a file or a folder's names to the disk; Windows cannot open folders and does without."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
