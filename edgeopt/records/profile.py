"""``Profile``: what a target is, how it is timed, and the limits it has by default."""

from __future__ import annotations

from typing import Literal

from edgeopt.records.base import Record
from edgeopt.records.budget import Budget

Precision = Literal["fp32", "fp16", "int8"]


class TimingRule(Record, frozen=True, kw_only=True):
    """When a timing has seen enough. A process ends when *both* minimums are met, or at ``max_seconds``."""

    processes: int
    """Fresh processes; runs within one are not independent."""
    warmup_runs: int
    warmup_seconds: float
    min_runs: int
    min_seconds: float
    max_seconds: float


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
    allow_spinning: bool
    memory_arena: bool
    """``enable_cpu_mem_arena``."""
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
