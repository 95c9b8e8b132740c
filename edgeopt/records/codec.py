"""Records to JSON and back, and the keys that name things by their content."""

from __future__ import annotations

import hashlib
from typing import TypeVar

import msgspec

from edgeopt.records.base import Record
from edgeopt.records.measurement import DeviceInfo
from edgeopt.records.profile import Profile
from edgeopt.records.recipe import Recipe, TorchStep

R = TypeVar("R", bound=Record)

_encoder = msgspec.json.Encoder(order="deterministic")


def to_json(value: object) -> bytes:
    """Encode a record (or plain values around records) as JSON with sorted keys."""
    return _encoder.encode(value)


def from_json(data: bytes | str, kind: type[R]) -> R:
    """Decode and validate a record.

    Raises:
        msgspec.ValidationError: a field is unknown, missing or of the wrong type; the message has its path.
    """
    return msgspec.json.decode(data, type=kind, strict=True)


def digest(value: object) -> str:
    """Name a value by its content: 20 hex digits of the SHA-256 of its JSON."""
    return hashlib.sha256(to_json(value)).hexdigest()[:20]


def network_key(task: str, torch_steps: tuple[TorchStep, ...], seed: int, parent: str | None, versions: str) -> str:
    """Name a trained network: what was done to which weights, by which versions."""
    return digest(("network", task, torch_steps, seed, parent, versions))


def artifact_key(task: str, recipe: Recipe, versions: str) -> str:
    """Name a file: recipe, task fingerprint, versions of what made it."""
    return digest(("artifact", task, recipe, versions))


def measurement_key(sha256: str, device: DeviceInfo, runtime: str, profile: Profile, batch_size: int) -> str:
    """Name a measurement: the file, the device, the runtime, and the profile's runtime part (no limit is in it)."""
    return digest(("measurement", sha256, device, runtime, profile.runtime, profile.timing, batch_size))
