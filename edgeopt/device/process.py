"""A worker process of this machine: lines of JSON in and out, a timeout on each, and a reason when it dies."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import msgspec

from edgeopt.device.base import WorkerRefused
from edgeopt.errors import DeviceError
from edgeopt.records.base import Record
from edgeopt.records.codec import to_json

WORKER_SENTINEL = b"edgeopt-worker "
"""What ``edgeopt/bench/worker.py`` puts before each answer; other lines on stdout are noise of libraries."""

EXITED = b"edgeopt-exit "
"""What a remote shell writes after the worker, before its exit code: proof that the connection lived until then."""

EXIT_SECONDS = 10.0
"""How long a worker may take to leave after its stdin was closed."""


class Ending(NamedTuple):
    """How a worker process ended without an answer."""

    code: int
    """Exit code of the process on this machine; a signal's number, negated, where one killed it."""
    exited: int | None
    """Exit code that a remote shell reported for the worker; None where no such line came."""
    errors: str
    """All of stderr."""


def last_line(text: str) -> str:
    """Return the last line that is not blank; empty where there is none."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def explain_ending(ending: Ending) -> DeviceError:
    """Return the error for a worker that ended on this machine: its exit code or signal, and its last words."""
    words = last_line(ending.errors)
    said = f" Its last words: {words}" if words else ""
    code = ending.code
    if code >= 0:
        return DeviceError(f"a worker ended with exit code {code} and no answer.{said}{_import_advice(words)}")
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = " The system may have been out of memory." if name == "SIGKILL" else ""
    return DeviceError(f"a worker was killed by {name}.{hint}{said}")


def _import_advice(words: str) -> str:
    """Say what to do where a package does not load: the system's own words name a library, hardly the reason."""
    if not words.startswith(("ImportError", "ModuleNotFoundError")):
        return ""
    return (
        ". A package is missing in that Python environment, or built for another processor or system: there, "
        "`python -m pip install --force-reinstall onnxruntime numpy`."
    )


def explain_remote(uri: str, lost: Callable[[str, str], DeviceError], ending: Ending) -> DeviceError:
    """Tell a lost connection from a worker that ended: after the latter the shell over there still speaks.

    Args:
        uri: How the user names the device.
        lost: From the URI and stderr to the error for a connection that broke.
        ending: How the client on this machine ended.
    """
    if ending.exited is None:
        return lost(uri, ending.errors)
    code = 128 - ending.exited if ending.exited > 128 else ending.exited
    return DeviceError(f"{uri}: {explain_ending(ending._replace(code=code))}")


class WorkerProcess:
    """A running worker. Use it in a ``with``: leaving ends the process.

    Args:
        command: The program and its arguments.
        variables: Environment variables on top of this process's.
        explain: From the way it ended to the error to raise.
    """

    def __init__(
        self,
        command: Sequence[str],
        variables: Mapping[str, str],
        explain: Callable[[Ending], DeviceError] = explain_ending,
    ) -> None:
        self._explain = explain
        self._exited: int | None = None
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, **variables},
                start_new_session=True,  # so that Ctrl-C reaches the parent alone, which then closes stdin
            )
        except OSError as error:
            self._errors.close()
            raise DeviceError(
                f"cannot start {command[0]}: {error.strerror or error}. Is it a Python program?"
            ) from error
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(WORKER_SENTINEL):
                self._answers.put(line[len(WORKER_SENTINEL) :])
            elif line.startswith(EXITED):
                self._exited = int(line[len(EXITED) :])
        self._answers.put(None)

    def ask(self, message: Mapping[str, Any] | Record, timeout_seconds: float) -> dict[str, Any]:
        """Send one line and return the answer's fields; see ``edgeopt.device.base.Worker``."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(to_json(message) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        try:
            answer = self._answers.get(timeout=timeout_seconds)
        except queue.Empty:
            raise DeviceError(f"a worker did not answer within {timeout_seconds:.0f} s and was ended.") from None
        if answer is None:
            raise self._death()
        fields: dict[str, Any] = msgspec.json.decode(answer)
        if not fields.pop("ok"):
            raise WorkerRefused(fields["kind"], fields["reason"])
        return fields

    def _death(self) -> DeviceError:
        try:
            code = self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return DeviceError("a worker closed its output without an answer.")
        self._errors.seek(0)
        return self._explain(Ending(code, self._exited, self._errors.read().decode(errors="replace")))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._leave()

    def _leave(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died before it read the last line; the reason is known already
            self._process.stdin.close()
        try:
            self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        self._errors.close()
