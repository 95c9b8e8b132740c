"""How trainings share this machine's cores: found out once by a short trial, then run side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from edgeopt.errors import CrashError
from edgeopt.graph.jobs.processes import kill_graph_processes
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.torch_process.pool import ParallelTraining
from edgeopt.report import words

Job = Callable[[], None]
A = TypeVar("A")
B = TypeVar("B")


def nothing() -> None:
    """Do nothing."""


def tune_training(build: Build, *, may_try: bool) -> None:
    """Find out, or look up, how trainings share the cores; on GPUs there is one on each.

    Args:
        build: The build.
        may_try: False if nothing is trained: then what was found before counts, or else there is one process.
    """
    pool = build.torch_pool
    if build.gpus:
        build.progress("workers", f"training on {build.gpus}")
        return
    key = build.keys.of("parallel-training", **pool.facts, fixed=build.fixed_workers)
    if not may_try:
        known = build.ledger.get(key, ParallelTraining)
        pool.use(known or ParallelTraining(workers=1, useful_threads=1, speedup_ratio=1.0))
        return
    try:
        found = build.ledger.remember(
            key, ParallelTraining, lambda: pool.tune(build.fixed_workers, build.effort.candidates)
        )
    except CrashError as error:
        pool.count = 1
        build.progress("workers", f"one at a time, because a short trial crashed: {error.reason}")
        return
    pool.use(found)
    threads = words.plural(found.useful_threads, "thread")
    half = "" if found.precision == "float32" else f", in {found.precision}"
    build.progress(
        "workers", f"{found.workers} in parallel, a lone training uses {threads} of {pool.training_place}{half}"
    )


def in_parallel(build: Build, function: Callable[[A], B], items: Sequence[A], meanwhile: Job = nothing) -> list[B]:
    """Call ``function`` on the items, as many at a time as there are torch processes; an exception stops all.

    Args:
        build: The build.
        function: Called with each item.
        items: The items.
        meanwhile: What else is to be done, once the last item has begun.
    """
    build.torch_pool.share_cores(len(items))
    with ThreadPoolExecutor(build.torch_pool.count) as pool:
        try:
            futures = [pool.submit(function, item) for item in items]
            tasks: list[Future[Any]] = [*futures, pool.submit(meanwhile)]
            done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
            for task in done:
                task.result()
            return [future.result() for future in futures]
        except BaseException:
            build.torch_pool.close()  # so that no thread waits for a training that is no longer wanted
            kill_graph_processes()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
