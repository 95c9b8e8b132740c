"""How processes of a build are tied together: no child waits for a lock of its parent, and none outlives it.

User code may fork: a ``DataLoader`` with workers, a ``multiprocessing.Pool``. A forked child has copies of every lock
and every open pipe of its parent, but none of the threads that would release the lock or close the pipe.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import sys
import threading
from typing import Any, TextIO

_READ_BYTES = 65536
_PR_SET_PDEATHSIG = 1
"""Of Linux's ``prctl``: the signal that a process gets when the thread that forked it ends."""

_kept: set[int] = set()
_installed = False
_forking = threading.local()
"""Of the thread that forks: ``parent``, the process's id, and ``by_main_thread``."""


def keep_from_children(*descriptors: int) -> None:
    """Close descriptors in every child that is forked from now on: a pipe ends only when all copies are closed."""
    _kept.update(descriptors)
    prepare_for_forks()


def prepare_for_forks() -> None:
    """Make children that Python forks from now on independent of this process's threads; they end when it ends.

    A child gets streams of its own for the descriptors 1 and 2, because another thread of this process may hold the
    lock of ``sys.stderr`` at the moment of the fork. On Linux, a child that the main thread forks is killed when this
    process ends in whichever way. A second call does nothing.
    """
    global _installed
    if _installed or not hasattr(os, "register_at_fork"):
        return
    _installed = True
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    os.register_at_fork(before=_note_parent, after_in_child=lambda: _become_independent(libc))


def _note_parent() -> None:
    _forking.parent = os.getpid()
    _forking.by_main_thread = threading.current_thread() is threading.main_thread()


def _become_independent(libc: Any) -> None:
    for descriptor in _kept:
        os.close(descriptor)
    _kept.clear()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if getattr(signal.getsignal(number), "__module__", "").startswith("edgeopt"):
            signal.signal(number, signal.SIG_DFL)  # a child that is told to end has nothing to tidy up
    sys.stdout = _stream(1)
    sys.stderr = _stream(2)
    if libc is not None and _forking.by_main_thread:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != _forking.parent:
            os._exit(1)


def _stream(descriptor: int) -> TextIO:
    return open(descriptor, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)


def take_stdin() -> int:
    """Return a descriptor of this process's stdin that children do not have; ``sys.stdin`` is empty from now on."""
    taken, empty = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    keep_from_children(taken)
    return taken


def queue_lines(descriptor: int, lines: queue.Queue[bytes]) -> None:
    """Put the lines that arrive on a descriptor into a queue; when it ends, end this process and its children.

    It reads without a Python stream: a child that is forked meanwhile would have a copy of the stream's lock, held for
    ever.
    """
    rest = b""
    while block := os.read(descriptor, _READ_BYTES):
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            lines.put(line)
    kill_own_group()


def kill_own_group() -> None:
    """End this process at once, with every process of its group if it leads one."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def kill_group(leader: int) -> None:
    """Kill what is left of the process group of a process that has ended: children of user code."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
