"""What every stage of one build shares."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version

from edgeopt.device.base import Device as DeviceConnection
from edgeopt.pipeline.task_data import TaskData
from edgeopt.pipeline.torch_process.pool import TorchPool
from edgeopt.records.base import Record
from edgeopt.records.budget import Budget
from edgeopt.records.calibration import Calibration
from edgeopt.records.measurement import DeviceInfo, Environment
from edgeopt.records.profile import Profile
from edgeopt.store.ledger import Ledger
from edgeopt.store.workspace import Workspace

MAKERS = ("edgeopt", "torch", "onnx", "onnxruntime", "onnxscript", "onnxsim")
"""Packages whose versions are part of an artifact's name: another version may make another file."""


@cache
def maker_versions() -> dict[str, str]:
    """Return the version of every package that makes artifacts."""
    return {name: version(name) for name in MAKERS}


class Effort(Record, frozen=True, kw_only=True):
    """How hard a build tries; part of what names a finished search."""

    rounds: int
    """Rounds of trainings; each halves the bracket around the smallest good size, or better."""
    candidates: int
    """Trainings side by side in a round."""
    epochs: int
    sparsities: tuple[float, ...]
    """Shares of zero weights to try on the smallest good network, where the budget counts the download."""
    low_rank: bool
    """Whether layers of the smallest good network are tried as two."""


class Clock:
    """Adds up the wall time of each stage."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def elapsed(self) -> float:
        """Return the seconds since the build began."""
        return time.perf_counter() - self.began

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count a block's time under ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Build:
    """One build's world."""

    task: str
    """As the user named it; torch workers load it again."""
    data: TaskData
    profile: Profile
    budget: Budget
    effort: Effort
    connection: DeviceConnection
    device: DeviceInfo
    calibration: Calibration | None
    """What the target's latency is estimated from; None where it is measured."""
    environment: Environment
    allow_fallback: tuple[str, ...]
    workspace: Workspace
    ledger: Ledger
    trainers: TorchPool
    fixed_workers: bool
    """The user said how many trainings go side by side; else a short trial does."""
    progress: Callable[[str, str], None]
    time_limit_seconds: float | None
    seed: int = 0
    clock: Clock = field(default_factory=Clock)

    @property
    def out_of_time(self) -> bool:
        """Whether the time that the user gave is over."""
        return self.time_limit_seconds is not None and self.clock.elapsed() > self.time_limit_seconds

    @property
    def versions(self) -> str:
        """The versions of what makes artifacts, as part of their keys."""
        return " ".join(f"{name}-{number}" for name, number in maker_versions().items())

    @property
    def fingerprint(self) -> str:
        """The task's content."""
        return self.data.fingerprint
