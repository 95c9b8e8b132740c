"""Several torch processes that train one network together (``edgeopt.passes.distill.ranks``)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import msgspec

from edgeopt.errors import LOST_RANK
from edgeopt.pipeline.torch_process import protocol
from edgeopt.pipeline.torch_process.process import TorchProcess

_GRACE_SECONDS = 3.0
"""When one process has failed, the others may be the cause: so long they may answer before they are ended."""


def train_together(
    members: Sequence[TorchProcess], job: protocol.TrainJob, progress: Callable[[protocol.EpochProgress], None]
) -> protocol.TorchAnswer:
    """Give one training to several processes, and return the answer of the first one.

    If one fails, the others are ended, and the answer is the failure that the others followed from.

    Raises:
        CrashError: a process died.
        StoppedError: the processes were closed meanwhile.
    """
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder, ThreadPoolExecutor(len(members)) as threads:
        meeting = str(Path(folder) / "meeting")
        futures = [
            threads.submit(
                member.do,
                msgspec.structs.replace(job, rank=rank, ranks=len(members), meeting=meeting),
                progress if rank == 0 else lambda _: None,
            )
            for rank, member in enumerate(members)
        ]
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            if any(map(_has_failed, done)):
                wait(waiting, _GRACE_SECONDS)
                answered = [future for future in futures if future.done()]
                for member in members:
                    member.close()
                return min((one for one in answered if _has_failed(one)), key=_follows_from_another).result()
        return futures[0].result()


def _has_failed(future: Future[protocol.TorchAnswer]) -> bool:
    return future.exception() is not None or isinstance(future.result(), protocol.JobFailed)


def _follows_from_another(future: Future[protocol.TorchAnswer]) -> bool:
    """Tell whether a process failed only because another one did."""
    error = future.exception()
    reason = getattr(future.result(), "reason", "") if error is None else str(error)
    return LOST_RANK in reason
