"""The teacher's outputs for a stream of training batches: computed once, kept in files, shared by all candidates.

There is one safetensors file per epoch. Parallel trainings share the work: if another process is computing an epoch,
a training computes the next missing one. Outputs that are too large for this are not kept: the teacher then runs along
every student. The first batch decides that, once for all trainings (``CachePlan``).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgeopt.passes.distill.compute import CPU, ComputeDevice
from edgeopt.passes.distill.parts import Inputs, Outputs, TaughtBatch, own_part
from edgeopt.passes.distill.ranks import ALONE, Ranks
from edgeopt.records.base import Record
from edgeopt.records.codec import from_json, to_json
from edgeopt.store.files import write_whole
from edgeopt.task import Batch, CheckedTask
from edgeopt.task.modules import widen_inputs
from edgeopt.task.values import flat_outputs

_DISK_RATIO = 0.25
"""Share of the free disk that the outputs of all epochs may take."""
_MEMORY_RATIO = 0.1
"""Share of the free memory that the outputs of one epoch may take, which are collected there; each training does it."""
_UNKNOWN_MEMORY_BYTES = 2_560_000_000
"""Taken for the free memory on systems that cannot report it."""
_HALF_TOLERANCE = 1e-3
"""Largest error of outputs in float16 over their largest value; rounding alone is within 5e-4."""
_POLL_SECONDS = 0.2


class CachePlan(Record, frozen=True, kw_only=True):
    """How an epoch's outputs are kept."""

    batches: int
    """Of the first epoch."""
    kept: Literal["float32", "float16"] | None
    """The type of floating-point outputs in the files; None if there are no files."""


class Teacher(ABC):
    """Base class of teachers: returns outputs for batches of inputs."""

    chunk_bytes = 0
    """Batches are passed together until their inputs have this many bytes; 0 passes one at a time."""

    @abstractmethod
    def run(self, batches: Sequence[Inputs]) -> list[Outputs]:
        """Return the outputs of each batch."""


class ModuleTeacher(Teacher):
    """A PyTorch module, or any function of its inputs."""

    def __init__(self, module: Callable[..., Any], compute: ComputeDevice = CPU) -> None:
        self.module = module
        self.compute = compute

    def run(self, batches: Sequence[Inputs]) -> list[Outputs]:
        """Run the module on each batch, on its device and in float32; the outputs are left there."""
        with torch.no_grad():
            return [flat_outputs(self.module(*to_channels_last(self.compute.put(inputs)))) for inputs in batches]


def stream_seed(seed: int, epoch: int) -> int:
    """Return the seed of one epoch of the training stream."""
    return (seed * 1_000_003 + epoch * 7919 + 1) % 2**31


def checksum(inputs: Inputs) -> Tensor:
    """Return a 64-bit fingerprint of a batch, to check that a stream repeats: of types, shapes, and values in order."""
    digest = hashlib.blake2b(digest_size=8)
    for value in inputs:
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return torch.tensor(int.from_bytes(digest.digest(), "little", signed=True))


class TeacherOutputs:
    """The training stream: batches with the teacher's outputs, epoch by epoch.

    Args:
        folder: Where the files are kept; its name includes what they depend on (task and teacher).
        task: Source of the batches.
        teacher: The teacher; a module or a function of inputs is wrapped in a ``ModuleTeacher``.
        epochs: Number of epochs that will be requested.
        seed: Seed of the stream.
        ranks: The processes that train together; each gets its part of every batch.
    """

    def __init__(
        self,
        folder: Path,
        task: CheckedTask,
        teacher: Teacher | Callable[..., Any],
        *,
        epochs: int,
        seed: int,
        ranks: Ranks = ALONE,
    ) -> None:
        self.folder = folder
        self.task = task
        self.teacher = teacher if isinstance(teacher, Teacher) else ModuleTeacher(teacher)
        self.epochs = epochs
        self.seed = seed
        self.ranks = ranks
        self._plan: CachePlan | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, epoch: int) -> Path:
        """Return the path of an epoch's outputs."""
        return self.folder / f"seed{self.seed}-epoch{epoch}.safetensors"

    def chunks(self, epoch: int) -> Iterator[list[tuple[int, Batch]]]:
        """Yield an epoch's numbered batches, in chunks of the teacher's size."""
        return split_into_chunks(self.task.train_epoch(stream_seed(self.seed, epoch)), self.teacher.chunk_bytes)

    @property
    def plan(self) -> CachePlan:
        """How this stream's outputs are kept; decided by the process that comes first."""
        path = self.folder / f"seed{self.seed}-plan.json"
        while self._plan is None:
            if path.exists():
                self._plan = from_json(path.read_bytes(), CachePlan)
                break
            with try_lock(path.with_suffix(".lock")) as acquired:
                if acquired and not path.exists():
                    write_whole(path, to_json(self.make_plan()))
            if not acquired:
                time.sleep(_POLL_SECONDS)
        return self._plan

    def make_plan(self) -> CachePlan:
        """Decide from the first batch; the rest of the epoch is only counted, if its loader has no length."""
        chunks = self.chunks(0)
        first = next(chunks)
        outputs = self.teacher.run([first[0][1][0]])
        count = self.task.train_length(stream_seed(self.seed, 0)) or len(first) + sum(map(len, chunks))
        floats = sum(value.nbytes for batch in outputs for value in batch if value.dtype == torch.float32)
        others = sum(value.nbytes for batch in outputs for value in batch) - floats
        epoch_bytes = {"float32": floats + others, "float16": floats / 2 + others}
        limit = min(free_memory() * _MEMORY_RATIO, shutil.disk_usage(self.folder).free * _DISK_RATIO / self.epochs)
        for kept in ("float32", "float16"):
            if epoch_bytes[kept] * count <= limit and (kept == "float32" or are_halvable(outputs)):
                return CachePlan(batches=count, kept=kept)
        return CachePlan(batches=count, kept=None)

    def prepare(self, epoch: int) -> int:
        """Make sure that an epoch's outputs exist, if they are kept; return the number of batches."""
        if self.plan.kept is None:
            return self.plan.batches
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
            count = output_count = 0
            for chunk in self.chunks(epoch):
                count += len(chunk)
                results = self.teacher.run([inputs for _, (inputs, _) in chunk])
                for (index, (inputs, _)), outputs in zip(chunk, results, strict=True):
                    output_count = len(outputs)
                    tensors[f"{index}/checksum"] = checksum(inputs)
                    tensors |= {f"{index}/{position}": self._stored(value) for position, value in enumerate(outputs)}
            metadata = {"batches": str(count), "outputs": str(output_count)}
            write_whole(self.path(epoch), lambda partial: save_file(tensors, partial, metadata=metadata))
            return True

    def _stored(self, value: Tensor) -> Tensor:
        """Return an output as it is kept."""
        is_halved = self.plan.kept == "float16" and value.dtype == torch.float32
        return (value.half() if is_halved else value).cpu().contiguous()

    def batches(self, epoch: int) -> Iterator[TaughtBatch]:
        """Yield an epoch's batches with the teacher's outputs.

        A batch that differs from the one in the file (a loader may ignore its seed) goes through the teacher again.
        """
        self.prepare(epoch)
        if self.plan.kept is None:
            for chunk in self.chunks(epoch):
                parts = [self._own_part(TaughtBatch(inputs, targets, ())) for _, (inputs, targets) in chunk]
                results = self.teacher.run([part.inputs for part in parts])
                for part, outputs in zip(parts, results, strict=True):
                    yield part._replace(teacher_outputs=outputs)
            return
        with safe_open(self.path(epoch), "pt") as stored:
            names = set(stored.keys())
            output_count = int(stored.metadata()["outputs"])
            for chunk in self.chunks(epoch):
                unchanged = [
                    f"{index}/checksum" in names
                    and torch.equal(stored.get_tensor(f"{index}/checksum"), checksum(inputs))
                    for index, (inputs, _) in chunk
                ]
                changed = [inputs for (_, (inputs, _)), same in zip(chunk, unchanged, strict=True) if not same]
                recomputed = iter(self.teacher.run(changed) if changed else [])
                for (index, (inputs, targets)), same in zip(chunk, unchanged, strict=True):
                    if same:
                        kept = (stored.get_tensor(f"{index}/{position}") for position in range(output_count))
                        outputs = tuple(map(widen_inputs, kept) if self.plan.kept == "float16" else kept)
                    else:
                        outputs = next(recomputed)
                    yield self._own_part(TaughtBatch(inputs, targets, outputs))

    def _own_part(self, batch: TaughtBatch) -> TaughtBatch:
        return own_part(batch, self.task.axes, self.ranks) if self.ranks.size > 1 else batch


def are_halvable(outputs: Sequence[Outputs]) -> bool:
    """Tell whether float16 holds outputs well enough."""
    floats = [value for batch in outputs for value in batch if value.dtype == torch.float32]
    return all(
        bool((value.half().float() - value).abs().max() <= _HALF_TOLERANCE * value.abs().max()) for value in floats
    )


def free_memory() -> float:
    """Return the bytes of this machine's memory that are free or hold files that can be read again."""
    facts = Path("/proc/meminfo")
    found = re.search(r"^MemAvailable: *(\d+) kB", facts.read_text(), re.MULTILINE) if facts.is_file() else None
    if found:
        return 1024.0 * int(found[1])
    names = os.sysconf_names
    if "SC_AVPHYS_PAGES" not in names:
        return _UNKNOWN_MEMORY_BYTES
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


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
