"""The files of a training that a node reads and writes: their bytes travel if the node doesn't see the workspace."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from edgeopt.pipeline.torch_process import protocol
from edgeopt.store.files import write_whole
from edgeopt.tasks.given.onnx_trainable import TRAINING_SUFFIX

Files = dict[str, bytes]
"""Contents by path; relative to the workspace while they travel."""


def moved(job: protocol.TrainJob, old: Path, new: Path) -> protocol.TrainJob:
    """Return a job whose files lie in another folder.

    Args:
        job: With paths below ``old``.
        old: The workspace, as the job's paths name it.
        new: The other folder.
    """

    def move(path: str) -> str:
        return str(new / Path(path).relative_to(old))

    def move_network(network: protocol.NetworkRef) -> protocol.NetworkRef:
        return network if network.file is None else msgspec.structs.replace(network, file=move(network.file))

    int8 = job.int8
    if int8 is not None:
        int8 = protocol.Int8Reference(
            sites=move(int8.sites), values=move(int8.values), inputs=move(int8.inputs), expected=move(int8.expected)
        )
    return msgspec.structs.replace(
        job, parent=move_network(job.parent), fitted=None if job.fitted is None else move_network(job.fitted),
        int8=int8, table=None if job.table is None else move(job.table),
        checkpoint=move(job.checkpoint), teacher=move(job.teacher), out=move(job.out),
    )  # fmt: skip


def input_files(job: protocol.TrainJob, task: str) -> list[Path]:
    """Return the files that a training reads, also the checkpoints that it goes on from, as far as they exist."""
    named = [job.parent.file, job.table, None if job.fitted is None else job.fitted.file]
    if job.int8 is not None:
        named += [job.int8.sites, job.int8.values, job.int8.inputs]
    found = [Path(name) for name in named if name is not None] + checkpoints(job)
    if task.endswith(TRAINING_SUFFIX):
        found += sorted(path for path in Path(task).rglob("*") if path.is_file())
    return [path for path in found if path.is_file()]


def output_files(job: protocol.TrainJob) -> list[Path]:
    """Return the files that a finished training has written."""
    named = [job.out] if job.int8 is None else [job.out, job.int8.expected]
    return [Path(name) for name in named if Path(name).is_file()]


def checkpoints(job: protocol.TrainJob) -> list[Path]:
    """Return the checkpoints of a training that exist, one for each of its steps that train."""
    path = Path(job.checkpoint)
    names = [path.with_name(f"{path.stem}-{index}{path.suffix}") for index in range(len(job.steps))]
    return [name for name in names if name.is_file()]


def read_files(paths: list[Path], root: Path) -> Files:
    """Return the contents of files by their paths below ``root``; a training may remove its checkpoint meanwhile."""
    found = {}
    for path in paths:
        with suppress(FileNotFoundError):
            found[path.relative_to(root).as_posix()] = path.read_bytes()
    return found


def write_files(files: Mapping[str, bytes], root: Path) -> None:
    """Write files below ``root``, each whole or not at all."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
