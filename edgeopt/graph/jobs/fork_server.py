"""Forks a process for each graph job: ``python -m edgeopt.graph.jobs.fork_server``, on systems where that is safe.

Importing ONNX, ONNX Runtime and onnxsim takes most of the time of a small job. This process does it once, and opens no
session, so it can be forked. A line on stdin in JSON (the number of a job, its folder, the environment) starts one.
Lines on stdout tell which process does a job, and how it ended. When stdin ends, the builder is gone: all processes
end.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import NoReturn

from edgeopt.graph.jobs.worker import block_torch, do_job

_LIBRARIES = (
    "onnxsim",
    "edgeopt.graph.steps",
    "edgeopt.graph.quantization.fake_quant",
    "edgeopt.graph.quantization.float_prefix",
    "edgeopt.graph.quantization.sensitivity",
    "edgeopt.graph.quantization.static",
)
_MAX_READ_BYTES = 1 << 16


class _Server:
    """The jobs at work, by process.

    Args:
        answers: Descriptor for the answers.
    """

    def __init__(self, answers: int) -> None:
        self.answers = answers
        self.jobs: dict[int, int] = {}
        self.watched, self.kept_open = os.pipe()
        self.woken, waking = os.pipe()
        for descriptor in (self.woken, waking):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)

    def run(self) -> None:
        """Start jobs and report on them until stdin ends."""
        rest = b""
        while True:
            ready, _, _ = select.select([0, self.woken], [], [])
            if self.woken in ready:
                os.read(self.woken, _MAX_READ_BYTES)
                self.report_ended()
            if 0 in ready:
                read = os.read(0, _MAX_READ_BYTES)
                if not read:
                    break
                *lines, rest = (rest + read).split(b"\n")
                for line in lines:
                    self.start(**json.loads(line))
        for process in self.jobs:
            os.kill(process, signal.SIGKILL)

    def start(self, number: int, folder: str, environment: dict[str, str]) -> None:
        """Fork a process for a job."""
        process = os.fork()
        if process == 0:
            os.environ.clear()
            os.environ.update(environment)
            self.work(Path(folder))
        self.jobs[process] = number
        self.answer(number=number, process=process)

    def work(self, folder: Path) -> NoReturn:
        """Do a job in the new process, and end it; an error ends it as it ends any program."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor in (self.answers, self.kept_open):
            os.close(descriptor)
        block_torch()
        do_job(folder, self.watched)
        sys.exit()

    def report_ended(self) -> None:
        """Report the processes that have ended."""
        while self.jobs:
            process, status = os.waitpid(-1, os.WNOHANG)
            if process == 0:
                return
            self.answer(number=self.jobs.pop(process), exit_code=os.waitstatus_to_exitcode(status))

    def answer(self, **values: int) -> None:
        """Write a line."""
        os.write(self.answers, json.dumps(values).encode() + b"\n")


def main() -> None:
    """Import what jobs need, and serve."""
    answers = os.dup(1)
    os.dup2(2, 1)
    block_torch()
    for name in _LIBRARIES:
        importlib.import_module(name)
    _Server(answers).run()


if __name__ == "__main__":
    main()
