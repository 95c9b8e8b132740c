"""A worker process on this machine: JSON lines in and out, a timeout for each, and an error that says how it ended."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import msgspec

from edgeopt.device.base import WorkerRefused
from edgeopt.errors import DeviceError, last_line, signal_name
from edgeopt.records.base import Record
from edgeopt.records.codec import to_json

WORKER_SENTINEL = b"edgeopt-worker "
"""Comes before each answer of ``edgeopt/bench/worker.py``; other lines on stdout are noise from libraries."""

EXIT_SENTINEL = b"edgeopt-exit "
"""A remote shell writes it after the worker, before the exit code: proof that the connection lasted until then."""

EXIT_SECONDS = 10.0
"""How long a worker may take to exit after its stdin was closed."""

_logger = logging.getLogger(__name__)


class WorkerExit(NamedTuple):
    """How a worker process ended without an answer."""

    code: int
    """Exit code of the process on this machine; minus the signal's number if a signal killed it."""
    remote_code: int | None
    """Exit code that a remote shell reported for the worker; None if it reported none."""
    errors: str
    """All of stderr."""


def explain_exit(ended: WorkerExit) -> DeviceError:
    """Return the error for a worker that ended on this machine: exit code or signal, and its last line of stderr."""
    line = last_line(ended.errors)
    quoted = f" Its last line on stderr: {line}" if line else ""
    if ended.code >= 0:
        advice = _advise_on_import(line)
        return DeviceError(f"a worker ended with exit code {ended.code} and no answer.{quoted}{advice}")
    name = signal_name(-ended.code)
    hint = " The system may have run out of memory." if name == "SIGKILL" else ""
    return DeviceError(f"a worker was killed by {name}.{hint}{quoted}")


def _advise_on_import(line: str) -> str:
    """Say what to do if a package does not load: the system's message names a library, but rarely the reason."""
    if not line.startswith(("ImportError", "ModuleNotFoundError")):
        return ""
    return (
        ". A package is missing in that Python environment, or was built for another processor or system. Run there: "
        "`python -m pip install --force-reinstall onnxruntime numpy`."
    )


def explain_remote_exit(uri: str, explain_lost: Callable[[str, str], DeviceError], ended: WorkerExit) -> DeviceError:
    """Distinguish a lost connection from a worker that ended: in the second case the remote shell reports a code.

    Args:
        uri: How the user names the device.
        explain_lost: Makes the error for a connection that broke, from the URI and stderr.
        ended: How the client on this machine ended.
    """
    if ended.remote_code is None:
        return explain_lost(uri, ended.errors)
    code = 128 - ended.remote_code if ended.remote_code > 128 else ended.remote_code
    return DeviceError(f"{uri}: {explain_exit(ended._replace(code=code))}")


class WorkerProcess:
    """A running worker. Use it in a ``with``: leaving the block ends the process.

    Args:
        command: The program and its arguments.
        variables: Environment variables on top of this process's.
        explain: Makes the error to raise from the way the worker ended.
        log_as: The command as the debug log shows it; None for all of it.
    """

    def __init__(
        self,
        command: Sequence[str],
        variables: Mapping[str, str],
        explain: Callable[[WorkerExit], DeviceError] = explain_exit,
        log_as: str | None = None,
    ) -> None:
        self._explain = explain
        self._remote_code: int | None = None
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, **variables},
                start_new_session=True,  # so that Ctrl-C only reaches the parent, which then closes stdin
            )
        except OSError as error:
            self._errors.close()
            raise DeviceError(
                f"cannot start {command[0]}: {error.strerror or error}. Is it a Python program?"
            ) from error
        self._started = time.monotonic()
        _logger.debug("worker %d: started %s", self._process.pid, log_as or shlex.join(command))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(WORKER_SENTINEL):
                self._answers.put(line[len(WORKER_SENTINEL) :])
            elif line.startswith(EXIT_SENTINEL):
                self._remote_code = int(line[len(EXIT_SENTINEL) :])
        self._answers.put(None)

    def ask(self, message: Mapping[str, Any] | Record, timeout_seconds: float) -> dict[str, Any]:
        """Send one line and return the answer's fields; see ``edgeopt.device.base.Worker``."""
        assert self._process.stdin is not None
        pid, summary, begin = self._process.pid, summarize_message(message), time.monotonic()
        if summary:
            _logger.debug("worker %d: asked for %s", pid, summary)
        try:
            self._process.stdin.write(to_json(message) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._explain_missing_answer() from None
        try:
            answer = self._answers.get(timeout=timeout_seconds)
        except queue.Empty:
            raise DeviceError(f"a worker did not answer within {timeout_seconds:.0f} s and was stopped.") from None
        if answer is None:
            raise self._explain_missing_answer()
        seconds = time.monotonic() - begin
        fields: dict[str, Any] = msgspec.json.decode(answer)
        if not fields.pop("ok"):
            _logger.debug(
                "worker %d: refused %s after %.3f s: %s", pid, summary or "a block", seconds, fields["reason"]
            )
            raise WorkerRefused(fields["kind"], fields["reason"])
        if summary:
            _logger.debug("worker %d: answered %s after %.3f s", pid, summary, seconds)
        return fields

    def _explain_missing_answer(self) -> DeviceError:
        try:
            code = self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return DeviceError("a worker closed its output without an answer.")
        self._errors.seek(0)
        return self._explain(WorkerExit(code, self._remote_code, self._errors.read().decode(errors="replace")))

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._process.poll() is None:
            _logger.debug("worker %d: killing it after %s", self._process.pid, kind.__name__)
            self._process.kill()
        self.end()

    def end(self) -> None:
        """Close stdin, which ends the process; one that does not end is killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died before it read the last line; the reason is already known
            self._process.stdin.close()
        try:
            self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            _logger.debug("worker %d: killing it, %.0f s after its stdin closed", self._process.pid, EXIT_SECONDS)
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._log_end()
        self._process.stdout.close()
        self._errors.close()

    def _log_end(self) -> None:
        code, seconds = self._process.returncode, time.monotonic() - self._started
        how = f"exit code {code}" if code >= 0 else signal_name(-code)
        remotely = "" if self._remote_code is None else f", exit code {self._remote_code} on the device"
        _logger.debug("worker %d: ended after %.3f s with %s%s", self._process.pid, seconds, how, remotely)


def summarize_message(message: Mapping[str, Any] | Record) -> str:
    """Return a message's mode and file name, for the log; never its data, which may be a file's content.

    Empty for a block of runs: a comparison has thousands of them.
    """
    fields = msgspec.structs.asdict(message) if isinstance(message, Record) else message
    mode = fields.get("mode") or fields.get("do") or ""
    name = Path(fields.get("model") or fields.get("name") or "").name
    return f"{mode} {name}".rstrip()
