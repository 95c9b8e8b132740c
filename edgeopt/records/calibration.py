"""``Calibration``: what small networks took on a target's device and on a host, so that others can be foretold."""

from __future__ import annotations

from typing import Literal

from edgeopt.records.base import Record
from edgeopt.records.measurement import DeviceInfo, Environment, Sustained
from edgeopt.records.profile import Runtime


class Probe(Record, frozen=True, kw_only=True):
    """One small network on both machines."""

    name: str
    role: Literal["empty", "micro", "whole"]
    """``empty`` computes nothing: the time of a call; ``micro`` repeats one operator; ``whole`` is held out."""
    host_ns: dict[str, float]
    """Class of operator (``edgeopt.latency.transfer.operator_class``) to its nodes' time in a run on the host."""
    device_wall_ns: tuple[tuple[int, ...], ...]
    """Of each run on the device, one row a process."""
    device_cpu_ns: tuple[tuple[int, ...], ...]


class Calibration(Record, frozen=True, kw_only=True):
    """How a target's device compares with a host; raw samples, so that statistics are computed when read."""

    schema: Literal["edgeopt/calibration-1"]
    target: str
    runtime: Runtime
    """Of the target; another one needs another calibration."""
    made_at: str
    """ISO 8601, UTC."""
    host: DeviceInfo
    host_environment: Environment
    device: DeviceInfo
    device_environment: Environment
    clock: Literal["cpu", "wall"]
    """Which times on the device the ratios rest on: CPU time on one thread, as other load cannot stretch it."""
    probes: tuple[Probe, ...]
    sustained: Sustained | None
    """Of one of the networks on the device, where that was asked for."""
