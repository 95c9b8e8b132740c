"""The parts that all devices share: their URI, and the description of their hardware."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import msgspec

from edgeopt.device.base import WorkerRefused, WorkerRequest
from edgeopt.errors import DeviceError
from edgeopt.records.measurement import Environment

DESCRIBE_SECONDS = 120.0


class NamedDevice(ABC):
    """A device with its URI; each kind adds ``run`` and ``start`` (see ``edgeopt.device.base.Device``).

    Args:
        uri: How the user names it.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri

    @property
    def uri(self) -> str:
        """How the user names it."""
        return self._uri

    @abstractmethod
    def run(self, request: WorkerRequest, timeout_seconds: float, variables: Mapping[str, str]) -> dict[str, Any]:
        """Run one fresh worker process to its end."""

    def describe(self) -> tuple[str, Environment]:
        """Return a name for the hardware, the same each time, and the machine's current state.

        Raises:
            DeviceError: the device is lost, or onnxruntime does not start there.
        """
        try:
            fields = self.run(WorkerRequest(mode="describe"), DESCRIBE_SECONDS, {})
        except WorkerRefused as refused:
            raise DeviceError(f"{self._uri}: {refused.reason}") from refused
        family = fields.pop("family")
        environment = msgspec.convert(fields, Environment)
        hardware = (family, environment.processor, *environment.features, str(environment.cores))
        digest = hashlib.sha256("\n".join(hardware).encode()).hexdigest()[:12]
        return f"{family.split()[0]}-{environment.cores}-{digest}", environment
