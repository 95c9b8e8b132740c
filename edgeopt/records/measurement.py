"""``Measurement`` and ``Comparison``: raw samples of one file on one device. Statistics are computed when read."""

from __future__ import annotations

from typing import Literal

from edgeopt.records.base import Record
from edgeopt.records.profile import Runtime, TimingRule

DeviceKind = Literal["measured", "stand-in", "emulated", "estimated"]


class DeviceInfo(Record, frozen=True, kw_only=True):
    """Which machine ran it."""

    uri: str
    kind: DeviceKind
    id: str
    """Names the hardware well enough that measurements of different hardware are never confused."""


class Environment(Record, frozen=True, kw_only=True):
    """The machine and its software, as a reader needs them to judge the numbers."""

    processor: str
    features: tuple[str, ...]
    """Instruction sets that matter for inference, such as ``avx2``, ``avx512_vnni``."""
    cores: int
    memory_bytes: int
    system: str
    python: str
    onnxruntime: str
    numpy: str
    governor: str | None
    temperature_c: float | None
    providers: tuple[str, ...] = ()
    """Execution providers of its onnxruntime, its own order, then of installed plug-ins, which may find no hardware;
    empty if the device does not report them."""


class Timing(Record, frozen=True, kw_only=True):
    """One process: the load of its session and its timed runs."""

    wall_ns: tuple[int, ...]
    cpu_ns: tuple[int, ...]
    """Process CPU time of each run (all threads)."""
    warmup_runs: int
    """Runs before the timed ones: the profile's minimum, then more until they got no quicker."""
    load_ns: int
    involuntary_switches: int
    pressure_ratio: float | None
    """Share of the time in which some task waited for a processor (Linux ``/proc/pressure/cpu``)."""
    cooled_seconds: float = 0.0
    """How long this process waited for a hot processor to cool down before it timed anything."""
    temperatures_c: tuple[float, float] | None = None
    """Of the hottest zone before the warm-up and after the last run; None if the system reports none."""
    contended: bool
    """Wall over CPU time above 1.05 on one thread: other load disturbed this process."""
    steady: bool = True
    """Whether the runs had stopped getting quicker before the timed ones began."""


class Memory(Record, frozen=True, kw_only=True):
    """Peaks of a fresh process, less its memory before the session existed.

    Measured with the malloc setting that makes them reproducible, and (``default_``) with the allocator as apps use it.
    """

    load_peak_bytes: int
    run_peak_bytes: int
    default_load_peak_bytes: int
    default_run_peak_bytes: int
    device_peak_bytes: int | None
    """On a GPU; None elsewhere."""

    @property
    def peak_bytes(self) -> int:
        """The larger of load and run peak, which the limit applies to."""
        return max(self.load_peak_bytes, self.run_peak_bytes)


class PercentileEstimate(Record, frozen=True, kw_only=True):
    """One percentile of an estimate, with the ends of its 95 % interval."""

    percentile: int
    value_ns: float
    low_ns: float
    high_ns: float


class Estimate(Record, frozen=True, kw_only=True):
    """A file's latency on a target that is not connected, from the file's nodes on the host and a calibration."""

    calibration: str
    """Digest of the calibration."""
    made_at: str
    device: DeviceInfo
    """The device that the calibration was measured on."""
    device_runtime: str
    """ONNX Runtime's version there."""
    percentiles: tuple[PercentileEstimate, ...]
    """The median, the usual ones, and the budget's."""
    networks: int
    """Number of held-out networks that the interval is based on."""
    error_ratio: float
    """The median of their errors, each predicted without itself: 0.1 is a tenth too high or too low."""
    unseen_ratio: float
    """Share of the host's time in classes that the calibration lacks; these count with its average ratio."""

    def at(self, percentile: float) -> PercentileEstimate:
        """Return one of the percentiles.

        Raises:
            ValueError: it was not predicted.
        """
        for estimate in self.percentiles:
            if estimate.percentile == percentile:
                return estimate
        known = ", ".join(str(estimate.percentile) for estimate in self.percentiles)
        raise ValueError(f"percentile {percentile:g} was not predicted; known: {known}")


class Measurement(Record, frozen=True, kw_only=True):
    """One file on one device."""

    sha256: str
    batch_size: int
    timings: tuple[Timing, ...]
    memory: Memory | None
    """None if the device cannot measure it."""
    providers: dict[str, int]
    """Execution provider to the number of nodes it runs."""
    threads: int
    runtime: Runtime | None = None
    """How its sessions ran; None in a measurement by a version that did not store it."""
    rule: TimingRule
    device: DeviceInfo
    environment: Environment
    estimate: Estimate | None = None
    """Of the latency on the target, if ``device.kind`` is ``estimated``: it is judged instead of this host's times."""


class Comparison(Record, frozen=True, kw_only=True):
    """An interleaved A/B of two files: two persistent workers in alternating blocks, in random order."""

    sha256: str
    against_sha256: str
    blocks_ns: tuple[tuple[int, ...], ...]
    """CPU time of each run in each block of the file (wall time if it runs on several threads)."""
    against_blocks_ns: tuple[tuple[int, ...], ...]
    """The same for the other file; blocks with the same index ran next to each other."""
    clock: Literal["cpu", "wall"]
    blocks_per_pair: int = 1
    """Number of consecutive blocks by the same pair of processes; then come new processes."""


class NodeChange(Record, frozen=True, kw_only=True):
    """The time of a node, or of several nodes together, in one file and in another."""

    name: str
    """Of the node; empty for nodes that are not matched by name."""
    operator: str
    shape: tuple[int, ...] = ()
    """Of the nodes' output, if they were matched by it."""
    nodes: tuple[int, int]
    """Number of nodes in the other file and in this one."""
    against_ns: float
    ns: float

    @property
    def gained_ns(self) -> float:
        """The time that this file saves; negative if it takes longer."""
        return self.against_ns - self.ns


class Sustained(Record, frozen=True, kw_only=True):
    """One process that ran a file without a pause, in blocks of equal time, to see if the device slows itself down."""

    sha256: str
    seconds: float
    wall_ns: tuple[tuple[int, ...], ...]
    """For each block, runs evenly spread over it: at most ``edgeopt.bench.sustained.MAX_SAMPLES``."""
    cpu_ns: tuple[tuple[int, ...], ...]
    clock: Literal["cpu", "wall"]
    """The times that are judged: CPU time on one thread of the processor, as other load cannot stretch it."""
    temperatures_c: tuple[float | None, ...]
    """Of the hottest zone after each block; None if the device reports none."""
    device: DeviceInfo
    environment: Environment
