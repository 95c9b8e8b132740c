"""The one boundary where exceptions of user code, exporters and runtimes become errors with a stage and a reason."""

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

P = ParamSpec("P")
T = TypeVar("T")


def run_step(stage: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``function``; what it raises without meaning to becomes a ``StepError`` that names ``stage``.

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


def run_user_code(spec: str, what: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a part of the user's task; what it raises becomes a ``TaskError`` that names it.

    Raises:
        TaskError: names the task, the part and the cause.
    """
    try:
        return run_step(what, function, *args, **kwargs)
    except StepError as error:
        last = (error.trace or "").strip().splitlines()
        places = [line.strip() for line in last if line.strip().startswith("File ")]
        where = f" ({places[-1]})" if places else ""
        raise TaskError(f"task '{spec}': {what} failed with {error.reason}{where}.") from error


def as_failed(error: EdgeoptError) -> Failed:
    """Return what a trial becomes when a step fails; the build goes on.

    Raises:
        WorkspaceError, DeviceLostError: with a full disk, or without workspace or device, nothing can go on.
    """
    if isinstance(error, WorkspaceError | DeviceLostError):
        raise error
    if is_disk_full(error):
        raise DiskFullError(error) from error
    if isinstance(error, StepError):
        return Failed(stage=error.stage, reason=error.reason, trace=error.trace)
    return Failed(stage="device" if isinstance(error, DeviceError) else "task", reason=str(error), trace=None)
