"""The parent's side of the torch processes: one for each candidate that is made in parallel.

Trainings share out the cores: a process has as many threads as a short trial finds useful, and at most its share.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import IO, Any, TypeVar

import msgspec

from edgeopt.errors import CrashError, DivergedError, EdgeoptError, StepError, StoppedError, TaskError
from edgeopt.pipeline.processes import kill_group
from edgeopt.pipeline.torch_process import protocol
from edgeopt.records.base import Record
from edgeopt.records.codec import to_json
from edgeopt.records.recipe import MultiplyPrecision
from edgeopt.records.trial import FailureKind

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

_logger = logging.getLogger(__name__)

TRIAL_SECONDS = 0.5
MIN_SPEEDUP_RATIO = 1.1
"""One more parallel training has to raise the steps of all of them together by this factor."""
MIN_THREADS_SPEEDUP_RATIO = 1.25
"""Twice the threads have to raise the steps of a training by this factor."""
MIN_GRADIENT_COSINE = 0.99
"""A precision in which gradients are further from those in float32 is not used unasked."""


def available_cores() -> int:
    """Return how many cores this process may use by its affinity and, if it has one, its control group's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:  # noqa: PTH123 - not a file of ours
            quota, period = file.read().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


_ERRORS: dict[FailureKind, type[StepError]] = {
    "refused": StepError,
    "crashed": CrashError,
    "diverged": DivergedError,
}

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


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


class ParallelTraining(Record, frozen=True, kw_only=True):
    """How trainings share this machine's cores; kept, so that a build that continues trains in the same way."""

    workers: int
    """Trainings at a time."""
    useful_threads: int
    """The most threads that speed up one training."""
    speedup_ratio: float
    """Steps of all workers together, over those of one, each with one thread."""
    precision: MultiplyPrecision = "float32"
    """Of products on the processor."""


class TorchProcess:
    """One process that holds PyTorch."""

    def __init__(self, task: str, number: int = 0) -> None:
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgeopt.pipeline.torch_process.worker", task],
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

    def do(self, job: protocol.TorchJob, progress: Callable[[protocol.EpochProgress], None]) -> protocol.TorchAnswer:
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
        how = f"ended with exit code {code}" if code >= 0 else f"was killed by {_signal_name(-code)}"
        advice = " The system was probably out of memory: try --workers 1." if code == -signal.SIGKILL else ""
        last = next((line.strip() for line in reversed(trace.splitlines()) if line.strip()), "")
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


class TorchPool:
    """A pool of torch processes, started when first needed; as many threads may use it.

    Args:
        task: As the user named it; each process loads it.
        count: How many processes.
        cores: Cores of the processor for trainings; None for all that this process may use.
    """

    def __init__(self, task: str, count: int, cores: int | None = None) -> None:
        self.task = task
        self.count = count
        self.cores = available_cores() if cores is None else cores
        self.useful_threads = 1
        """The most threads that speed up one training."""
        self.threads = 1
        """Of each training that starts now."""
        self.precision: MultiplyPrecision = "float32"
        """Of products on the processor, if the task leaves it open."""
        self.processes: list[TorchProcess] = []
        self.free: queue.Queue[TorchProcess] = queue.Queue()
        self.starting = threading.Lock()
        self.is_closed = False

    def start(self) -> TorchProcess:
        """Start a process."""
        worker = TorchProcess(self.task, len(self.processes))
        self.processes.append(worker)
        return worker

    def replace(self, dead: TorchProcess) -> TorchProcess:
        """Start a process with the number of one that has ended."""
        number = self.processes.index(dead)
        dead.close()
        self.processes[number] = TorchProcess(self.task, number)
        return self.processes[number]

    @property
    def is_idle(self) -> bool:
        """Whether no process does a job. Nothing is timed otherwise: the cores and GPUs may be the same."""
        return self.free.qsize() == len(self.processes)

    @contextmanager
    def worker(self) -> Iterator[TorchProcess]:
        """Take a free process for a block. The first call starts all of them, so that they load in parallel."""
        with self.starting:
            while len(self.processes) < self.count:
                self.free.put(self.start())
        worker = self.free.get()
        if worker.process.poll() is not None:
            worker = self.replace(worker)
        try:
            yield worker
        finally:
            self.free.put(worker)

    def do(
        self, job: protocol.TorchJob, kind: type[T], progress: Callable[[protocol.EpochProgress], None] = lambda _: None
    ) -> T:
        """Run one job on a free process.

        Raises:
            StepError: the job failed: ``DivergedError`` if a training diverged, ``CrashError`` if a library failed or
                the process died.
            TaskError: the user's task is at fault.
            StoppedError: the pool is closed.
        """
        self.check_open()
        with self.worker() as worker:
            answer: Any = worker.do(job, progress)
            if isinstance(answer, protocol.JobFailed) and answer.kind == "crashed":
                worker.close()  # the next job gets a new process, with memory that nothing has damaged
        if isinstance(answer, protocol.JobFailed):
            if answer.kind == "user":
                raise TaskError(answer.reason)
            raise _ERRORS[answer.kind](answer.stage, answer.reason, answer.trace)
        assert isinstance(answer, kind)
        return answer

    def check_open(self) -> None:
        """Raise StoppedError if the pool is closed: then the build is stopping."""
        if self.is_closed:
            raise StoppedError("the torch processes have been stopped.")

    def share_cores(self, trainings: int) -> None:
        """Give each training that starts now its share of the cores, as far as it uses them.

        Args:
            trainings: How many there are to do; as many as there are processes run at a time.
        """
        self.threads = max(1, min(self.useful_threads, self.cores // max(1, min(trainings, self.count))))

    def tune(self, fixed_workers: bool, seconds: float = TRIAL_SECONDS) -> ParallelTraining:
        """Find out by a short trial how trainings share the cores.

        Args:
            fixed_workers: Whether the user set the number of parallel trainings.
            seconds: Length of each measurement.
        """
        speedup = 1.0 if fixed_workers or self.count == 1 else self.tune_worker_count(seconds)
        self.tune_threads(seconds)
        self.tune_precision(seconds)
        return ParallelTraining(
            workers=self.count, useful_threads=self.useful_threads, speedup_ratio=speedup, precision=self.precision
        )

    def use(self, found: ParallelTraining) -> None:
        """Train as an earlier trial found best."""
        self.count, self.useful_threads, self.precision = found.workers, found.useful_threads, found.precision

    def tune_worker_count(self, seconds: float = TRIAL_SECONDS) -> float:
        """Keep as many processes as a short trial finds useful: cores may be shared, or be threads of one core.

        Returns:
            The training steps of those processes together, as a multiple of a single one's.
        """
        self.speed(self.count, 0)  # so that all are loaded
        single = best = self.speed(1, seconds)
        for workers in range(2, self.count + 1):
            together = self.speed(workers, seconds)
            if together < MIN_SPEEDUP_RATIO * best:
                self.count = workers - 1
                break
            best = together
        return best / single

    def tune_threads(self, seconds: float = TRIAL_SECONDS) -> None:
        """Find out, by doubling, how many threads speed up one training; networks are as good from any number."""
        self.useful_threads = 1
        speed = self.speed(1, seconds) if self.cores > 1 else 0.0
        while self.useful_threads < self.cores:
            more = min(2 * self.useful_threads, self.cores)
            faster = self.speed(1, seconds, more)
            if faster < speed * MIN_THREADS_SPEEDUP_RATIO ** (more / self.useful_threads - 1):
                break
            self.useful_threads, speed = more, faster

    def tune_precision(self, seconds: float = TRIAL_SECONDS) -> None:
        """Multiply in bfloat16 if the processor has instructions for it, gets faster, and gradients stay the same."""
        plain = self.do(protocol.SpeedJob(seconds=seconds), protocol.SpeedDone)
        self.precision = "float32"
        if plain.multiplies_bfloat16:
            half = self.do(protocol.SpeedJob(seconds=seconds, precision="bfloat16"), protocol.SpeedDone)
            is_faster = half.steps_per_second >= MIN_SPEEDUP_RATIO * plain.steps_per_second
            if is_faster and half.gradient_cosine >= MIN_GRADIENT_COSINE:
                self.precision = "bfloat16"

    def speed(self, workers: int, seconds: float, threads: int = 1) -> float:
        """Return the training steps per second of that many processes together."""
        job = protocol.SpeedJob(seconds=seconds, threads=threads)
        with ThreadPoolExecutor(workers) as pool:
            done = pool.map(lambda _: self.do(job, protocol.SpeedDone), range(workers))
            return sum(answer.steps_per_second for answer in done)

    def close(self) -> None:
        """End all processes; a job that is at work then ends with ``StoppedError``."""
        self.is_closed = True
        for worker in self.processes:
            worker.close()
