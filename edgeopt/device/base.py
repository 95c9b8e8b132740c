"""The protocol that every device follows: it runs workers and returns their answers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from edgeopt.records.base import Record
from edgeopt.records.measurement import Environment
from edgeopt.records.profile import GraphLevel


class WorkerRequest(Record, frozen=True, kw_only=True):
    """The work of one worker process. Paths are this machine's; a remote device copies the files."""

    mode: Literal["time", "memory", "outputs", "describe", "serve", "nodes", "convert"]
    model: str = ""
    """An ``.onnx``; or an ``.ort``, whose weights then stay in the file, mapped into memory."""
    models: tuple[str, ...] = ()
    """The files that mode ``nodes`` profiles in turn."""
    min_models: int = 1
    """How many of ``models`` get a turn, however long that takes."""
    rounds: int = 1
    """Turns for each of ``models``."""
    inputs: str = ""
    """A ``.npz``; empty for random inputs."""
    outputs: str = ""
    """Path for the ``.npz`` of mode ``outputs``, or the model in ONNX Runtime's own format of mode ``convert``."""
    providers: tuple[str, ...] = ()
    """Mode ``describe`` only checks that they start."""
    provider_libraries: dict[str, str] = {}  # noqa: RUF012 - records copy their defaults
    """Of providers that are plug-ins without an installed package, by name; paths are the device's."""
    allow_fallback: tuple[str, ...] = ()
    threads: int = 1
    allow_spinning: bool = False
    memory_arena: bool = True
    affinity: tuple[int, ...] = ()
    """Cores to bind the process to; empty lets the system choose."""
    graph_level: GraphLevel = "all"
    """With ``disabled``, every node of the file appears in the profile."""
    prepacking: bool = True
    """Whether kernels may keep weights in their own layout, next to the file's or instead of it."""
    states: dict[str, str] = {}  # noqa: RUF012 - records copy their defaults
    """Input to output: in mode ``outputs`` a batch without the input gets this output of the batch before."""
    batch_size: int = 1
    warmup_runs: int = 0
    warmup_seconds: float = 0.0
    min_runs: int = 1
    min_seconds: float = 0.0
    max_seconds: float = 0.0


class Worker(Protocol):
    """A worker process that stays: one session that runs block after block."""

    def ask(self, message: Mapping[str, Any] | Record, timeout_seconds: float) -> dict[str, Any]:
        """Send one line and return the answer's fields.

        Raises:
            DeviceError: the worker died or did not answer in time.
            WorkerRefused: it answered that it could not, with the reason.
        """
        ...


class Device(Protocol):
    """A machine that runs workers."""

    @property
    def uri(self) -> str:
        """How the user names it."""
        ...

    def describe(self) -> tuple[str, Environment]:
        """Return the name of the hardware, and its current state, which a reader needs to judge its numbers."""
        ...

    def run(self, request: WorkerRequest, timeout_seconds: float, variables: Mapping[str, str]) -> dict[str, Any]:
        """Run one fresh worker process to its end and return the answer's fields.

        Args:
            request: The work to do.
            timeout_seconds: Time after which the process is stopped.
            variables: Environment variables to set in the process.

        Raises:
            DeviceError: the worker died or did not answer in time.
            WorkerRefused: it answered that it could not, with the reason.
        """
        ...

    def start(self) -> AbstractContextManager[Worker]:
        """Start a worker that stays until the ``with`` block ends; its first message must be a ``serve`` request."""
        ...


class WorkerRefused(Exception):  # noqa: N818 - an answer; ``edgeopt.bench.requests`` turns it into one of our errors
    """The worker answered that it could not; ``kind`` is that of the worker's ``WorkerError``, or ``device``."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
