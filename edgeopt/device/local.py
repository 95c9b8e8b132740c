"""This machine as a device, with this Python or that of another environment."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edgeopt.device.base import WorkerRefused, WorkerRequest
from edgeopt.device.named import NamedDevice
from edgeopt.device.process import WorkerProcess

WORKER = Path(__file__).parent.parent / "bench" / "worker.py"

VARIABLES = {
    "ORT_DISABLE_TELEMETRY": "1",
    "OPENBLAS_NUM_THREADS": "1",  # numpy's thread pool costs start-up time and memory, and the worker does not need it
    "PYTHONSAFEPATH": "1",  # modules in the worker's folder must not shadow others
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # number GPUs as the driver's library does
}


class _KeptWorkers:
    """Workers that wait for the next outputs to compute: starting Python and ONNX Runtime takes 0.3 s each time."""

    max_idle = 2
    max_requests = 200
    """Of one worker, so that no leak of a library grows for hours."""

    def __init__(self) -> None:
        self._idle: dict[Any, list[tuple[WorkerProcess, int]]] = {}
        self._lock = threading.Lock()
        atexit.register(self.close)

    def ask(self, command: tuple[str, ...], request: WorkerRequest, timeout_seconds: float) -> dict[str, Any]:
        """Send a request to an idle worker, or to a new one; it is kept unless it failed."""
        key = (command, request.affinity, frozenset(os.environ.items()))
        worker, served = self._take(key) or (WorkerProcess(command, VARIABLES), 0)
        with ExitStack() as stack:
            stack.push(worker)  # ends it, unless it is kept
            try:
                fields = worker.ask(request, timeout_seconds)
            except WorkerRefused:
                self._keep(stack, key, worker, served + 1)
                raise
            self._keep(stack, key, worker, served + 1)
            return fields

    def _take(self, key: Any) -> tuple[WorkerProcess, int] | None:
        with self._lock:
            idle = self._idle.get(key, [])
            while idle:
                worker, served = idle.pop()
                if worker.is_running:
                    return worker, served
                worker.end()
        return None

    def _keep(self, stack: ExitStack, key: Any, worker: WorkerProcess, served: int) -> None:
        with self._lock:
            idle = self._idle.setdefault(key, [])
            if served < self.max_requests and len(idle) < self.max_idle:
                idle.append((worker, served))
                stack.pop_all()

    def close(self) -> None:
        """End the idle workers."""
        with self._lock:
            for worker, _ in (one for idle in self._idle.values() for one in idle):
                worker.end()
            self._idle.clear()


_KEPT_WORKERS = _KeptWorkers()
_KEPT_MODES = ("outputs", "describe")


class LocalDevice(NamedDevice):
    """Workers as child processes.

    Args:
        python: The Python program that runs them; None for the one that runs this process.
    """

    def __init__(self, python: Path | None = None) -> None:
        super().__init__(f"local:?python={python}" if python else "local:")
        self._python = python

    def run(self, request: WorkerRequest, timeout_seconds: float, variables: Mapping[str, str]) -> dict[str, Any]:
        """Run one worker process; see ``edgeopt.device.base.Device``.

        It is a fresh one for all that is measured. Outputs on the processor may come from one that has served others.
        """
        if request.mode in _KEPT_MODES and request.providers in ((), ("CPUExecutionProvider",)) and not variables:
            return _KEPT_WORKERS.ask(tuple(self._command()), request, timeout_seconds)
        with WorkerProcess(self._command(), {**VARIABLES, **variables}) as worker:
            return worker.ask(request, timeout_seconds)

    def start(self) -> WorkerProcess:
        """Start a worker that stays; see ``edgeopt.device.base.Device``."""
        return WorkerProcess(self._command(), VARIABLES)

    def _command(self) -> list[str]:
        return [str(self._python or sys.executable), str(WORKER)]
