"""The parent's side of the torch workers: as many processes as candidates are made side by side, one thread each."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import IO, Any, TypeVar

import msgspec

from edgeopt.errors import DivergedError, StepError, TaskError
from edgeopt.pipeline.torch_process import protocol
from edgeopt.records.codec import to_json

T = TypeVar(
    "T",
    protocol.TableDone,
    protocol.ProfileDone,
    protocol.LowRankDone,
    protocol.CurveDone,
    protocol.TrainDone,
    protocol.ExportDone,
    protocol.ProbeDone,
    protocol.SpeedDone,
)

TRIAL_SECONDS = 0.5
WORTH_A_WORKER = 1.1
"""One more training side by side has to raise the steps of all of them together by this factor."""


def available_cores() -> int:
    """Return how many cores this process may use: its affinity, and its control group's quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:  # noqa: PTH123 - not a file of ours
            quota, period = file.read().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    # glibc keeps freed memory: else each step gives activations back to the system and takes up to a third of the time
    # to have the same pages zeroed again
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}


class TorchProcess:
    """One worker process."""

    def __init__(self, task: str) -> None:
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgeopt.pipeline.torch_process.worker", task],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=os.environ | _VARIABLES,
            start_new_session=True,  # so that Ctrl-C reaches the parent alone, which then closes stdin
        )
        self.decoder = msgspec.json.Decoder(protocol.TorchAnswer)

    def do(self, job: protocol.TorchJob, progress: Callable[[protocol.EpochProgress], None]) -> protocol.TorchAnswer:
        """Run one job to its end.

        Raises:
            StepError: the process died; the end of what it printed is in ``trace``.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(to_json(job) + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self.died() from None
        while line := self.process.stdout.readline():
            answer: protocol.TorchAnswer = self.decoder.decode(line)
            if not isinstance(answer, protocol.EpochProgress):
                return answer
            progress(answer)
        raise self.died()

    def died(self) -> StepError:
        """Return the error of a process that ended by itself."""
        code = self.process.wait()
        self.log.seek(0)
        trace = self.log.read().decode(errors="replace")[-4000:]
        if code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
            hint = " Often this is the system out of memory: try --workers 1." if -code == signal.SIGKILL else ""
        else:
            last = trace.strip().splitlines()
            how, hint = f"ended with code {code}", f": {last[-1]}" if last else ""
        return StepError("train", f"the training process {how}.{hint}", trace)

    def close(self) -> None:
        """End the process: it leaves when its stdin ends."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()


class TorchPool:
    """A pool of torch workers, started when first needed and used by as many threads."""

    def __init__(self, task: str, count: int) -> None:
        self.task = task
        self.count = count
        self.workers: list[TorchProcess] = []
        self.places: queue.Queue[TorchProcess] = queue.Queue()
        self.starting = threading.Lock()

    def start(self) -> TorchProcess:
        """Start a worker."""
        worker = TorchProcess(self.task)
        self.workers.append(worker)
        return worker

    @contextmanager
    def worker(self) -> Iterator[TorchProcess]:
        """Take a free worker for a block. The first call starts all of them, so that they load side by side."""
        with self.starting:
            while len(self.workers) < self.count:
                self.places.put(self.start())
        worker = self.places.get()
        if worker.process.poll() is not None:
            worker = self.start()
        try:
            yield worker
        finally:
            self.places.put(worker)

    def do(
        self, job: protocol.TorchJob, kind: type[T], progress: Callable[[protocol.EpochProgress], None] = lambda _: None
    ) -> T:
        """Run one job on a free worker.

        Raises:
            StepError: the job failed; ``DivergedError`` where a training did.
            TaskError: the user's task is at fault.
        """
        with self.worker() as worker:
            answer: Any = worker.do(job, progress)
        if isinstance(answer, protocol.JobFailed):
            if answer.diverged:
                raise DivergedError(answer.stage, answer.reason, answer.trace)
            if answer.user_error:
                raise TaskError(answer.reason)
            raise StepError(answer.stage, answer.reason, answer.trace)
        assert isinstance(answer, kind)
        return answer

    def settle(self, seconds: float = TRIAL_SECONDS) -> float:
        """Use as many workers as a short trial finds worth having: cores may be shared, or be threads of one core.

        What is trained stays the same, since every training has one thread.

        Returns:
            The training steps of those workers together, as a multiple of one worker's alone.
        """
        self.speed(self.count, 0)  # so that all are loaded
        alone = best = self.speed(1, seconds)
        for workers in range(2, self.count + 1):
            together = self.speed(workers, seconds)
            if together < WORTH_A_WORKER * best:
                self.count = workers - 1
                break
            best = together
        return best / alone

    def speed(self, workers: int, seconds: float) -> float:
        """Return the training steps a second of so many workers together."""
        with ThreadPoolExecutor(workers) as pool:
            done = pool.map(lambda _: self.do(protocol.SpeedJob(seconds=seconds), protocol.SpeedDone), range(workers))
            return sum(answer.steps_per_second for answer in done)

    def close(self) -> None:
        """End all workers."""
        for worker in self.workers:
            worker.close()
