"""This machine as a device, with this Python or that of another environment."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from edgeopt.device.base import WorkerRefused, WorkerRequest
from edgeopt.device.named import NamedDevice
from edgeopt.device.process import WorkerProcess
from edgeopt.errors import DeviceError

WORKER = Path(__file__).parent.parent / "bench" / "worker.py"

VARIABLES = {
    "ORT_DISABLE_TELEMETRY": "1",
    "OPENBLAS_NUM_THREADS": "1",  # numpy's thread pool costs start-up time and memory, and the worker does not need it
    "PYTHONSAFEPATH": "1",  # modules in the worker's folder must not shadow others
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # number GPUs as the driver's library does
}


class _Kept(NamedTuple):
    key: Any
    """The command and all that a process inherits."""
    worker: WorkerProcess
    served: int


class _KeptWorkers:
    """Workers that wait for the next outputs to compute: starting Python and ONNX Runtime takes 0.3 s each time."""

    max_idle = 2
    max_requests = 200
    """Of one worker, so that no leak of a library grows for hours."""

    def __init__(self) -> None:
        self._idle: list[_Kept] = []
        """The one that was used last comes last."""
        self._lock = threading.Lock()
        atexit.register(self.close)

    def ask(self, command: tuple[str, ...], request: WorkerRequest, timeout_seconds: float) -> dict[str, Any]:
        """Send a request to an idle worker, or to a new one; it is kept unless it failed."""
        variables = frozenset(one for one in os.environ.items() if one[0] != "PYTEST_CURRENT_TEST")
        key = (command, request.affinity, variables, str(Path.cwd()))
        kept = self._take(key)
        if kept is not None:
            with suppress(_EndedError):
                return self._ask(kept, request, timeout_seconds)
        return self._ask(_Kept(key, WorkerProcess(command, VARIABLES), 0), request, timeout_seconds)

    def _ask(self, kept: _Kept, request: WorkerRequest, timeout_seconds: float) -> dict[str, Any]:
        """Send a request.

        Raises:
            _EndedError: the worker, which has served others, ended: what they left in it may be the reason.
            DeviceError, WorkerRefused: as of ``WorkerProcess.ask``.
        """
        with ExitStack() as stack:
            stack.push(kept.worker)  # ends it, unless it is kept
            try:
                fields = kept.worker.ask(request, timeout_seconds)
            except WorkerRefused:
                self._keep(stack, kept)
                raise
            except DeviceError as error:
                if kept.served and not kept.worker.is_running:
                    raise _EndedError from error
                raise
            self._keep(stack, kept)
            return fields

    def _take(self, key: Any) -> _Kept | None:
        """Return an idle worker that inherited the same; others of the same that have ended are dropped."""
        with self._lock:
            same: list[_Kept] = [one for one in reversed(self._idle) if one.key == key]
            for kept in same:
                self._idle.remove(kept)
                if kept.worker.is_running:
                    return kept
                kept.worker.end()
        return None

    def _keep(self, stack: ExitStack, kept: _Kept) -> None:
        if kept.served + 1 >= self.max_requests:
            return
        stack.pop_all()
        with self._lock:
            self._idle.append(kept._replace(served=kept.served + 1))
            surplus, self._idle = self._idle[: -self.max_idle], self._idle[-self.max_idle :]
        for one in surplus:
            one.worker.end()

    def close(self) -> None:
        """End the idle workers."""
        with self._lock:
            idle, self._idle = self._idle, []
        for one in idle:
            one.worker.end()


class _EndedError(Exception):
    """A worker that had served others ended instead of answering."""


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
