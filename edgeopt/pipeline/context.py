"""What every stage of one build shares."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import version

import msgspec

from edgeopt.bench.run_target import RunTarget
from edgeopt.device.base import Device
from edgeopt.pipeline.judged_sizes import DimensionSizes
from edgeopt.pipeline.task_data import TaskData
from edgeopt.pipeline.torch_process.pool import TorchPool
from edgeopt.records.base import Record
from edgeopt.records.budget import Budget
from edgeopt.records.calibration import Calibration
from edgeopt.records.measurement import DeviceInfo, Environment
from edgeopt.records.profile import Profile
from edgeopt.records.unseen_rows import UnseenRows
from edgeopt.records.width_rules import WidthRules
from edgeopt.store.keys import BuildFacts, Keys
from edgeopt.store.ledger import Ledger
from edgeopt.store.workspace import Workspace
from edgeopt.task import CheckedTask
from edgeopt.tasks.given.onnx_file import OnnxTask

MAKERS = ("edgeopt", "torch", "onnx", "onnxruntime", "onnxscript", "onnxsim")
"""Packages whose versions are part of an artifact's key: another version may make another file."""


_ROUNDS = 2
_CANDIDATES = 2
MAX_CANDIDATES = 16
"""Of a round, on a machine with enough cores or GPUs; each takes memory of its own."""
_QUICK_EPOCHS = 2
_RESERVED_RATIO = 0.1
"""Of a time limit: after the trainings, for files of what they have reached."""
_MAX_RESERVED_SECONDS = 300.0
"""Of the same."""
_SPARSITIES = (0.5, 0.75)


@cache
def maker_versions() -> dict[str, str]:
    """Return the version of every package that makes artifacts."""
    return {name: version(name) for name in MAKERS}


class Effort(Record, frozen=True, kw_only=True):
    """How hard a build tries; part of the key of a finished search."""

    rounds: int
    """Rounds of trainings; each at least halves the range around the smallest size that keeps the score."""
    candidates: int
    """Sizes that a round tries; more if more trainings can run at a time."""
    epochs: int
    min_steps: int = 0
    """Steps that a training has at least, by more epochs if necessary."""
    sparsities: tuple[float, ...]
    """Shares of zero weights to try on the smallest network that keeps the score, if the download size counts."""
    low_rank: bool
    """Whether to try factorizing layers of the smallest network that keeps the score."""
    few_bits: bool
    """Whether to train that network for weights in 4 bits, if rounding them costs too much."""

    @property
    def is_first_look(self) -> bool:
        """Whether there is one round of short trainings (``--quick``)."""
        return self.rounds == 1


def effort_of(task: CheckedTask | OnnxTask, quick: bool) -> Effort:
    """Return how hard a build tries."""
    epochs, min_steps = (task.training.epochs, task.training.min_steps) if task.training else (0, 0)
    effort = Effort(
        rounds=_ROUNDS,
        candidates=_CANDIDATES,
        epochs=epochs,
        min_steps=min_steps,
        sparsities=_SPARSITIES,
        low_rank=True,
        few_bits=True,
    )
    if not quick:
        return effort
    return msgspec.structs.replace(
        effort, rounds=1, epochs=min(epochs, _QUICK_EPOCHS), min_steps=0, sparsities=_SPARSITIES[:1], low_rank=False,
        few_bits=False,
    )  # fmt: skip


INTERRUPTED = "before an interruption"
"""The stage of an earlier build that this one goes on from."""


class Clock:
    """Adds up the wall time of each stage."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self._inside = 0.0
        """Seconds of the stages inside the one that is being counted."""

    def elapsed(self) -> float:
        """Return the seconds since the build began."""
        return time.perf_counter() - self.began

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count a block's time under ``name``, except that of stages inside it."""
        start, outside, self._inside = time.perf_counter(), self._inside, 0.0
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - self._inside
            self._inside = outside + spent

    def count_rest(self) -> None:
        """Count the time of this build that belongs to no stage under ``other``, so that the sum is the whole."""
        counted = sum(seconds for name, seconds in self.seconds.items() if name not in (INTERRUPTED, "other"))
        self.seconds["other"] = max(0.0, self.elapsed() - counted)


@dataclass(frozen=True)
class Build:
    """One build: the task, the limits, the device, and the places where finished work is kept."""

    task: str
    """As the user named it; torch processes load it again."""
    data: TaskData
    profile: Profile
    budget: Budget
    effort: Effort
    device: Device
    device_info: DeviceInfo
    calibration: Calibration | None
    """The target's latency is estimated from it; None if it is measured."""
    environment: Environment
    """Of the device."""
    allow_fallback: tuple[str, ...]
    workspace: Workspace
    ledger: Ledger
    torch_pool: TorchPool
    gpus: str
    """The GPUs that train, in words; empty if the processor trains."""
    fixed_workers: bool
    """Whether the user set the number of parallel trainings; otherwise a short trial sets it."""
    progress: Callable[[str, str], None]
    time_limit_seconds: float | None
    sizes: tuple[DimensionSizes, ...] = ({},)
    """Of the dynamic dimensions besides the batch, at which limits have to be kept; the largest case is first."""
    width_rules: WidthRules = field(default_factory=WidthRules)
    """Of the task, ``edgeopt.toml`` and the command line."""
    unseen_rows: UnseenRows = field(default_factory=UnseenRows)
    """Of the same."""
    seed: int = 0
    clock: Clock = field(default_factory=Clock)

    @property
    def is_out_of_time(self) -> bool:
        """Whether the user's time limit has passed, or ``edgeopt stop`` asked the build to end."""
        if self.is_stopped:
            return True
        return self.time_limit_seconds is not None and self.clock.elapsed() > self.time_limit_seconds

    @property
    def is_stopped(self) -> bool:
        """Whether ``edgeopt stop`` asked the build to end."""
        return self.workspace.stop_file.exists()

    @property
    def training_seconds(self) -> float | None:
        """How long after its begin the build may train; the rest of its time is for files. None without a limit."""
        limit = self.time_limit_seconds
        return None if limit is None else limit - min(_RESERVED_RATIO * limit, _MAX_RESERVED_SECONDS)

    @property
    def may_train(self) -> bool:
        """Whether there is time for trainings."""
        return not self.is_stopped and (self.training_seconds is None or self.clock.elapsed() <= self.training_seconds)

    @property
    def deadline(self) -> float | None:
        """When trainings end, in seconds since the epoch; None without a time limit."""
        if self.training_seconds is None:
            return None
        return time.time() + self.training_seconds - self.clock.elapsed()

    @cached_property
    def run_target(self) -> RunTarget:
        """Where and how this build's files run, on one batch of real inputs of the largest size."""
        return self.run_targets[0]

    @cached_property
    def run_targets(self) -> tuple[RunTarget, ...]:
        """The same for each size at which limits have to be kept."""
        batch_size = self.budget.batch_size
        return tuple(
            RunTarget(
                device=self.device,
                profile=self.profile,
                kind=self.device_info.kind,
                allow_fallback=self.allow_fallback,
                batch_size=batch_size,
                inputs=self.data.timing_inputs(batch_size, sizes),
                states=self.data.states,
            )
            for sizes in self.sizes
        )

    @cached_property
    def sample_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of one sample of the inputs, at the largest size."""
        return self.data.sample_shapes(self.sizes[0])

    @cached_property
    def keys(self) -> Keys:
        """Makes the keys of everything that this build keeps."""
        return Keys(
            BuildFacts(
                task=self.data.fingerprint,
                makers=maker_versions(),
                seed=self.seed,
                max_opset=self.profile.max_opset,
                max_ir=self.profile.max_ir,
                device=self.device_info,
                device_onnxruntime=self.environment.onnxruntime,
                runtime=self.profile.runtime,
                allow_fallback=self.allow_fallback,
                batch_size=self.budget.batch_size,
                sizes=self.sizes,
                timing=self.profile.timing,
                calibration=self.calibration,
            )
        )

    @property
    def fingerprint(self) -> str:
        """Names the task's content; names of files contain it."""
        return self.data.fingerprint
