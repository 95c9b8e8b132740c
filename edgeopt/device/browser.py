"""A browser as a device: it opens a page, runs models with onnxruntime-web, and posts numbers and outputs back.

The page's address holds a token that one browser can claim, once. Without an address the server listens on loopback,
which a phone on a cable reaches by ``adb reverse``; on any other address it speaks HTTPS, as browsers allow threads and
a fine clock on a secure page alone.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
import tempfile
import time
import uuid
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edgeopt.device.adb_client import Adb
from edgeopt.device.arrays import read_records, write_records
from edgeopt.device.base import Worker, WorkerRefused, WorkerRequest
from edgeopt.device.browser_server import BrowserServer
from edgeopt.device.certificate import make_certificate
from edgeopt.device.named import NamedDevice
from edgeopt.errors import CannotProfileError, DeviceError, DeviceLostError
from edgeopt.records.base import Record

RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")

CLAIM_SECONDS = 600.0
"""How long a person may take to open the page."""
SILENCE_SECONDS = 90.0
"""The page asks for messages at least each 20 s; a browser that says nothing for so long is gone."""
RELOAD_SECONDS = 5.0
"""How long a page that was left may take to come back by itself."""


class PageAddress(NamedTuple):
    """Where the page is served."""

    host: str
    """Address to listen on."""
    port: int
    """0 for any that is free."""
    tls: bool
    """Whether HTTPS is wanted; loopback needs none."""
    phone: str | None
    """Serial number of a phone whose browser is meant, empty for the only one; None for any browser."""


class BrowserDevice(NamedDevice):
    """Web Workers of one page, each a fresh session.

    Args:
        uri: How the user names it.
        place: Where the page is served.
        runtime: Folder with the three files of onnxruntime-web.
    """

    def __init__(self, uri: str, place: PageAddress, runtime: Path) -> None:
        super().__init__(uri)
        self._place = place
        self._runtime = runtime
        self._server: BrowserServer | None = None
        self._was_there = False

    def run(self, request: WorkerRequest, timeout_seconds: float, variables: Mapping[str, str]) -> dict[str, Any]:
        """Run one fresh Web Worker; see ``edgeopt.device.base.Device``. There are no environment variables.

        Where the page is left or loaded anew, the request runs once more on the page that comes back.

        Raises:
            DeviceLostError: no page came back, or it was lost again.
        """
        try:
            return self._run(request, timeout_seconds)
        except DeviceLostError:
            if not self._was_there:
                raise
        return self._run(request, timeout_seconds)

    def _run(self, request: WorkerRequest, timeout_seconds: float) -> dict[str, Any]:
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
        """Return the server with a page that is there; start it where there is none, and wait for a browser.

        Raises:
            DeviceError: the page cannot be served.
            DeviceLostError: nobody opened it.
        """
        if self._server is None:
            self._server = self._open()
            self._invite(self._server, "open this page in the browser that is to be measured")
        elif not self._came(self._server, RELOAD_SECONDS):
            self._server.reopen()
            self._invite(self._server, "the page was lost; open it again")
        self._was_there = True
        return self._server

    def _open(self) -> BrowserServer:
        host, port, tls, phone = self._place
        shown = "localhost" if phone is not None else own_address(host)
        certificate = make_certificate(self._uri, shown) if tls and not is_loopback(host) else None
        with ExitStack() as stack:
            try:
                server = BrowserServer((host, port), shown, self._runtime, certificate)
            except OSError as error:
                raise DeviceError(
                    f"{self._uri}: cannot listen there: {error.strerror}. Name another address."
                ) from error
            stack.callback(server.close)
            if phone is not None:
                stack.enter_context(Adb(self._uri, phone).reversed(server.port))
            self.close = weakref.finalize(self, stack.pop_all().close)
        return server

    def _invite(self, server: BrowserServer, words: str) -> None:
        host, _, tls, phone = self._place
        say(f"{words}: {server.address}")
        if server.certificate is not None:
            say(
                "its certificate was made just now on this machine and nobody vouches for it, so the browser warns: go "
                f"on only if it shows the SHA-256 fingerprint {server.certificate.fingerprint}"
            )
        elif not tls and not is_loopback(host):
            say("it comes over plain http: the browser will allow one thread and a coarse clock")
        if phone is not None:
            Adb(self._uri, phone).open_page(server.address)
        elif not is_loopback(host):
            show_qr(server.address)
        if not self._came(server, CLAIM_SECONDS):
            raise DeviceLostError(f"{self._uri}: no browser opened the page within {CLAIM_SECONDS / 60:.0f} minutes.")

    def _came(self, server: BrowserServer, seconds: float) -> bool:
        """Wait for a page that is there."""
        deadline = time.monotonic() + seconds
        while server.page is None or server.silence() > SILENCE_SECONDS:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


class _WebWorker:
    """One Web Worker of the page."""

    def __init__(self, uri: str, server: BrowserServer) -> None:
        self.id = uuid.uuid4().hex
        self._uri = uri
        self._server = server
        self._page = server.page

    def ask(self, message: Mapping[str, Any] | Record, timeout_seconds: float) -> dict[str, Any]:
        """Send one message and return the answer's fields; see ``edgeopt.device.base.Worker``."""
        with tempfile.TemporaryDirectory(prefix="edgeopt-browser-") as folder:
            there = self._offered(message, Path(folder)) if isinstance(message, WorkerRequest) else message
            self._server.send(self.id, there)
            fields = self._wait(timeout_seconds)
            if isinstance(message, WorkerRequest) and message.outputs:
                received = Path(folder) / "outputs"
                received.write_bytes(self._server.outputs.pop(self.id))
                read_records(received, Path(message.outputs))
            return fields

    def _wait(self, timeout_seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_seconds
        while (fields := self._server.answer(self.id, seconds=1.0)) is None:
            if time.monotonic() > deadline:
                raise DeviceError(f"{self._uri}: the browser did not answer within {timeout_seconds:.0f} s.")
            if self._server.page != self._page or self._server.silence() > SILENCE_SECONDS:
                raise DeviceLostError(
                    f"{self._uri}: the browser was lost: its page was closed or loaded anew, or the device sleeps. "
                    "Keep the page in front and the device awake."
                )
        if fields.pop("ok"):
            return fields
        if fields["kind"] == "device":
            raise DeviceError(f"{self._uri}: {fields['reason']}. Reload the page, or try another browser.")
        raise WorkerRefused(fields["kind"], fields["reason"])

    def _offered(self, request: WorkerRequest, folder: Path) -> WorkerRequest:
        """Let the page download a request's files, and return it with their names."""
        if request.mode == "nodes":
            raise CannotProfileError(f"{self._uri}: this kind of device cannot tell the times of single nodes.")
        names = {"model": self._server.offer(Path(request.model))} if Path(request.model).is_file() else {}
        if request.inputs:
            packed = folder / "inputs.arrays"
            write_records(Path(request.inputs), packed)
            names["inputs"] = self._server.offer(packed)
        return msgspec.structs.replace(request, **names)


def is_loopback(host: str) -> bool:
    """Tell whether an address reaches this machine alone; a name is taken for one of the network."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def own_address(host: str) -> str:
    """Return the address that others open: ``host``, but for "all of them" this machine's on the way out.

    Connecting a datagram socket sends nothing; the address (of a net for documentation) only picks a way.
    """
    if host not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not listened on
        return host
    family, far = (socket.AF_INET6, "2001:db8::1") if ":" in host else (socket.AF_INET, "192.0.2.1")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()


def say(text: str) -> None:
    """Tell the person who has to open the page."""
    print(text, file=sys.stderr, flush=True)


def show_qr(address: str) -> None:
    """Draw an address for a phone's camera where a person sees it; nothing where stderr goes to a file."""
    if sys.stderr.isatty():
        import segno

        segno.make(address, error="l", micro=False).terminal(sys.stderr, border=2, compact=True)
