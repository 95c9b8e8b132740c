"""Which pool a build gets: of this machine's cores or GPUs, or of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable

from edgeopt.passes.distill.compute import training_gpus
from edgeopt.pipeline.torch_process.cluster.pool import Cluster, ClusterPool
from edgeopt.pipeline.torch_process.pool import TorchPool, available_cores
from edgeopt.task import Training


def open_pool(
    task: str, training: Training | None, most_trainings: Callable[[int], int], cluster: Cluster | None
) -> tuple[TorchPool, str]:
    """Return a pool, and the GPUs that train in words, which is empty if processors train.

    Args:
        task: As torch processes load it.
        training: How the task trains; None if it cannot be trained.
        most_trainings: Returns how many trainings may run at a time, if there is room for that many.
        cluster: Where trainings run; None for this machine.

    Raises:
        TaskError: the device or the number of processes of ``training`` cannot be had.
    """
    if cluster is not None:
        cluster = cluster.training(task, training)
        pool = ClusterPool(task, most_trainings(cluster.places()), cluster)
        return pool, str(cluster) if cluster.gpus else ""
    gpus, ranks = (training_gpus(training), training.processes) if training else ([], 1)
    workers = most_trainings((len(gpus) or available_cores()) // ranks)
    return TorchPool(task, workers, ranks=ranks), ", ".join(gpus)
