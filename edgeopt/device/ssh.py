"""Another machine as a device, over plain OpenSSH: the user's keys, configuration and known hosts; nothing installed.

The worker and the files of a request are sent there; numbers and outputs come back. A connection that breaks is made
anew, and what ran then is run again from its start.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from edgeopt.device.base import Worker, WorkerRefused, WorkerRequest
from edgeopt.device.local import VARIABLES
from edgeopt.device.named import NamedDevice
from edgeopt.device.process import WorkerProcess
from edgeopt.device.ssh_connection import Address, Connection
from edgeopt.errors import DeviceError, DeviceLostError
from edgeopt.records.base import Record

PATIENCE_SECONDS = 90.0
"""How long a device that was there may take to come back: a small one starts anew within a minute."""

PAUSE_SECONDS = 2.0


class SshDevice(NamedDevice):
    """Workers on another machine.

    Args:
        uri: How the user names it.
        address: Where it is.
        python: The Python program over there; None looks for one.
        patience_seconds: How long to wait for it after a connection was lost.
    """

    def __init__(
        self, uri: str, address: Address, python: str | None, *, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        super().__init__(uri)
        self._address = address
        self._python = python
        self._patience_seconds = patience_seconds
        self._mutex = threading.Lock()
        self._connection: Connection | None = None
        self._was_there = False

    def run(self, request: WorkerRequest, timeout_seconds: float, variables: Mapping[str, str]) -> dict[str, Any]:
        """Run one fresh worker process to its end; see ``edgeopt.device.base.Device``.

        Where the connection breaks, it is made anew and the request runs once more.

        Raises:
            DeviceLostError: it broke again, or could not be made anew.
        """
        connection = self._connected()
        try:
            return self._run(connection, request, timeout_seconds, variables)
        except DeviceLostError:
            self._forget(connection)
        connection = self._connected()
        try:
            return self._run(connection, request, timeout_seconds, variables)
        except DeviceLostError:
            self._forget(connection)
            raise

    def _run(
        self, connection: Connection, request: WorkerRequest, timeout_seconds: float, variables: Mapping[str, str]
    ) -> dict[str, Any]:
        there = _sent(connection, request)
        try:
            with connection.start_worker({**VARIABLES, **variables}) as worker:
                fields = worker.ask(there, timeout_seconds)
        except WorkerRefused as refused:
            connection.discard(there.outputs)
            if refused.kind == "device":
                raise connection.refused(refused) from refused
            raise
        if request.outputs:
            connection.fetch(there.outputs, Path(request.outputs))
        return fields

    @contextmanager
    def start(self) -> Iterator[Worker]:
        """Start a worker that stays; see ``edgeopt.device.base.Device``."""
        connection = self._connected()
        try:
            with connection.start_worker(VARIABLES) as process:
                yield _StayingWorker(connection, process)
        except DeviceLostError:
            self._forget(connection)
            raise

    def _connected(self) -> Connection:
        """Return the connection; make it where there is none, with patience where there was one."""
        with self._mutex:
            deadline = time.monotonic() + self._patience_seconds
            while self._connection is None:
                try:
                    self._connection = Connection(self._uri, self._address, self._python)
                except DeviceLostError:
                    if not self._was_there or time.monotonic() > deadline:
                        raise
                    time.sleep(PAUSE_SECONDS)
                except DeviceError as error:
                    if self._was_there:
                        raise DeviceLostError(str(error)) from error
                    raise
            self._was_there = True
            return self._connection

    def _forget(self, connection: Connection) -> None:
        """Close a connection that broke; another thread may have done so, and made a new one."""
        with self._mutex:
            if self._connection is connection:
                self._connection = None
        connection.close()


class _StayingWorker:
    """A worker process over there; the files of its first request are sent."""

    def __init__(self, connection: Connection, process: WorkerProcess) -> None:
        self._connection = connection
        self._process = process

    def ask(self, message: Mapping[str, Any] | Record, timeout_seconds: float) -> dict[str, Any]:
        """Send one line and return the answer's fields; see ``edgeopt.device.base.Worker``."""
        there = _sent(self._connection, message) if isinstance(message, WorkerRequest) else message
        return self._process.ask(there, timeout_seconds)


def _sent(connection: Connection, request: WorkerRequest) -> WorkerRequest:
    """Send a request's files and return it with their paths over there; what is missing here is missing there, too."""
    paths = {
        name: connection.push(Path(path))
        for name, path in (("model", request.model), ("inputs", request.inputs))
        if Path(path).is_file()
    }
    outputs = connection.new_path(Path(request.outputs).suffix) if request.outputs else ""
    models = tuple(connection.push(Path(path)) for path in request.models)
    return msgspec.structs.replace(request, outputs=outputs, models=models, **paths)
