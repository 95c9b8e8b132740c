"""Another machine as a device, over plain OpenSSH: the user's keys, configuration and known hosts; nothing installed.

The worker and the files of a request are sent there; numbers and outputs come back. A connection that breaks is opened
again, and the request that was running starts from the beginning.
"""

from __future__ import annotations

import logging
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
from edgeopt.model_files.layout import weight_files
from edgeopt.records.base import Record

RECONNECT_SECONDS = 90.0
"""How long a lost device may take to come back: a small board restarts within a minute."""

RETRY_SECONDS = 2.0
"""Pause between two attempts to connect."""

_logger = logging.getLogger(__name__)


class SshDevice(NamedDevice):
    """Workers on another machine.

    Args:
        uri: How the user names it.
        address: Its address.
        python: The Python program on the device; None to look for one.
        reconnect_seconds: How long to wait for it after the connection was lost.
    """

    def __init__(
        self, uri: str, address: Address, python: str | None, *, reconnect_seconds: float = RECONNECT_SECONDS
    ) -> None:
        super().__init__(uri)
        self._address = address
        self._python = python
        self._reconnect_seconds = reconnect_seconds
        self._mutex = threading.Lock()
        self._connection: Connection | None = None
        self._was_connected = False

    def run(self, request: WorkerRequest, timeout_seconds: float, variables: Mapping[str, str]) -> dict[str, Any]:
        """Run one fresh worker process to its end; see ``edgeopt.device.base.Device``.

        If the connection breaks, it is opened again and the request runs once more.

        Raises:
            DeviceLostError: it broke again, or could not be opened again.
        """
        connection = self._connect()
        try:
            return self._run(connection, request, timeout_seconds, variables)
        except DeviceLostError as error:
            _logger.debug("running %s once more after: %s", request.mode, error)
            self._forget(connection)
        connection = self._connect()
        try:
            return self._run(connection, request, timeout_seconds, variables)
        except DeviceLostError:
            self._forget(connection)
            raise

    def _run(
        self, connection: Connection, request: WorkerRequest, timeout_seconds: float, variables: Mapping[str, str]
    ) -> dict[str, Any]:
        remote_request = _send_files(connection, request)
        try:
            with connection.start_worker({**VARIABLES, **variables}) as worker:
                fields = worker.ask(remote_request, timeout_seconds)
        except WorkerRefused as refused:
            connection.discard(remote_request.outputs)
            if refused.kind == "device":
                raise connection.explain_refusal(refused) from refused
            raise
        if request.outputs:
            connection.fetch(remote_request.outputs, Path(request.outputs))
        return fields

    @contextmanager
    def start(self) -> Iterator[Worker]:
        """Start a worker that stays; see ``edgeopt.device.base.Device``."""
        connection = self._connect()
        try:
            with connection.start_worker(VARIABLES) as process:
                yield _StayingWorker(connection, process)
        except DeviceLostError:
            self._forget(connection)
            raise

    def _connect(self) -> Connection:
        """Return the connection; open it if there is none, and wait for a device that was lost."""
        with self._mutex:
            deadline = time.monotonic() + self._reconnect_seconds
            while self._connection is None:
                try:
                    self._connection = Connection(self._uri, self._address, self._python)
                except DeviceLostError as error:
                    if not self._was_connected or time.monotonic() > deadline:
                        raise
                    _logger.debug("connecting again in %.0f s after: %s", RETRY_SECONDS, error)
                    time.sleep(RETRY_SECONDS)
                except DeviceError as error:
                    if self._was_connected:
                        raise DeviceLostError(str(error)) from error
                    raise
            self._was_connected = True
            return self._connection

    def _forget(self, connection: Connection) -> None:
        """Close a connection that broke; another thread may have closed it already, and opened a new one."""
        with self._mutex:
            if self._connection is connection:
                self._connection = None
        connection.close()


class _StayingWorker:
    """A worker process on the device; it gets the files of its first request."""

    def __init__(self, connection: Connection, process: WorkerProcess) -> None:
        self._connection = connection
        self._process = process

    def ask(self, message: Mapping[str, Any] | Record, timeout_seconds: float) -> dict[str, Any]:
        """Send one line and return the answer's fields; see ``edgeopt.device.base.Worker``."""
        if isinstance(message, WorkerRequest):
            message = _send_files(self._connection, message)
        return self._process.ask(message, timeout_seconds)


def _send_files(connection: Connection, request: WorkerRequest) -> WorkerRequest:
    """Send a request's files and return it with their paths on the device; the path of a missing file stays."""
    paths = {
        name: connection.push(Path(path))
        for name, path in (("model", request.model), ("inputs", request.inputs))
        if Path(path).is_file()
    }
    for model in (request.model, *request.models):
        for path in weight_files(Path(model)):
            connection.push(path)  # under the name that the model's graph has for it
    outputs = connection.make_path(Path(request.outputs).suffix) if request.outputs else ""
    models = tuple(connection.push(Path(path)) for path in request.models)
    return msgspec.structs.replace(request, outputs=outputs, models=models, **paths)
