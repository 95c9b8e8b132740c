"""``Calibration``: times of small networks on a target's device and on a host, to predict those of other networks."""

from __future__ import annotations

from typing import Literal

from edgeopt.records.base import Record
from edgeopt.records.measurement import DeviceInfo, Environment, Sustained
from edgeopt.records.profile import Runtime


class Probe(Record, frozen=True, kw_only=True):
    """One small network on both machines."""

    name: str
    role: Literal["empty", "micro", "whole"]
    """``empty`` computes nothing: the time of a call. ``micro`` repeats one operator. ``whole`` is held out."""
    host_ns: dict[str, float]
    """Class of operator (``edgeopt.latency.transfer.operator_class``) to its nodes' time in a run on the host."""
    device_wall_ns: tuple[tuple[int, ...], ...]
    """Of each run on the device, one row per process."""
    device_cpu_ns: tuple[tuple[int, ...], ...]


class Calibration(Record, frozen=True, kw_only=True):
    """How a target's device compares with a host. It holds raw samples; statistics are computed when read."""

    schema: Literal["edgeopt/calibration-1"]
    target: str
    runtime: Runtime
    """Of the target; a different one needs a different calibration."""
    made_at: str
    """ISO 8601, UTC."""
    host: DeviceInfo
    host_environment: Environment
    device: DeviceInfo
    device_environment: Environment
    clock: Literal["cpu", "wall"]
    """The times on the device that the ratios use: CPU time on one thread, as other load cannot stretch it."""
    probes: tuple[Probe, ...]
    sustained: Sustained | None
    """Of one of the networks on the device, if that was asked for."""
