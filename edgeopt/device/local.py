"""This machine as a device, with this Python or another environment's."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgeopt.device.base import Request, WorkerRefused
from edgeopt.device.process import WorkerProcess
from edgeopt.errors import DeviceError
from edgeopt.records.measurement import Environment

WORKER = Path(__file__).parent.parent / "bench" / "worker.py"

VARIABLES = {
    "ORT_DISABLE_TELEMETRY": "1",
    "OPENBLAS_NUM_THREADS": "1",  # numpy's own pool: it costs start-up time and memory, and the worker needs none
    "PYTHONSAFEPATH": "1",  # the worker's folder must not shadow other modules
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # device numbers as the driver's library counts them
}

DESCRIBE_SECONDS = 120.0


class LocalDevice:
    """Workers as child processes.

    Args:
        python: The Python program that runs them; None is the one that runs this.
    """

    def __init__(self, python: Path | None = None) -> None:
        self._python = python

    @property
    def uri(self) -> str:
        """How the user names it."""
        return f"local:?python={self._python}" if self._python else "local:"

    def describe(self) -> tuple[str, Environment]:
        """Return the hardware's name and the state of this machine."""
        try:
            fields = self.run(Request(mode="describe"), DESCRIBE_SECONDS, {})
        except WorkerRefused as refused:
            raise DeviceError(f"{self.uri}: {refused.reason}") from refused
        family = fields.pop("family")
        environment = msgspec.convert(fields, Environment)
        hardware = (family, environment.processor, *environment.features, str(environment.cores))
        mark = hashlib.sha256("\n".join(hardware).encode()).hexdigest()[:12]
        return f"{family.split()[0]}-{environment.cores}-{mark}", environment

    def run(self, request: Request, timeout_seconds: float, variables: Mapping[str, str]) -> dict[str, Any]:
        """Run one fresh worker process to its end; see ``edgeopt.device.base.Device``."""
        with WorkerProcess(self._command(), {**VARIABLES, **variables}) as worker:
            return worker.ask(request, timeout_seconds)

    def start(self) -> WorkerProcess:
        """Start a worker that stays; see ``edgeopt.device.base.Device``."""
        return WorkerProcess(self._command(), VARIABLES)

    def _command(self) -> list[str]:
        return [str(self._python or sys.executable), str(WORKER)]
