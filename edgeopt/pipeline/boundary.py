"""The only place where exceptions of user code, exporters and runtimes become errors with a stage and a reason."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from edgeopt.errors import (
    DeviceError,
    DeviceLostError,
    DiskFullError,
    EdgeoptError,
    StepError,
    TaskError,
    WorkspaceError,
    is_disk_full,
)
from edgeopt.records.trial import Failed

_P = ParamSpec("_P")
_T = TypeVar("_T")


def run_step(stage: str, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call ``function``; an exception that is not an ``EdgeoptError`` becomes a ``StepError`` that names ``stage``.

    Raises:
        StepError: with the traceback of the cause in ``trace``.
    """
    try:
        return function(*args, **kwargs)
    except EdgeoptError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip()
        raise StepError(stage, reason, traceback.format_exc()) from error


def run_user_code(spec: str, part: str, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a part of the user's task; an exception becomes a ``TaskError`` that names the part.

    Raises:
        TaskError: names the task, the part and the cause.
    """
    try:
        return run_step(part, function, *args, **kwargs)
    except StepError as error:
        lines = (error.trace or "").strip().splitlines()
        locations = [line.strip() for line in lines if line.strip().startswith("File ")]
        location = f" ({locations[-1]})" if locations else ""
        raise TaskError(f"task '{spec}': {part} failed with {error.reason}{location}.") from error


def as_failed(error: EdgeoptError) -> Failed:
    """Return the outcome of a trial whose step failed with ``error``; the build goes on.

    Raises:
        WorkspaceError, DeviceLostError: the build can't go on without its workspace, disk space or device.
    """
    if isinstance(error, WorkspaceError | DeviceLostError):
        raise error
    if is_disk_full(error):
        raise DiskFullError(error) from error
    if isinstance(error, StepError):
        return Failed(stage=error.stage, reason=error.reason, trace=error.trace)
    return Failed(stage="device" if isinstance(error, DeviceError) else "task", reason=str(error), trace=None)
