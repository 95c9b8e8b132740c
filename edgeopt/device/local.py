"""This machine as a device, with this Python or that of another environment."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeopt.device.base import WorkerRequest
from edgeopt.device.named import NamedDevice
from edgeopt.device.process import WorkerProcess

WORKER = Path(__file__).parent.parent / "bench" / "worker.py"

VARIABLES = {
    "ORT_DISABLE_TELEMETRY": "1",
    "OPENBLAS_NUM_THREADS": "1",  # numpy's thread pool costs start-up time and memory, and the worker does not need it
    "PYTHONSAFEPATH": "1",  # modules in the worker's folder must not shadow others
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # number GPUs as the driver's library does
}


class LocalDevice(NamedDevice):
    """Workers as child processes.

    Args:
        python: The Python program that runs them; None for the one that runs this process.
    """

    def __init__(self, python: Path | None = None) -> None:
        super().__init__(f"local:?python={python}" if python else "local:")
        self._python = python

    def run(self, request: WorkerRequest, timeout_seconds: float, variables: Mapping[str, str]) -> dict[str, Any]:
        """Run one fresh worker process to its end; see ``edgeopt.device.base.Device``."""
        with WorkerProcess(self._command(), {**VARIABLES, **variables}) as worker:
            return worker.ask(request, timeout_seconds)

    def start(self) -> WorkerProcess:
        """Start a worker that stays; see ``edgeopt.device.base.Device``."""
        return WorkerProcess(self._command(), VARIABLES)

    def _command(self) -> list[str]:
        return [str(self._python or sys.executable), str(WORKER)]
