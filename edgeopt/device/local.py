"""This machine as a device, with this Python or another environment's."""

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
    "OPENBLAS_NUM_THREADS": "1",  # numpy's own pool: it costs start-up time and memory, and the worker needs none
    "PYTHONSAFEPATH": "1",  # the worker's folder must not shadow other modules
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # device numbers as the driver's library counts them
}


class LocalDevice(NamedDevice):
    """Workers as child processes.

    Args:
        python: The Python program that runs them; None is the one that runs this.
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
