"""This machine as a device, with this Python or another environment's."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeopt.device.base import Request
from edgeopt.device.describe import describe
from edgeopt.device.process import WorkerProcess
from edgeopt.records.measurement import Environment

WORKER = Path(__file__).parent.parent / "bench" / "worker.py"

VARIABLES = {
    "ORT_DISABLE_TELEMETRY": "1",
    "OPENBLAS_NUM_THREADS": "1",  # numpy's own pool: it costs start-up time and memory, and the worker needs none
    "PYTHONSAFEPATH": "1",  # the worker's folder must not shadow other modules
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # device numbers as the driver's library counts them
}


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
        return describe(self)

    def run(self, request: Request, timeout_seconds: float, variables: Mapping[str, str]) -> dict[str, Any]:
        """Run one fresh worker process to its end; see ``edgeopt.device.base.Device``."""
        with WorkerProcess(self._command(), {**VARIABLES, **variables}) as worker:
            return worker.ask(request, timeout_seconds)

    def start(self) -> WorkerProcess:
        """Start a worker that stays; see ``edgeopt.device.base.Device``."""
        return WorkerProcess(self._command(), VARIABLES)

    def _command(self) -> list[str]:
        return [str(self._python or sys.executable), str(WORKER)]
