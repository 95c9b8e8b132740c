"""A browser as a device: it opens a page, runs models with onnxruntime-web, and posts numbers and outputs back.

The page's address holds a token that one browser can claim, once. Without an address the server listens on loopback.
"""

from __future__ import annotations

import secrets
import sys
import tempfile
import time
import uuid
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from edgeopt.device.arrays import pack, unpack
from edgeopt.device.base import Request, Worker, WorkerRefused
from edgeopt.device.browser_server import BrowserServer
from edgeopt.device.named import NamedDevice
from edgeopt.errors import CannotProfileError, DeviceError, DeviceLostError
from edgeopt.records.base import Record

RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")

CLAIM_SECONDS = 600.0
"""How long a person may take to open the page."""
SILENCE_SECONDS = 90.0
"""The page asks for messages at least each 20 s; a browser that says nothing for so long is gone."""


class BrowserDevice(NamedDevice):
    """Web Workers of one page, each a fresh session.

    Args:
        uri: How the user names it.
        host: Address to listen on.
        port: Port to listen on; 0 for any that is free.
        runtime: Folder with the three files of onnxruntime-web.
    """

    def __init__(self, uri: str, host: str, port: int, runtime: Path) -> None:
        super().__init__(uri)
        self._place = (host, port)
        self._runtime = runtime
        self._server: BrowserServer | None = None

    def run(self, request: Request, timeout_seconds: float, variables: Mapping[str, str]) -> dict[str, Any]:
        """Run one fresh Web Worker; see ``edgeopt.device.base.Device``. There are no environment variables."""
        with self.start() as worker:
            return worker.ask(request, timeout_seconds)

    @contextmanager
    def start(self) -> Iterator[Worker]:
        """Start a Web Worker that stays; see ``edgeopt.device.base.Device``."""
        server = self._served()
        worker = _WebWorker(self._uri, server)
        try:
            yield worker
        finally:
            server.send(worker.id, None)

    def _served(self) -> BrowserServer:
        """Return the server; start it where there is none, and wait for a browser."""
        if self._server is None:
            token = secrets.token_urlsafe(16)
            try:
                server = BrowserServer(self._place, token, self._runtime)
            except OSError as error:
                raise DeviceError(
                    f"{self._uri}: cannot listen there: {error.strerror}. Name another address."
                ) from error
            self._server = server
            self.close = weakref.finalize(self, server.close)
            print(
                f"open this page in the browser that is to be measured: {server.address}", file=sys.stderr, flush=True
            )
            if not server.claimed.wait(CLAIM_SECONDS):
                raise DeviceLostError(
                    f"{self._uri}: no browser opened the page within {CLAIM_SECONDS / 60:.0f} minutes."
                )
        return self._server


class _WebWorker:
    """One Web Worker of the page."""

    def __init__(self, uri: str, server: BrowserServer) -> None:
        self.id = uuid.uuid4().hex
        self._uri = uri
        self._server = server

    def ask(self, message: Mapping[str, Any] | Record, timeout_seconds: float) -> dict[str, Any]:
        """Send one message and return the answer's fields; see ``edgeopt.device.base.Worker``."""
        with tempfile.TemporaryDirectory(prefix="edgeopt-browser-") as folder:
            there = self._offered(message, Path(folder)) if isinstance(message, Request) else message
            self._server.send(self.id, there)
            fields = self._wait(timeout_seconds)
            if isinstance(message, Request) and message.outputs:
                received = Path(folder) / "outputs"
                received.write_bytes(self._server.outputs.pop(self.id))
                unpack(received, Path(message.outputs))
            return fields

    def _wait(self, timeout_seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_seconds
        while (fields := self._server.answer(self.id, seconds=1.0)) is None:
            if time.monotonic() > deadline:
                raise DeviceError(f"{self._uri}: the browser did not answer within {timeout_seconds:.0f} s.")
            if self._server.silence() > SILENCE_SECONDS:
                raise DeviceLostError(
                    f"{self._uri}: the browser was lost: its page was closed, or the device sleeps. Keep the page in "
                    "front and the device awake."
                )
        if not fields.pop("ok"):
            raise WorkerRefused(fields["kind"], fields["reason"])
        return fields

    def _offered(self, request: Request, folder: Path) -> Request:
        """Let the page download a request's files, and return it with their names."""
        if request.mode == "nodes":
            raise CannotProfileError(f"{self._uri}: this kind of device cannot tell the times of single nodes.")
        names = {"model": self._server.offer(Path(request.model))} if Path(request.model).is_file() else {}
        if request.inputs:
            packed = folder / "inputs.arrays"
            pack(Path(request.inputs), packed)
            names["inputs"] = self._server.offer(packed)
        return msgspec.structs.replace(request, **names)
