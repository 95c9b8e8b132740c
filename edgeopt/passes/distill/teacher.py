"""The teacher's outputs for a stream of training batches: computed once, kept in files, shared by all candidates.

One safetensors file an epoch. Trainings side by side divide the work: who comes to an epoch that somebody else is
computing takes the next one that is missing.
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

from edgeopt.task import Batch, CheckedTask, flat_outputs

Inputs: TypeAlias = tuple[Tensor, ...]
Outputs: TypeAlias = tuple[Tensor, ...]

CACHE_LIMIT_BYTES = 256_000_000
"""Of one epoch's outputs; beyond it the teacher runs beside the student."""
_POLL_SECONDS = 0.2


class Lesson(NamedTuple):
    """One training step's material."""

    inputs: Inputs
    targets: Any
    teacher_outputs: Outputs


class Teacher(ABC):
    """What teaches: it gives the outputs for batches of inputs."""

    chunk_bytes = 0
    """Batches come together until their inputs have so many bytes; 0 is one at a time."""

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
            return [flat_outputs(self.module(*channels_last(inputs))) for inputs in batches]


def stream_seed(seed: int, epoch: int) -> int:
    """Return the seed of one epoch of the training stream."""
    return (seed * 1_000_003 + epoch * 7919 + 1) % 2**31


def checksum(inputs: Inputs) -> Tensor:
    """Return a float64 fingerprint of a batch, to see that a stream repeats."""
    return torch.stack([value.detach().double().sum() + value.numel() for value in inputs])


class TeacherOutputs:
    """Gives the lessons of an epoch.

    Args:
        folder: Where the files are kept; its name carries what they depend on (task and teacher).
        task: Gives the batches.
        teacher: What teaches; a module or a function of inputs is taken as ``ModuleTeacher``.
        epochs: How many epochs will be asked for.
        seed: Of the stream.
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

    def file(self, epoch: int) -> Path:
        """Return where an epoch's outputs are kept."""
        return self.folder / f"seed{self.seed}-epoch{epoch}.safetensors"

    def chunks(self, epoch: int) -> Iterator[list[tuple[int, Batch]]]:
        """Yield an epoch's inputs and targets with their numbers, as many together as the teacher takes."""
        return in_chunks(self.task.train_epoch(stream_seed(self.seed, epoch)), self.teacher.chunk_bytes)

    def prepare(self, epoch: int) -> int:
        """Make sure that an epoch's outputs exist; return its number of batches."""
        while not self.file(epoch).exists():
            for wanted in (epoch, *range(epoch + 1, self.epochs)):
                if not self.file(wanted).exists() and self.compute(wanted):
                    break
            else:
                time.sleep(_POLL_SECONDS)
        with safe_open(self.file(epoch), "pt") as stored:
            return int(stored.metadata()["batches"])

    def compute(self, epoch: int) -> bool:
        """Compute one epoch's outputs; False where another process is at it."""
        with exclusive(self.file(epoch).with_suffix(".lock")) as mine:
            if not mine or self.file(epoch).exists():
                return mine
            tensors: dict[str, Tensor] = {}
            size = count = width = 0
            for chunk in self.chunks(epoch):
                count += len(chunk)
                if size > CACHE_LIMIT_BYTES:
                    continue
                found = self.teacher.run([inputs for _, (inputs, _) in chunk])
                for (index, (inputs, _)), outputs in zip(chunk, found, strict=True):
                    width = len(outputs)
                    size += sum(value.nbytes for value in outputs)
                    tensors[f"{index}/check"] = checksum(inputs)
                    tensors |= {f"{index}/{place}": value.contiguous() for place, value in enumerate(outputs)}
            kept = tensors if size <= CACHE_LIMIT_BYTES else {}
            partial = self.file(epoch).with_suffix(".partial")
            save_file(kept, partial, metadata={"batches": str(count), "outputs": str(width)})
            partial.replace(self.file(epoch))
            return True

    def lessons(self, epoch: int) -> Iterator[Lesson]:
        """Yield an epoch's lessons.

        A batch that is not what the file was made from (a loader that ignores its seed) is shown to the teacher again.
        """
        self.prepare(epoch)
        with safe_open(self.file(epoch), "pt") as stored:
            names = set(stored.keys())
            width = int(stored.metadata()["outputs"])
            for chunk in self.chunks(epoch):
                known = [
                    f"{index}/check" in names and torch.equal(stored.get_tensor(f"{index}/check"), checksum(inputs))
                    for index, (inputs, _) in chunk
                ]
                unknown = [inputs for (_, (inputs, _)), same in zip(chunk, known, strict=True) if not same]
                anew = iter(self.teacher.run(unknown) if unknown else [])
                for (index, (inputs, targets)), same in zip(chunk, known, strict=True):
                    if same:
                        outputs = tuple(stored.get_tensor(f"{index}/{place}") for place in range(width))
                    else:
                        outputs = next(anew)
                    yield Lesson(inputs, targets, outputs)


def in_chunks(batches: Iterable[Batch], most_bytes: int) -> Iterator[list[tuple[int, Batch]]]:
    """Yield numbered batches in lists, each ended by the batch whose inputs bring it to ``most_bytes``."""
    chunk: list[tuple[int, Batch]] = []
    size = 0
    for index, batch in enumerate(batches):
        chunk.append((index, batch))
        size += sum(value.nbytes for value in batch[0])
        if size >= most_bytes:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def channels_last(inputs: Inputs) -> Inputs:
    """Return images in the memory format in which convolutions train fastest on CPUs."""
    return tuple(value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value for value in inputs)


@contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Hold a file lock for a block, or yield False at once where somebody else holds it. A kill releases it."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
