"""The teacher's outputs for a stream of training batches: computed once, kept in files, shared by all candidates.

There is one safetensors file per epoch. Parallel trainings share the work: if another process is computing an epoch,
a training computes the next missing one.
"""

from __future__ import annotations

import fcntl
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgeopt.store.files import write_whole
from edgeopt.task import Batch, CheckedTask
from edgeopt.task.values import flat_outputs

Inputs: TypeAlias = tuple[Tensor, ...]
Outputs: TypeAlias = tuple[Tensor, ...]

_CACHE_LIMIT_BYTES = 256_000_000
"""Limit for the outputs of one epoch; above it, nothing is cached and the teacher runs during the training."""
_POLL_SECONDS = 0.2


class TaughtBatch(NamedTuple):
    """One batch of a training, with the teacher's outputs."""

    inputs: Inputs
    targets: Any
    teacher_outputs: Outputs


class Teacher(ABC):
    """Base class of teachers: returns outputs for batches of inputs."""

    chunk_bytes = 0
    """Batches are passed together until their inputs have this many bytes; 0 passes one at a time."""

    @abstractmethod
    def run(self, batches: Sequence[Inputs]) -> list[Outputs]:
        """Return the outputs of each batch."""


class ModuleTeacher(Teacher):
    """A PyTorch module, or any function of its inputs."""

    def __init__(self, module: Callable[..., Any]) -> None:
        self.module = module

    def run(self, batches: Sequence[Inputs]) -> list[Outputs]:
        """Run the module on each batch."""
        with torch.no_grad():
            return [flat_outputs(self.module(*to_channels_last(inputs))) for inputs in batches]


def stream_seed(seed: int, epoch: int) -> int:
    """Return the seed of one epoch of the training stream."""
    return (seed * 1_000_003 + epoch * 7919 + 1) % 2**31


def checksum(inputs: Inputs) -> Tensor:
    """Return a float64 fingerprint of a batch, to check that a stream repeats."""
    return torch.stack([value.detach().double().sum() + value.numel() for value in inputs])


class TeacherOutputs:
    """The training stream: batches with the teacher's outputs, epoch by epoch.

    Args:
        folder: Where the files are kept; its name includes what they depend on (task and teacher).
        task: Source of the batches.
        teacher: The teacher; a module or a function of inputs is wrapped in a ``ModuleTeacher``.
        epochs: Number of epochs that will be requested.
        seed: Seed of the stream.
    """

    def __init__(
        self, folder: Path, task: CheckedTask, teacher: Teacher | Callable[..., Any], *, epochs: int, seed: int
    ) -> None:
        self.folder = folder
        self.task = task
        self.teacher = teacher if isinstance(teacher, Teacher) else ModuleTeacher(teacher)
        self.epochs = epochs
        self.seed = seed
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, epoch: int) -> Path:
        """Return the path of an epoch's outputs."""
        return self.folder / f"seed{self.seed}-epoch{epoch}.safetensors"

    def chunks(self, epoch: int) -> Iterator[list[tuple[int, Batch]]]:
        """Yield an epoch's numbered batches, in chunks of the teacher's size."""
        return split_into_chunks(self.task.train_epoch(stream_seed(self.seed, epoch)), self.teacher.chunk_bytes)

    def prepare(self, epoch: int) -> int:
        """Make sure that an epoch's outputs exist; return the number of batches."""
        while not self.path(epoch).exists():
            for missing in (epoch, *range(epoch + 1, self.epochs)):
                if not self.path(missing).exists() and self.compute(missing):
                    break
            else:
                time.sleep(_POLL_SECONDS)
        with safe_open(self.path(epoch), "pt") as stored:
            return int(stored.metadata()["batches"])

    def compute(self, epoch: int) -> bool:
        """Compute one epoch's outputs; return False if another process is computing them."""
        with try_lock(self.path(epoch).with_suffix(".lock")) as acquired:
            if not acquired or self.path(epoch).exists():
                return acquired
            tensors: dict[str, Tensor] = {}
            size = count = output_count = 0
            for chunk in self.chunks(epoch):
                count += len(chunk)
                if size > _CACHE_LIMIT_BYTES:
                    continue
                results = self.teacher.run([inputs for _, (inputs, _) in chunk])
                for (index, (inputs, _)), outputs in zip(chunk, results, strict=True):
                    output_count = len(outputs)
                    size += sum(value.nbytes for value in outputs)
                    tensors[f"{index}/check"] = checksum(inputs)
                    tensors |= {f"{index}/{position}": value.contiguous() for position, value in enumerate(outputs)}
            kept = tensors if size <= _CACHE_LIMIT_BYTES else {}
            metadata = {"batches": str(count), "outputs": str(output_count)}
            write_whole(self.path(epoch), lambda partial: save_file(kept, partial, metadata=metadata))
            return True

    def batches(self, epoch: int) -> Iterator[TaughtBatch]:
        """Yield an epoch's batches with the teacher's outputs.

        A batch that differs from the one in the file (a loader may ignore its seed) goes through the teacher again.
        """
        self.prepare(epoch)
        with safe_open(self.path(epoch), "pt") as stored:
            names = set(stored.keys())
            output_count = int(stored.metadata()["outputs"])
            for chunk in self.chunks(epoch):
                unchanged = [
                    f"{index}/check" in names and torch.equal(stored.get_tensor(f"{index}/check"), checksum(inputs))
                    for index, (inputs, _) in chunk
                ]
                changed = [inputs for (_, (inputs, _)), same in zip(chunk, unchanged, strict=True) if not same]
                recomputed = iter(self.teacher.run(changed) if changed else [])
                for (index, (inputs, targets)), same in zip(chunk, unchanged, strict=True):
                    if same:
                        outputs = tuple(stored.get_tensor(f"{index}/{position}") for position in range(output_count))
                    else:
                        outputs = next(recomputed)
                    yield TaughtBatch(inputs, targets, outputs)


def split_into_chunks(batches: Iterable[Batch], chunk_bytes: int) -> Iterator[list[tuple[int, Batch]]]:
    """Yield numbered batches in lists; a list ends when its inputs reach ``chunk_bytes``."""
    chunk: list[tuple[int, Batch]] = []
    size = 0
    for index, batch in enumerate(batches):
        chunk.append((index, batch))
        size += sum(value.nbytes for value in batch[0])
        if size >= chunk_bytes:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def to_channels_last(inputs: Inputs) -> Inputs:
    """Return images in the memory format that trains convolutions fastest on CPUs."""
    return tuple(value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value for value in inputs)


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold a file lock and yield True; yield False if another process holds it. A killed process releases its lock."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
