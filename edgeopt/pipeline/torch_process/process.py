"""One torch process, from its parent's side: jobs go in as JSON lines, answers come back; it may die."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO

import msgspec

from edgeopt.errors import CrashError, EdgeoptError, StoppedError, last_line, signal_name
from edgeopt.pipeline.processes import kill_group
from edgeopt.pipeline.torch_process import protocol
from edgeopt.records.codec import to_json

_logger = logging.getLogger(__name__)

WORKER_MODULE = "edgeopt.pipeline.torch_process.worker"
_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    # glibc keeps freed memory: otherwise each step returns activations to the system and spends up to a third of its
    # time having the same pages zeroed again
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}


class TorchProcess:
    """One process that holds PyTorch, or that passes jobs on to one elsewhere.

    Args:
        task: What it is told on its command line: the task.
        number: Among its kind, from 0.
        module: What runs.
    """

    def __init__(self, task: str, number: int = 0, module: str = WORKER_MODULE) -> None:
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, task],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=os.environ | _VARIABLES | {protocol.WORKER_VARIABLE: str(number)},
            start_new_session=True,  # so that Ctrl-C reaches only the parent, which then closes stdin
        )
        self.decoder = msgspec.json.Decoder(protocol.TorchAnswer)
        self.is_closing = False
        self.printed_bytes = 0
        """The size of ``log`` before the present job."""
        _logger.debug("torch process %d started for task %s", self.process.pid, task)

    def do(
        self, job: protocol.TorchJob | protocol.BridgeJob, progress: Callable[[protocol.EpochProgress], None]
    ) -> protocol.TorchAnswer:
        """Run one job to its end.

        Raises:
            CrashError: the process died; the end of its output is in ``trace``.
            StoppedError: the process was closed meanwhile.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        begin, name = time.monotonic(), type(job).__name__
        line = to_json(job) + b"\n"
        _logger.debug("torch process %d: %s %s", self.process.pid, name, job)
        try:
            self.printed_bytes = os.fstat(self.log.fileno()).st_size
            self.process.stdin.write(line)
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):  # ValueError: another thread has closed it
            raise self.died() from None
        while line := self.process.stdout.readline():
            answer: protocol.TorchAnswer = self.decoder.decode(line)
            if not isinstance(answer, protocol.EpochProgress):
                seconds = time.monotonic() - begin
                _logger.debug("torch process %d: %s took %.1f s: %s", self.process.pid, name, seconds, answer)
                return answer
            progress(answer)
        raise self.died()

    def died(self) -> EdgeoptError:
        """Return the error for a process that ended unexpectedly: how, and its last line on stderr."""
        code = self.process.wait()
        kill_group(self.process.pid)
        if self.is_closing:
            return StoppedError("the torch process has been stopped.")
        trace = self.stderr(self.printed_bytes)[-4000:]
        _logger.debug("torch process %d ended with code %d: %s", self.process.pid, code, trace)
        how = f"ended with exit code {code}" if code >= 0 else f"was killed by {signal_name(-code)}"
        advice = " The system was probably out of memory: try --workers 1." if code == -signal.SIGKILL else ""
        last = last_line(trace)
        quoted = f' Its last line on stderr: "{last}".' if last else ""
        return CrashError("train", f"the training process {how}.{advice}{quoted}", trace)

    def stderr(self, begin: int = 0) -> str:
        """Return what the process and the user's code have printed, from a byte on."""
        self.log.seek(begin)
        return self.log.read().decode(errors="replace")

    def close(self) -> None:
        """End the process by closing its stdin; a second call does nothing."""
        if self.is_closing:
            return
        self.is_closing = True
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        kill_group(self.process.pid)
        self.process.stdout.close()
        for line in self.stderr().splitlines():
            _logger.debug("torch process %d printed: %s", self.process.pid, line)
        self.log.close()
