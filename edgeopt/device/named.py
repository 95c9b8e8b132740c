"""Asking a device what it is: the same question and the same name for every kind that runs ``worker.py``."""

from __future__ import annotations

import hashlib

import msgspec

from edgeopt.device.base import Device, Request, WorkerRefused
from edgeopt.errors import DeviceError
from edgeopt.records.measurement import Environment

DESCRIBE_SECONDS = 120.0


def describe(device: Device) -> tuple[str, Environment]:
    """Return a name of the hardware, the same each time, and the machine's state as of now.

    Raises:
        DeviceError: the device is lost, or onnxruntime does not start there.
    """
    try:
        fields = device.run(Request(mode="describe"), DESCRIBE_SECONDS, {})
    except WorkerRefused as refused:
        raise DeviceError(f"{device.uri}: {refused.reason}") from refused
    family = fields.pop("family")
    environment = msgspec.convert(fields, Environment)
    hardware = (family, environment.processor, *environment.features, str(environment.cores))
    mark = hashlib.sha256("\n".join(hardware).encode()).hexdigest()[:12]
    return f"{family.split()[0]}-{environment.cores}-{mark}", environment
