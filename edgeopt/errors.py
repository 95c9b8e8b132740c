"""Every error that edgeopt raises on purpose, each with the exit code of the command that meets it.

    EdgeoptError                  exit code 1
    ├── InputError                2  what the user gave is wrong: an option, a file, a name
    │   ├── ConfigError           2  a profile, an ``edgeopt.toml``, a limit
    │   ├── TaskError             2  the user's task: missing attribute, wrong shapes, a score that is not finite
    │   ├── DataError             2  a data file is missing or corrupted
    │   └── WorkspaceError        2  a folder that cannot be written, a lock that is held, a ledger that is broken
    │       └── DiskFullError     2  the disk is full
    ├── DeviceError               1  a worker died on the device, or the device lacks something that a worker needs
    │   ├── DeviceLostError       1  the connection broke and did not come back
    │   ├── CannotProfileError    1  this kind of device has no profile of nodes
    │   └── ProviderError         2  an execution provider that was asked for is not available
    ├── StepError                 1  one step of a recipe failed; ``stage`` names it
    │   ├── CrashError            1  a library failed, or a process died: it says nothing about the network
    │   ├── ParityError           1  outputs differ from the network's own
    │   └── DivergedError         1  a training or a file gave values that are not finite
    ├── StoppedError              1  the build is stopping, so other work of it stops too
    └── BudgetMissedError         3  nothing keeps the limits, or a check found one that is missed

They become messages in ``edgeopt.cli`` and ``Failed`` trials in ``edgeopt.pipeline``, nowhere else.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterable


class EdgeoptError(Exception):
    """Base of all errors. The text is one paragraph: what is wrong, where, what was found, what to do next."""

    exit_code = 1


class InputError(EdgeoptError):
    """Something that the user gave is wrong."""

    exit_code = 2


class ConfigError(InputError):
    """A profile, an ``edgeopt.toml`` or a limit is wrong."""


class TaskError(InputError):
    """The user's task is missing or incomplete, or returns values that cannot be used."""


class DataError(InputError):
    """A data file is missing or corrupted."""


class WorkspaceError(InputError):
    """A folder cannot be written, a lock is held, or a ledger is broken."""


class DiskFullError(WorkspaceError):
    """The disk is full; ``cause`` is the error that reported it."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(
            f"the disk is full ({str(cause).strip()}). Finished work is kept: free some space and run the same "
            "command again, or move the workspace to a larger disk and name it with --workspace DIR."
        )


class DeviceError(EdgeoptError):
    """A worker died on the device, or the device lacks what a worker needs."""


class DeviceLostError(DeviceError):
    """The connection broke and did not come back, or the device's disk is full. The same command resumes later."""


class CannotProfileError(DeviceError):
    """This kind of device has no profile of nodes; callers go on without one."""


class ProviderError(DeviceError):
    """An execution provider that was asked for is not available."""

    exit_code = 2


class StepError(EdgeoptError):
    """One step of a recipe failed.

    Args:
        stage: The step's name, such as ``export`` or ``quantize``.
        reason: What happened, and what to do about it.
        trace: The traceback of the cause, kept for ``edgeopt show``.
    """

    def __init__(self, stage: str, reason: str, trace: str | None = None) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage = stage
        self.reason = reason
        self.trace = trace


class CrashError(StepError):
    """A library raised an exception that nobody expected, or a process died; tried again, the step may work."""


LOST_RANK = "another process of this training ended"
"""How the reason begins if a process that trains along with others failed only because one of them did."""


class ParityError(StepError):
    """A file's or a module's outputs differ too much from those of the network itself."""


class DivergedError(StepError):
    """A training or a file gave values that are not finite."""


class OutOfTimeError(StepError):
    """A training was not finished, because the time of the build was over; its last whole epoch is kept."""


class StoppedError(EdgeoptError):
    """The build is stopping, because of an interrupt or an error elsewhere; so a thread of it stops too."""


class BudgetMissedError(EdgeoptError):
    """Nothing keeps the limits, or a check found a limit that is missed."""

    exit_code = 3


_DISK_FULL_MESSAGES = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "database or disk is full")
"""The words of the system and of SQLite; child processes and libraries pass them on."""


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an error, or the cause that it quotes, is that this machine's disk is full."""
    if isinstance(error, DeviceLostError):
        return False
    trace = error.trace if isinstance(error, StepError) else None
    return any(message in f"{error} {trace}" for message in _DISK_FULL_MESSAGES)


def last_line(text: str) -> str:
    """Return the last line that is not blank, which of a program's stderr is most often the reason; empty if none."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def signal_name(number: int) -> str:
    """Return the name of the signal that ended a process, or its number: real-time signals have no names."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the known word nearest to ``found``, or an empty string."""
    import difflib  # 2 ms, which `edgeopt --help` must not pay

    close = difflib.get_close_matches(found, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
