"""Several devices that are alike, as one: what is asked of it goes to one of them that is free."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from edgeopt.device.base import Device, Worker, WorkerRequest
from edgeopt.errors import ConfigError
from edgeopt.records.measurement import Environment


class DevicePool:
    """A pool; ``edgeopt.bench.alike`` proves that its devices are alike.

    Args:
        devices: Two or more.
    """

    def __init__(self, devices: Sequence[Device]) -> None:
        self.devices = tuple(devices)
        self._free: queue.SimpleQueue[Device] = queue.SimpleQueue()
        for device in self.devices:
            self._free.put(device)

    @property
    def uri(self) -> str:
        """The URIs of all."""
        return ", ".join(device.uri for device in self.devices)

    def describe(self) -> tuple[str, Environment]:
        """Return the hardware of all, and the current state of the first one.

        Raises:
            ConfigError: they have other hardware or other versions of onnxruntime.
            DeviceError: one is lost, or onnxruntime does not start there.
        """
        found = [device.describe() for device in self.devices]
        name, environment = found[0]
        for device, (other, there) in zip(self.devices[1:], found[1:], strict=True):
            if (other, there.onnxruntime) != (name, environment.onnxruntime):
                raise ConfigError(
                    f"{self.devices[0].uri} is {name} with onnxruntime {environment.onnxruntime}, and {device.uri} is "
                    f"{other} with {there.onnxruntime}. Only devices that are alike measure side by side: name one of "
                    "them, or build for each by itself."
                )
        return name, environment

    @contextmanager
    def lease(self) -> Iterator[Device]:
        """Give a device that nothing else uses meanwhile; wait until one is free."""
        device = self._free.get()
        try:
            yield device
        finally:
            self._free.put(device)

    def run(self, request: WorkerRequest, timeout_seconds: float, variables: Mapping[str, str]) -> dict[str, Any]:
        """Run one fresh worker process on a free device; see ``edgeopt.device.base.Device``."""
        with self.lease() as device:
            return device.run(request, timeout_seconds, variables)

    def start(self) -> AbstractContextManager[Worker]:
        """Start a worker on the first device, so that two that take turns, as in an A/B, run on the same one."""
        return self.devices[0].start()


@contextmanager
def leased(device: Device) -> Iterator[Device]:
    """Give a device of a pool for the length of a block; a device that is none is given as it is."""
    if isinstance(device, DevicePool):
        with device.lease() as member:
            yield member
    else:
        yield device
