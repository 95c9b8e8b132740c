"""``Profile``: a target's device and runtime, how files are timed on it, and its default limits."""

from __future__ import annotations

from typing import Literal

import msgspec

from edgeopt.records.base import Record
from edgeopt.records.budget import Budget

Precision = Literal["fp32", "fp16", "int8"]
GraphLevel = Literal["disabled", "basic", "extended", "all"]
"""How far ONNX Runtime optimizes the graph on loading."""


OrtPlatform = Literal["any", "arm", "amd64"]
"""Processors that a file in ONNX Runtime's own format is made for. ``amd64``: only the very kind that made it, because
weights are laid out for its vectors."""


class TimingRule(Record, frozen=True, kw_only=True):
    """How long to time a file. A process ends when *both* minimums are met, or at ``max_seconds``."""

    processes: int
    """Fresh processes; runs within one are not independent."""
    warmup_runs: int
    warmup_seconds: float
    min_runs: int
    min_seconds: float
    max_seconds: float


Operators = Literal["runtime", "qdq"]


class Runtime(Record, frozen=True, kw_only=True, omit_defaults=True):
    """How a session runs: the settings that change a file's time or memory, without any limit."""

    providers: tuple[str, ...]
    provider_libraries: dict[str, str] = {}  # noqa: RUF012 - records copy their defaults
    """Left out of JSON and of keys if there are none: bundles and workspaces from before plug-ins keep their names."""
    threads: int
    affinity: tuple[int, ...]
    allow_spinning: bool
    memory_arena: bool
    graph_level: GraphLevel


class Profile(Record, frozen=True, kw_only=True):
    """A target. Each file ``targets/*.toml`` holds one, with the same keys."""

    name: str
    title: str
    """One line for people."""
    device: str
    """Where workers run: ``local:``, ``ssh://``, ``adb:`` or ``browser:``; see ``edgeopt.device.open``."""
    stand_in: bool
    """True if ``device`` only stands in for the target; nothing is then proven on the target."""
    providers: tuple[str, ...]
    """ONNX Runtime execution providers, first choice first; plug-ins too."""
    provider_libraries: dict[str, str] = {}  # noqa: RUF012 - records copy their defaults
    """From a provider to the path, on the device, of the library that brings it as a plug-in. A plug-in of an installed
    package needs none."""
    threads: int
    """``intra_op_num_threads``."""
    affinity: tuple[int, ...] = ()
    """The cores that workers are bound to, as the system numbers them; empty lets the system choose."""
    allow_spinning: bool
    memory_arena: bool
    """``enable_cpu_mem_arena``."""
    graph_level: GraphLevel = "all"
    operators: Operators = "runtime"
    """``runtime``: files may contain ONNX Runtime's own integer operators, which are compact, and which only its CPU
    provider runs. ``qdq``: int8 is pairs of QuantizeLinear and DequantizeLinear around ONNX's operators, which the
    compilers of accelerators and other runtimes read; weights of what stays in float may be stored as integers."""
    keep_names: bool = False
    """Whether inner values of the file keep readable names, which cost bytes; otherwise the manifest has them."""
    ort_format: bool = False
    """Whether the bundle also has the model in ONNX Runtime's own format, for apps that build a reduced runtime."""
    precisions: tuple[Precision, ...]
    """Precisions that may ship, in the order of preference if size does not decide."""
    activation_type: Literal["uint8", "int8"]
    """Of int8 activations; weights are int8, per channel."""
    channel_step: int
    """Widths are rounded to a multiple of this; see ``group_step`` in ``edgeopt.planning.widths`` for heads, groups and
    experts."""
    max_opset: int
    max_ir: int
    min_onnxruntime: str
    """The oldest ONNX Runtime that has to load the file."""
    shapes: tuple[str, ...] = ()
    """Shapes of inputs with dynamic dimensions at which the limits apply, such as ``input=1x3x480x640``."""
    timing: TimingRule
    limits: Budget

    @property
    def on_stand_in(self) -> Profile:
        """The same profile on a stand-in, whose cores have different numbers."""
        return msgspec.structs.replace(self, affinity=())

    @property
    def keeping_names(self) -> Profile:
        """The same profile for files whose inner values keep readable names."""
        return msgspec.structs.replace(self, keep_names=True)

    @property
    def with_ort_format(self) -> Profile:
        """The same profile for a bundle that also has the model in ONNX Runtime's own format."""
        return msgspec.structs.replace(self, ort_format=True)

    @property
    def on_host(self) -> Profile:
        """The same profile on a host that predicts the target's latency: any core, and only the CPU provider."""
        return msgspec.structs.replace(self, affinity=(), providers=("CPUExecutionProvider",))

    @property
    def runtime(self) -> Runtime:
        """How a session runs on the target."""
        return Runtime(
            providers=self.providers,
            provider_libraries=self.provider_libraries,
            threads=self.threads,
            affinity=self.affinity,
            allow_spinning=self.allow_spinning,
            memory_arena=self.memory_arena,
            graph_level=self.graph_level,
        )
