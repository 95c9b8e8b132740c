"""The only place where exceptions of user code, exporters and runtimes become errors with a stage and a reason."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import edgeopt
from edgeopt.errors import (
    ConfigError,
    CrashError,
    DeviceError,
    DeviceLostError,
    DiskFullError,
    DivergedError,
    EdgeoptError,
    OutOfTimeError,
    StepError,
    StoppedError,
    TaskError,
    WorkspaceError,
    is_disk_full,
    last_line,
)
from edgeopt.records.trial import Failed, FailureKind

TRACE = "trace"
"""The stage in which the user's ``forward()`` runs to become a graph."""

_P = ParamSpec("_P")
_T = TypeVar("_T")

_LIBRARIES = tuple(
    str(Path(folder)) for folder in {*(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))}
)
_OURS = str(Path(edgeopt.__file__).parent)
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')
_TECHNICAL_WORDS = (
    "can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory", "bad_alloc",
    "could not create a primitive", "could not execute a primitive", "could not create a memory",
)  # fmt: skip
"""Of PyTorch's allocators, the system, and oneDNN."""
_DEAD_LOADER = "DataLoader worker (pid"
_MAX_REASON_CHARACTERS = 600


def run_step(stage: str, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call ``function``; an exception that is not an ``EdgeoptError`` becomes a ``CrashError`` that names ``stage``.

    Raises:
        CrashError: with the traceback of the cause in ``trace``.
    """
    try:
        return function(*args, **kwargs)
    except EdgeoptError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip()
        raise CrashError(stage, reason, traceback.format_exc()) from error


def run_user_code(spec: str, part: str, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a part of the user's task; an exception becomes a ``TaskError`` that names the part, the file and the line.

    Raises:
        TaskError: names the task, the part and the cause.
        CrashError: the user's code is not to blame: memory ran out, or a process of a loader was killed.
    """
    try:
        return run_step(part, function, *args, **kwargs)
    except SystemExit as error:
        raise TaskError(
            f"task '{spec}': {part} called sys.exit({error.code!r}). Raise an exception instead."
        ) from error
    except CrashError as error:
        if is_technical(error.__cause__):
            reason = f"{_last_words(error)}. Use smaller batches, or fewer workers in a loader."
            raise CrashError(part, reason, error.trace) from error.__cause__
        raise explain_user_error(spec, f"{part} failed with", error) from error


def explain_user_error(spec: str, what: str, error: StepError) -> TaskError:
    """Return the error for an exception that a user's code caused: its last words, and the user's line."""
    trace = error.trace or ""
    location = find_user_line(trace)
    return TaskError(
        f"task '{spec}': {what} {_last_words(error)}{f' ({location})' if location else ''}. Correct it, then run the "
        "same command again."
    )


def is_technical(cause: BaseException | None) -> bool:
    """Tell whether an exception in user code says nothing about that code: no memory left, or a loader was killed."""
    if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError":
        return True
    message = str(cause)
    return isinstance(cause, RuntimeError | OSError) and (
        message.startswith(_DEAD_LOADER) or any(words in message for words in _TECHNICAL_WORDS)
    )


def tell_apart(spec: str, error: EdgeoptError) -> EdgeoptError:
    """Return a ``TaskError`` if user code made a step fail that was no call of it: a trace, or a backward pass."""
    if not isinstance(error, StepError):
        return error
    if error.stage == TRACE:
        return explain_user_error(spec, "the model cannot be traced:", error)
    if isinstance(error, CrashError) and not is_technical(error.__cause__) and find_user_line(error.trace or ""):
        return explain_user_error(spec, f"{error.stage} failed in the user's code with", error)
    return error


def find_user_line(trace: str) -> str | None:
    """Return ``file my_task.py, line 12, in loss`` for the innermost frame of user code in a traceback's text.

    User code is neither in edgeopt nor among the installed packages. The text may quote the traceback of another
    process, such as that of a loader's worker, which then holds the innermost frame.
    """
    frames = [match for match in _FRAME.finditer(trace) if not match["file"].startswith(("<", _OURS))]
    users = [match for match in frames if not _is_installed(match["file"])]
    if not users:
        return None
    file, line, function = users[-1].groups()
    path = Path(file)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"file {shown}, line {line}, in {function}"


def _is_installed(file: str) -> bool:
    return file.startswith(_LIBRARIES) or "/site-packages/" in file or "/dist-packages/" in file


def _last_words(error: StepError) -> str:
    """Return type and message of an exception on one line; of a quoted traceback the last line, which is its cause."""
    reason = error.reason
    if "Traceback (most recent call last)" in reason:
        reason = last_line(reason)
    words = " ".join(reason.split()).removesuffix(".")
    return words if len(words) <= _MAX_REASON_CHARACTERS else f"{words[:_MAX_REASON_CHARACTERS]}..."


def as_failed(error: EdgeoptError) -> Failed:
    """Return the outcome of a trial whose step failed with ``error``; the build goes on.

    Raises:
        TaskError, ConfigError: the user's code or settings are wrong, for every candidate.
        WorkspaceError, DeviceLostError: the build can't go on without its workspace, disk space or device.
        StoppedError: the build is stopping.
    """
    if isinstance(error, TaskError | ConfigError | WorkspaceError | DeviceLostError | StoppedError):
        raise error
    if is_disk_full(error):
        raise DiskFullError(error) from error
    if isinstance(error, StepError):
        return Failed(stage=error.stage, reason=error.reason, trace=error.trace, kind=kind_of(error))
    return Failed(
        stage="device" if isinstance(error, DeviceError) else "task", reason=str(error), trace=None, kind=kind_of(error)
    )


def kind_of(error: EdgeoptError) -> FailureKind:
    """Return what the failure of a step says about its network."""
    if isinstance(error, DivergedError):
        return "diverged"
    if isinstance(error, OutOfTimeError):
        return "unfinished"
    return "crashed" if isinstance(error, CrashError | DeviceError) else "refused"
