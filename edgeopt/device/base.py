"""What a device is: a place that runs the worker. Every device keeps this protocol."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from edgeopt.records.base import Record
from edgeopt.records.measurement import Environment
from edgeopt.records.profile import GraphLevel


class WorkerRequest(Record, frozen=True, kw_only=True):
    """What one worker process has to do. Paths are this machine's; a remote device copies the files."""

    mode: Literal["time", "memory", "outputs", "describe", "serve", "nodes", "convert"]
    model: str = ""
    """An ``.onnx``; or an ``.ort``, whose weights then stay in the file, mapped into memory."""
    models: tuple[str, ...] = ()
    """What mode ``nodes`` profiles, in turns."""
    min_models: int = 1
    """How many of ``models`` have a turn, however long it takes."""
    rounds: int = 1
    """Turns of each of ``models``."""
    inputs: str = ""
    """A ``.npz``; empty for random inputs."""
    outputs: str = ""
    """Where mode ``outputs`` writes its ``.npz``, and mode ``convert`` the model in ONNX Runtime's own format."""
    providers: tuple[str, ...] = ()
    allow_fallback: tuple[str, ...] = ()
    threads: int = 1
    allow_spinning: bool = False
    memory_arena: bool = True
    affinity: tuple[int, ...] = ()
    """Cores that the process is bound to; empty lets the system choose."""
    graph_level: GraphLevel = "all"
    """With ``disabled`` every node of the file shows in the profile."""
    prepacking: bool = True
    """Whether kernels may keep their weights in a layout of their own, beside the file's or in its place."""
    batch_size: int = 1
    warmup_runs: int = 0
    warmup_seconds: float = 0.0
    min_runs: int = 1
    min_seconds: float = 0.0
    max_seconds: float = 0.0


class Worker(Protocol):
    """A worker process that stays: one session, asked for block after block."""

    def ask(self, message: Mapping[str, Any] | Record, timeout_seconds: float) -> dict[str, Any]:
        """Send one line and return the answer's fields.

        Raises:
            DeviceError: the worker died or did not answer in time.
            WorkerRefused: it answered with a reason why it could not.
        """
        ...


class Device(Protocol):
    """Where workers run."""

    @property
    def uri(self) -> str:
        """How the user names it."""
        ...

    def describe(self) -> tuple[str, Environment]:
        """Return the name of the hardware and what a reader needs to judge its numbers, as of now."""
        ...

    def run(self, request: WorkerRequest, timeout_seconds: float, variables: Mapping[str, str]) -> dict[str, Any]:
        """Run one fresh worker process to its end and return the answer's fields.

        Args:
            request: What to do.
            timeout_seconds: When to give up and end the process.
            variables: Environment variables to set in the process.

        Raises:
            DeviceError: the worker died or did not answer in time.
            WorkerRefused: it answered with a reason why it could not.
        """
        ...

    def start(self) -> AbstractContextManager[Worker]:
        """Start a worker that stays until the block of the ``with`` ends; its first message is a ``serve`` request."""
        ...


class WorkerRefused(Exception):  # noqa: N818 - an answer, made an error of edgeopt's by ``edgeopt.bench.requests``
    """The worker answered that it could not; its ``kind`` is one of the worker's ``WorkerError``, or ``device``."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
