"""Runs graph jobs in processes, and kills them: forks of one that has imported everything, or else new ones.

Forking is safe on Linux. On other systems libraries may have started threads of their own while they were imported.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

from edgeopt.errors import StoppedError
from edgeopt.graph.jobs.messages import ANSWER_FILE, JOB_FILE, PRINTED_FILE

_VARIABLES = {"OPENBLAS_NUM_THREADS": "1"}
"""NumPy's threads wait for each other: next to other work, products of small matrices took ten times as long."""
CAN_FORK = sys.platform == "linux"
_KILL_SECONDS = 10.0
"""After which a killed process has ended."""
_LOST = -int(getattr(signal, "SIGKILL", signal.SIGTERM))
"""The exit code of a job whose process went without a report."""


class FinishedJob(NamedTuple):
    """What a job's process left."""

    exit_code: int
    """Negative: the number of the signal that ended it."""
    answer: bytes
    """Empty if there is none."""
    printed: str


class _Job(ABC):
    """A job at work."""

    is_stopped = False
    """Whether ``kill_graph_processes`` has ended it."""

    @abstractmethod
    def wait(self, seconds: float) -> int | None:
        """Return the exit code; None if it has not ended within the time."""

    @abstractmethod
    def kill(self) -> None:
        """Kill its process, if that has not ended."""

    @abstractmethod
    def close(self) -> None:
        """Let go of it, once it has ended."""


_running: set[_Job] = set()
"""Jobs at work, each awaited by a thread."""


def run_job(job: bytes, max_seconds: float) -> FinishedJob:
    """Run a job to its end.

    Args:
        job: A ``GraphJob`` in JSON.
        max_seconds: How long it may take.

    Raises:
        TimeoutError: it took longer, and was killed; the error has what it printed.
        StoppedError: ``kill_graph_processes`` was called.
    """
    with tempfile.TemporaryDirectory(prefix="edgeopt-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / JOB_FILE).write_bytes(job)
        running = _get_server().start(folder) if CAN_FORK else _NewProcess(folder)
        exit_code = _run_to_end(running, max_seconds)
        if isinstance(running, _Fork) and exit_code == _LOST and running.process is None:
            exit_code = _run_to_end(_NewProcess(folder), max_seconds)  # the server does not run here; this tells why
        printed = _read(folder / PRINTED_FILE).decode(errors="replace")
        if exit_code is None:
            raise TimeoutError(printed)
        return FinishedJob(exit_code, _read(folder / ANSWER_FILE), printed)


def _run_to_end(job: _Job, max_seconds: float) -> int | None:
    """Return a job's exit code; None if it took longer, and was killed."""
    _running.add(job)
    try:
        exit_code = job.wait(max_seconds)
    finally:
        job.kill()
        job.wait(_KILL_SECONDS)
        job.close()
        _running.discard(job)
    if job.is_stopped:
        raise StoppedError("a graph step was stopped.")
    return exit_code


def kill_graph_processes() -> None:
    """Kill the processes that other threads are waiting for, because their results are no longer wanted."""
    for job in tuple(_running):
        job.is_stopped = True
        job.kill()


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


class _NewProcess(_Job):
    """A job in a new process, which ends when this one does: it watches a pipe, whose other end is open only here."""

    def __init__(self, folder: Path) -> None:
        self.watched, self.kept_open = os.pipe()
        command = [sys.executable, "-m", "edgeopt.graph.jobs.worker", str(folder), str(self.watched)]
        self.process = subprocess.Popen(
            command,
            env=os.environ | _VARIABLES,
            pass_fds=(self.watched,),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # so that Ctrl-C reaches only the parent
        )

    def wait(self, seconds: float) -> int | None:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        self.process.kill()

    def close(self) -> None:
        os.close(self.watched)
        os.close(self.kept_open)


class _Fork(_Job):
    """A job in a fork of the server."""

    def __init__(self) -> None:
        self.has_ended = threading.Event()
        self.lock = threading.Lock()
        self.process: int | None = None
        self.exit_code: int | None = None
        self.is_unwanted = False

    def wait(self, seconds: float) -> int | None:
        return self.exit_code if self.has_ended.wait(seconds) else None

    def kill(self) -> None:
        with self.lock:
            self.is_unwanted = True
            if self.process is not None and not self.has_ended.is_set():
                _kill(self.process)

    def close(self) -> None:
        """Do nothing: the server lets go of it."""

    def begin(self, process: int) -> None:
        """Take note of its process."""
        with self.lock:
            self.process = process
            if self.is_unwanted:
                _kill(process)

    def end(self, exit_code: int) -> None:
        """Take note of its end."""
        with self.lock:
            self.exit_code = exit_code
            self.has_ended.set()


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended, and the report is on its way
        os.kill(process, signal.SIGKILL)


class _ForkServer:
    """The process that forks one for each job; a thread reads what it reports."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "edgeopt.graph.jobs.fork_server"]
        self.process = subprocess.Popen(
            command,
            env=os.environ | _VARIABLES,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.jobs: dict[int, _Fork] = {}
        self.numbers = itertools.count()
        self.lock = threading.Lock()
        self.is_lost = False
        self.reader = threading.Thread(target=self._read_reports, daemon=True)
        self.reader.start()
        atexit.register(self.close)

    def start(self, folder: Path) -> _Fork:
        """Start a job."""
        job, number = _Fork(), next(self.numbers)
        request = {"number": number, "folder": str(folder), "environment": dict(os.environ)}
        assert self.process.stdin is not None
        with self.lock:
            self.jobs[number] = job
            try:
                self.process.stdin.write(json.dumps(request).encode() + b"\n")
                self.process.stdin.flush()
            except OSError:  # it was killed just now
                self.is_lost = True
            if self.is_lost:
                job.end(_LOST)
        return job

    def _read_reports(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            report = json.loads(line)
            if "process" in report:
                self.jobs[report["number"]].begin(report["process"])
            else:
                self.jobs.pop(report["number"]).end(report["exit_code"])
        with self.lock:
            self.is_lost = True
            for job in self.jobs.values():
                job.end(_LOST)

    def close(self) -> None:
        """End it, and the jobs that are left."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.lock:
            self.is_lost = True
            with contextlib.suppress(OSError):  # it is gone already
                self.process.stdin.close()
        try:
            self.process.wait()
        except KeyboardInterrupt:  # a second Ctrl-C, while it ends
            self.process.kill()
            self.process.wait()
        self.reader.join()
        self.process.stdout.close()


_server: _ForkServer | None = None
_server_lock = threading.Lock()


def _get_server() -> _ForkServer:
    """Return the server, started now if there is none, or the last one is gone."""
    global _server
    with _server_lock:
        if _server is None or _server.is_lost:
            _server = _ForkServer()
        return _server
