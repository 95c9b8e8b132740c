"""The parent's side of the torch processes: one for each candidate that is made in parallel.

Trainings share out the cores: a process has as many threads as a short trial finds useful, and at most its share.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from edgeopt.errors import CrashError, DivergedError, OutOfTimeError, StepError, StoppedError, TaskError
from edgeopt.pipeline.torch_process import protocol
from edgeopt.pipeline.torch_process.process import TorchProcess
from edgeopt.pipeline.torch_process.together import train_together
from edgeopt.records.base import Record
from edgeopt.records.recipe import MultiplyPrecision
from edgeopt.records.trial import FailureKind

T = TypeVar(
    "T",
    protocol.TableDone,
    protocol.InputSizesDone,
    protocol.ProfileDone,
    protocol.LowRankDone,
    protocol.CurveDone,
    protocol.TrainDone,
    protocol.ExportDone,
    protocol.ProbeDone,
    protocol.SpeedDone,
)

TRIAL_SECONDS = 0.5
MIN_SPEEDUP_RATIO = 1.1
"""A second parallel training has to raise the steps of both together by this factor; each further one has to add that
share of what one does."""
MIN_THREADS_SPEEDUP_RATIO = 1.25
"""Twice the threads have to raise the steps of a training by this factor."""
MIN_GRADIENT_COSINE = 0.99
"""A precision in which gradients are further from those in float32 is not used unasked."""


def available_cores() -> int:
    """Return how many cores this process may use by its affinity and, if it has one, its control group's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


_ERRORS: dict[FailureKind, type[StepError]] = {
    "refused": StepError,
    "crashed": CrashError,
    "diverged": DivergedError,
    "unfinished": OutOfTimeError,
}


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


class TorchPool:
    """A pool of torch processes, started when first needed; as many threads may use it.

    Args:
        task: As the user named it; each process loads it.
        count: How many processes.
        cores: Cores of the processor for trainings; None for all that this process may use.
        ranks: How many processes train one network together. Each of the ``count`` has that many less one beside it.
    """

    def __init__(self, task: str, count: int, cores: int | None = None, ranks: int = 1) -> None:
        self.task = task
        self.count = count
        self.ranks = ranks
        self.cores = available_cores() if cores is None else cores
        self.useful_threads = 1
        """The most threads that speed up one training."""
        self.threads = 1
        """Of each training that starts now."""
        self.precision: MultiplyPrecision = "float32"
        """Of products on the processor, if the task leaves it open."""
        self.processes: list[TorchProcess] = []
        self.others: dict[int, TorchProcess] = {}
        """Those that train along, by number; each is started when first needed."""
        self.free: queue.LifoQueue[TorchProcess] = queue.LifoQueue()
        """Idle processes. The next job goes to the one that worked last: it has the network and the data."""
        self.starting = threading.Lock()
        self.is_closed = False

    @property
    def process_count(self) -> int:
        """How many processes do jobs at a time."""
        return self.count

    @property
    def training_place(self) -> str:
        """What trainings share, in words."""
        return f"{self.cores} cores"

    @property
    def facts(self) -> dict[str, object]:
        """What a short trial depends on, besides the task."""
        return {"cores": self.cores, "workers": self.count}

    def make_process(self, number: int) -> TorchProcess:
        """Start a process of this kind."""
        return TorchProcess(self.task, number)

    def start(self) -> TorchProcess:
        """Start a process."""
        worker = self.make_process(self.ranks * len(self.processes))
        self.processes.append(worker)
        return worker

    def replace(self, dead: TorchProcess) -> TorchProcess:
        """Start a process with the number of one that has ended."""
        number = self.processes.index(dead)
        dead.close()
        self.processes[number] = self.make_process(self.ranks * number)
        return self.processes[number]

    def group(self, first: TorchProcess) -> list[TorchProcess]:
        """Return a process and those that train along with it; one that has ended is started again."""
        begin = self.ranks * self.processes.index(first)
        for number in range(begin + 1, begin + self.ranks):
            if number not in self.others or self.others[number].process.poll() is not None:
                self.others[number] = self.make_process(number)
        return [first, *(self.others[number] for number in range(begin + 1, begin + self.ranks))]

    @property
    def is_idle(self) -> bool:
        """Whether no process does a job. Nothing is timed otherwise: the cores and GPUs may be the same."""
        return self.free.qsize() == len(self.processes)

    @contextmanager
    def worker(self) -> Iterator[TorchProcess]:
        """Take a free process for a block. The first call starts all of them, so that they load in parallel."""
        with self.starting:
            for new in reversed([self.start() for _ in range(self.process_count - len(self.processes))]):
                self.free.put(new)
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
            answer: Any
            if isinstance(job, protocol.TrainJob) and self.ranks > 1:
                answer = train_together(self.group(worker), job, progress)
            else:
                answer = worker.do(job, progress)
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

    @contextmanager
    def loading_others(self, count: int) -> Iterator[None]:
        """Let ``count`` further processes load the task while one does the jobs of a block, and wait for them.

        What fails in it fails again in the first training, and is reported there.
        """
        with ThreadPoolExecutor(max(1, count)) as threads:
            for _ in range(count):
                threads.submit(self.do, protocol.SpeedJob(seconds=0), protocol.SpeedDone)
            yield

    def share_cores(self, trainings: int) -> None:
        """Give each training that starts now its share of the cores, as far as it uses them.

        Args:
            trainings: How many there are to do; as many as there are processes run at a time.
        """
        processes = self.ranks * max(1, min(trainings, self.count))
        self.threads = max(1, min(self.useful_threads, self.cores // processes))

    def tune(self, fixed_workers: bool, least: int = 1, seconds: float = TRIAL_SECONDS) -> ParallelTraining:
        """Find out by a short trial how trainings share the cores.

        A training has as many threads as speed it up, and as many run at a time as there are cores for.

        Args:
            fixed_workers: Whether the user set the number of parallel trainings.
            least: Trainings that run in parallel if the cores are fewer than two trainings can use, at most.
            seconds: Length of each measurement.
        """
        self.tune_threads(seconds)
        speedup = 1.0
        if not fixed_workers and self.count > 1:
            self.count = min(self.count, max(least, self.cores // (self.useful_threads * self.ranks)))
            self.end_surplus()
            speedup = self.tune_worker_count(seconds)
        self.end_surplus()
        self.tune_precision(seconds)
        return ParallelTraining(
            workers=self.count, useful_threads=self.useful_threads, speedup_ratio=speedup, precision=self.precision
        )

    def use(self, found: ParallelTraining) -> None:
        """Train as an earlier trial found best."""
        self.count, self.useful_threads, self.precision = found.workers, found.useful_threads, found.precision
        self.end_surplus()

    def end_surplus(self) -> None:
        """End idle processes beyond those that train at a time: each holds the network and the data."""
        with self.starting:
            kept, surplus = self.processes[: self.process_count], self.processes[self.process_count :]
            if not surplus or not self.is_idle:
                return
            while not self.free.empty():
                self.free.get()
            for worker in reversed(kept):
                self.free.put(worker)
            self.processes = kept
            for worker in surplus:
                worker.close()

    def tune_worker_count(self, seconds: float = TRIAL_SECONDS) -> float:
        """Keep as many processes as a short trial finds useful: cores may be shared, or be threads of one core.

        Returns:
            The training steps of those processes together, as a multiple of a single one's.
        """
        self.speed(self.count, 0)  # so that all are loaded
        single = best = self.speed(1, seconds)
        for workers in range(2, self.count + 1):
            together = self.speed(workers, seconds)
            if together < best * (1 + (MIN_SPEEDUP_RATIO - 1) / (workers - 1)):
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
        for worker in (*self.processes, *self.others.values()):
            worker.close()
