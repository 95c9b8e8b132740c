"""``Profile``: what a target is, how it is timed, and the limits it has by default."""

from __future__ import annotations

from typing import Literal

import msgspec

from edgeopt.records.base import Record
from edgeopt.records.budget import Budget

Precision = Literal["fp32", "fp16", "int8"]
GraphLevel = Literal["disabled", "basic", "extended", "all"]
"""How far ONNX Runtime optimizes the graph on loading."""


class TimingRule(Record, frozen=True, kw_only=True):
    """When a timing has seen enough. A process ends when *both* minimums are met, or at ``max_seconds``."""

    processes: int
    """Fresh processes; runs within one are not independent."""
    warmup_runs: int
    warmup_seconds: float
    min_runs: int
    min_seconds: float
    max_seconds: float


class Runtime(Record, frozen=True, kw_only=True):
    """How a session runs: what changes a file's time or memory, and no limit."""

    providers: tuple[str, ...]
    threads: int
    affinity: tuple[int, ...]
    allow_spinning: bool
    memory_arena: bool
    graph_level: GraphLevel


class Profile(Record, frozen=True, kw_only=True):
    """A target device. ``targets/*.toml`` holds one each, with the same keys."""

    name: str
    title: str
    """One line for people."""
    device: str
    """Where workers run: ``local:``, ``ssh://``, ``adb:`` or ``browser:``; see ``edgeopt.device.open``."""
    stand_in: bool
    """True where ``device`` only stands in for the real one; nothing is then proven on the target."""
    providers: tuple[str, ...]
    """ONNX Runtime execution providers, first choice first."""
    threads: int
    """``intra_op_num_threads``."""
    affinity: tuple[int, ...] = ()
    """The cores that workers are bound to, as the system numbers them; empty lets the system choose."""
    allow_spinning: bool
    memory_arena: bool
    """``enable_cpu_mem_arena``."""
    graph_level: GraphLevel = "all"
    precisions: tuple[Precision, ...]
    """What may ship, in the order of preference where size does not decide."""
    activation_type: Literal["uint8", "int8"]
    """Of int8 activations; weights are int8 per channel."""
    channel_step: int
    """Widths are rounded to a multiple of this."""
    max_opset: int
    max_ir: int
    min_onnxruntime: str
    """The oldest ONNX Runtime that has to load the file."""
    timing: TimingRule
    limits: Budget

    @property
    def on_stand_in(self) -> Profile:
        """The same on a machine that only stands in for the target, whose cores have other numbers."""
        return msgspec.structs.replace(self, affinity=())

    @property
    def on_host(self) -> Profile:
        """The same on a host whose processor foretells the target: its own cores, and no provider but the processor."""
        return msgspec.structs.replace(self, affinity=(), providers=("CPUExecutionProvider",))

    @property
    def runtime(self) -> Runtime:
        """How a session runs on it."""
        return Runtime(
            providers=self.providers,
            threads=self.threads,
            affinity=self.affinity,
            allow_spinning=self.allow_spinning,
            memory_arena=self.memory_arena,
            graph_level=self.graph_level,
        )
