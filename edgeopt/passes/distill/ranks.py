"""Data-parallel training: several processes, the ranks, train one network together.

Each rank takes its part of every batch, and gradients are added up over all ranks before each step, as with torchrun
and ``DistributedDataParallel``. A batch is shared out, not multiplied: rates and number of steps are those of one
process, and so is the network, up to rounding and the statistics of batch norm, which each rank takes over its own
part; they are averaged after each epoch.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from edgeopt.errors import LOST_RANK, CrashError

A = TypeVar("A")

_TIMEOUT = timedelta(days=7)
"""Ranks wait for the first one to evaluate. A rank that died is noticed by the parent, which ends the others."""
_BUCKET_ELEMENTS = 16_000_000
"""Gradients that are added up at a time; they are copied meanwhile."""
_STAGE = "distill"


class Ranks:
    """A single process that trains; also the interface of ``ConnectedRanks``."""

    rank = 0
    size = 1

    def all_have(self, value: bool) -> bool:
        """Tell whether ``value`` is true on every rank."""
        return value

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the ranks; a gradient that no rank has stays None."""

    def add(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks."""
        return value

    def average(self, values: Mapping[str, Tensor]) -> None:
        """Give all ranks the same tensors: the mean of real numbers, and the first rank's of anything else."""

    def copy_first(self, values: Mapping[str, Tensor]) -> None:
        """Give all ranks the first rank's tensors, in place.

        Raises:
            CrashError: the ranks have other names or shapes.
        """

    def first(self, function: Callable[[], float]) -> float:
        """Call a function on the first rank, and return its value on all of them."""
        return function()

    def while_all(self, items: Iterable[A]) -> Iterator[A]:
        """Yield items as long as every rank has one."""
        iterator = iter(items)
        while self.all_have((item := next(iterator, None)) is not None):
            assert item is not None
            yield item


ALONE = Ranks()


class ConnectedRanks(Ranks):
    """One of several processes that train one network together; see ``connect_ranks``.

    Args:
        rank: From 0.
        size: How many there are.
        device: Where this one trains.
    """

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank = rank
        self.size = size
        self.device = device

    def all_have(self, value: bool) -> bool:
        """Tell whether ``value`` is true on every rank."""
        flag = torch.tensor(int(value), device=self.device)
        with _as_lost_rank():
            dist.all_reduce(flag, dist.ReduceOp.MIN)
        return bool(flag.item())

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up gradients in buckets; a rank without one adds zeros."""
        present = torch.tensor([value.grad is not None for value in parameters], dtype=torch.int32, device=self.device)
        with _as_lost_rank():
            dist.all_reduce(present, dist.ReduceOp.MAX)
            for bucket in _buckets([value for value, one in zip(parameters, present.tolist(), strict=True) if one]):
                self._add_bucket(bucket)

    def _add_bucket(self, parameters: Sequence[nn.Parameter]) -> None:
        gradients = [torch.zeros_like(value) if value.grad is None else value.grad for value in parameters]
        flat = torch.cat([gradient.reshape(-1).float() for gradient in gradients])
        dist.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for value, gradient, part in zip(parameters, gradients, parts, strict=True):
            value.grad = gradient.copy_(part.view(gradient.shape))

    def add(self, value: Tensor) -> Tensor:
        """Return the sum over the ranks."""
        total = value.clone()
        with _as_lost_rank():
            dist.all_reduce(total)
        return total

    @torch.no_grad()
    def average(self, values: Mapping[str, Tensor]) -> None:
        """Average real numbers; copy anything else."""
        numbers = {name: value for name, value in values.items() if value.is_floating_point()}
        for value in numbers.values():
            value.copy_(self.add(value.float().contiguous()) / self.size)
        self._copy_first({name: value for name, value in values.items() if name not in numbers})

    @torch.no_grad()
    def copy_first(self, values: Mapping[str, Tensor]) -> None:
        """Compare names and shapes, then copy."""
        text = repr([(name, tuple(value.shape)) for name, value in values.items()]).encode()
        digest = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little")
        found = torch.tensor([digest, -digest], device=self.device)
        with _as_lost_rank():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        if found.tolist() != [digest, -digest]:
            raise CrashError(_STAGE, "the processes of this training have made different networks of one candidate.")
        self._copy_first(values)

    def _copy_first(self, values: Mapping[str, Tensor]) -> None:
        for value in values.values():
            sent = value.to(self.device, torch.uint8 if value.dtype == torch.bool else value.dtype).contiguous()
            with _as_lost_rank():
                dist.broadcast(sent, 0)
            value.copy_(sent)

    def first(self, function: Callable[[], float]) -> float:
        """Send the first rank's value."""
        found = torch.tensor(function() if self.rank == 0 else 0.0, dtype=torch.float64, device=self.device)
        with _as_lost_rank():
            dist.broadcast(found, 0)
        return float(found)


@contextmanager
def connect_ranks(rank: int, size: int, meeting: Path, device: torch.device) -> Iterator[Ranks]:
    """Connect with the other ranks for the length of a block; a single process trains by itself.

    Args:
        rank: Of this process, from 0.
        size: How many processes train together.
        meeting: A file that no other training uses, through which they find each other.
        device: Where this process trains: NCCL connects CUDA devices, Gloo processors.
    """
    if size == 1:
        yield ALONE
        return
    if device.type != "cuda":  # a machine's own name may not resolve, and all ranks are on this machine
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    with _as_lost_rank():
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"file://{meeting}",
            rank=rank,
            world_size=size,
            timeout=_TIMEOUT,
            device_id=device if device.type == "cuda" else None,
        )
    try:
        yield ConnectedRanks(rank, size, device)
    finally:
        dist.destroy_process_group()


@contextmanager
def _as_lost_rank() -> Iterator[None]:
    """Name an error of the connection as what it means."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise CrashError(_STAGE, f"{LOST_RANK}: {error}") from error


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    for value in parameters:
        bucket.append(value)
        if sum(one.numel() for one in bucket) >= _BUCKET_ELEMENTS:
            yield bucket
            bucket = []
    if bucket:
        yield bucket
