"""``RunTarget``: a device, and everything that decides how a session runs there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeopt.device.base import Device
from edgeopt.records.measurement import DeviceKind
from edgeopt.records.profile import Profile


@dataclass(frozen=True, kw_only=True)
class RunTarget:
    """Where and how files run; every function of ``edgeopt.bench`` takes one.

    ``dataclasses.replace`` changes a part of it.
    """

    device: Device
    """Where the workers run."""
    profile: Profile
    """Providers, threads and the timing rule."""
    kind: DeviceKind
    """What the device is to the target."""
    allow_fallback: tuple[str, ...] = ()
    """Providers that may run nodes if the profile's are not available."""
    batch_size: int = 1
    """Samples per run."""
    inputs: Path | None = None
    """A ``.npz`` with one array for each graph input; None for random values."""
    states: Mapping[str, str] = field(default_factory=dict)
    """Inputs that are fed from an output of the batch before, if a batch does not have them."""
