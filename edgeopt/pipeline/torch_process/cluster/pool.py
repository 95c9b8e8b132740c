"""The pool of a build whose trainings run on a Ray cluster; every other job runs here, as always."""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgeopt.errors import ConfigError, CrashError, TaskError
from edgeopt.pipeline.torch_process import protocol
from edgeopt.pipeline.torch_process.cluster.code import (
    MAX_WEIGHTS_BYTES,
    check_code_size,
    code_of,
    hash_code,
    large_weights,
)
from edgeopt.pipeline.torch_process.cluster.settings import BridgeSettings
from edgeopt.pipeline.torch_process.pool import TRIAL_SECONDS, ParallelTraining, T, TorchPool
from edgeopt.pipeline.torch_process.process import TorchProcess
from edgeopt.records.codec import to_json
from edgeopt.store.files import PARTIAL_MARK
from edgeopt.task import Training

_BRIDGE_MODULE = "edgeopt.pipeline.torch_process.cluster.bridge"


class Cluster:
    """A cluster that was looked at: how many trainings it has room for.

    Args:
        settings: For its bridges.
        room: What its nodes have.
        cores: For each training, if the user set it.
    """

    def __init__(self, settings: BridgeSettings, room: protocol.RoomDone, cores: int | None = None) -> None:
        self.settings = settings
        self.room = room
        self.cores = cores

    def training(self, task: str, training: Training | None) -> Cluster:
        """Return the cluster for the trainings of a task.

        Args:
            task: As torch processes load it.
            training: How it trains; on GPUs, if the cluster has some, unless the task's device is the processor.

        Raises:
            TaskError: several processes would train one network together.
        """
        if training is not None and training.processes > 1:
            raise TaskError(
                f"training.processes is {training.processes}, but on a cluster each network is trained by one process. "
                "Set it to 1, or build without --ray."
            )
        gpu = training is not None and training.device != "cpu" and any(self.room.gpus)
        return Cluster(msgspec.structs.replace(self.settings, task=task, gpu=gpu), self.room, self.cores)

    @property
    def gpus(self) -> int:
        """How many GPUs train."""
        return sum(self.room.gpus) if self.settings.gpu else 0

    @property
    def most_cores(self) -> int:
        """Of the largest node."""
        return max(self.room.cores)

    def places(self, cores: int = 1) -> int:
        """Return how many trainings have room at a time, with that many cores each, or with a GPU each."""
        return self.gpus or max(1, sum(node // cores for node in self.room.cores))

    def __str__(self) -> str:
        nodes = len(self.room.cores)
        where = f"{nodes} nodes" if nodes > 1 else "1 node"
        gpus = f", {sum(self.room.gpus)} GPUs" if any(self.room.gpus) else ""
        return f"the cluster at {self.settings.address} ({where}, {sum(self.room.cores)} cores{gpus})"


def find_cluster(
    address: str,
    task: str,
    workspace: Path,
    cores: int | None = None,
    progress: Callable[[str, str], None] = lambda _stage, _text: None,
) -> Cluster:
    """Look at a cluster before any work: whether it can be reached, and whether its nodes can train.

    Args:
        address: ``auto``, ``ray://HOST:PORT`` or ``HOST:PORT``.
        task: As the user named it.
        workspace: Of the build.
        cores: For each training, if the user set it.
        progress: Is told which weights are not sent.

    Raises:
        TaskError: the task's file does not exist.
        ConfigError: Ray isn't installed, the cluster cannot be used, no node has that many cores, or the task's code
            cannot be read, or has to be sent and is too much.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            f"--ray {address}: the package ray isn't installed. Install it with: pip install 'edgeopt[ray]'."
        )
    code = code_of(task)
    if code is not None:
        hash_code(code.root)
    mark = workspace.resolve() / "stages" / f"cluster{PARTIAL_MARK}{uuid.uuid4()}"
    settings = BridgeSettings(address=address, task=task, workspace=str(workspace), mark=str(mark))
    answer = _look_at_cluster(settings)
    if cores is not None and cores > max(answer.cores):
        raise ConfigError(
            f"--ray-cores {cores}: the largest node of the cluster at {address} has {max(answer.cores)} cores. Give at "
            "most that many."
        )
    if code is not None and not answer.sees_code:
        check_sending(code.root, progress)
    return Cluster(msgspec.structs.replace(settings, sends_code=not answer.sees_code), answer, cores)


def _look_at_cluster(settings: BridgeSettings) -> protocol.RoomDone:
    """Return what a cluster has."""
    bridge = TorchProcess(to_json(settings).decode(), module=_BRIDGE_MODULE)
    try:
        answer = bridge.do(protocol.RoomJob(), lambda _: None)
    except CrashError as error:
        raise ConfigError(f"--ray {settings.address}: connecting to the cluster failed: {error.reason}") from error
    finally:
        bridge.close()
    if isinstance(answer, protocol.JobFailed):
        raise ConfigError(answer.reason)
    assert isinstance(answer, protocol.RoomDone)
    return answer


def check_sending(root: Path, progress: Callable[[str, str], None]) -> None:
    """Check that the code of a task can be sent, and tell which weights in its folder are not.

    Raises:
        ConfigError: it is too much.
    """
    check_code_size(root)
    names = [path.relative_to(root).as_posix() for path in large_weights(root)]
    if names:
        progress(
            "set-up",
            f"not sent to the cluster, because larger than {MAX_WEIGHTS_BYTES >> 20} MiB: {', '.join(names)}; if the "
            "task reads them, put its folder where every node has it under the same path",
        )


class _BridgePool(TorchPool):
    """A bridge for each training that runs at a time."""

    def make_process(self, number: int) -> TorchProcess:
        """Start a bridge."""
        return TorchProcess(self.task, number, _BRIDGE_MODULE)


class ClusterPool(TorchPool):
    """A pool whose trainings run on a cluster.

    Args:
        task: As in ``TorchPool``.
        count: How many trainings run at a time.
        cluster: Where they run.
    """

    def __init__(self, task: str, count: int, cluster: Cluster) -> None:
        super().__init__(task, count)
        self.cluster = cluster
        mark = Path(cluster.settings.mark)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        self.bridges = _BridgePool(to_json(cluster.settings).decode(), count)

    @property
    def process_count(self) -> int:
        """How many processes do the other jobs here."""
        return min(self.count, self.cores)

    @property
    def training_place(self) -> str:
        """What trainings share."""
        return str(self.cluster)

    @property
    def facts(self) -> dict[str, object]:
        """What a short trial depends on."""
        return {**super().facts, "cluster": (self.cluster.room.cores, self.cluster.cores)}

    @property
    def is_idle(self) -> bool:
        """Whether nothing works, here or on the cluster."""
        return super().is_idle and self.bridges.is_idle

    def do(
        self, job: protocol.TorchJob, kind: type[T], progress: Callable[[protocol.EpochProgress], None] = lambda _: None
    ) -> T:
        """Run one job: a training on the cluster, any other here; see ``TorchPool.do``."""
        if isinstance(job, protocol.TrainJob):
            return self.bridges.do(job, kind, progress)
        return super().do(job, kind, progress)

    def share_cores(self, trainings: int) -> None:
        """Give each training as many cores as the user set; those that the cluster has no room for wait there.

        Otherwise as many as it uses, if all of them have room at a time; else fewer.
        """
        at_a_time = max(1, min(trainings, self.count))
        self.bridges.count = max(at_a_time, len(self.bridges.processes))
        self.threads = 1
        if self.cluster.gpus:
            return
        if self.cluster.cores is not None:
            self.threads = self.cluster.cores
        else:
            fitting = [n for n in range(1, self.useful_threads + 1) if self.cluster.places(n) >= at_a_time]
            self.threads = max(fitting, default=1)

    def tune(self, fixed_workers: bool, least: int = 1, seconds: float = TRIAL_SECONDS) -> ParallelTraining:
        """Find out by a short trial here how many threads a training uses; as many run as there is room for.

        Args:
            fixed_workers: Whether the user set the number of parallel trainings.
            least: Trainings that run in parallel if there is room for fewer, with fewer cores each.
            seconds: Length of each measurement.
        """
        if self.cluster.cores is None:
            self.tune_threads(seconds)
            self.useful_threads = min(self.useful_threads, self.cluster.most_cores)
        else:
            self.useful_threads = self.cluster.cores
        if not fixed_workers:
            room = self.cluster.places(self.useful_threads)
            self.count = min(self.count, max(room, min(least, self.cluster.places())))
        self.end_surplus()
        self.tune_precision(seconds)
        return ParallelTraining(
            workers=self.count, useful_threads=self.useful_threads, speedup_ratio=1.0, precision=self.precision
        )

    def close(self) -> None:
        """End all processes, and with them the trainings on the cluster."""
        self.bridges.close()
        super().close()
        Path(self.cluster.settings.mark).unlink(missing_ok=True)
