"""A browser as a device: it opens a page, runs models with onnxruntime-web, and posts numbers and outputs back.

The page's address holds a token that one browser can claim, once. By default the server listens on loopback, which a
phone on a cable reaches through ``adb reverse``; on any other address it uses HTTPS, as browsers only allow threads and
a fine clock on a secure page.
"""

from __future__ import annotations

import ipaddress
import logging
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
from edgeopt.device.process import summarize_message
from edgeopt.errors import CannotProfileError, DeviceError, DeviceLostError
from edgeopt.model_files.layout import weight_files
from edgeopt.records.base import Record

RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")

CLAIM_SECONDS = 600.0
"""How long a person may take to open the page."""
SILENCE_SECONDS = 90.0
"""The page asks for messages at least every 20 s; a browser that is silent for longer than this is gone."""
RELOAD_SECONDS = 5.0
"""How long a page that was left may take to come back by itself."""

_logger = logging.getLogger(__name__)


class PageAddress(NamedTuple):
    """The address at which the page is served."""

    host: str
    """Address to listen on."""
    port: int
    """0 for any free port."""
    tls: bool
    """Whether to use HTTPS; loopback does without it."""
    phone: str | None
    """Serial number of the phone whose browser runs models, empty for the only phone; None for any browser."""


class BrowserDevice(NamedDevice):
    """Web Workers of one page, each a fresh session.

    Args:
        uri: How the user names it.
        address: Where to serve the page.
        runtime: Folder with the three files of onnxruntime-web.
    """

    def __init__(self, uri: str, address: PageAddress, runtime: Path) -> None:
        super().__init__(uri)
        self._address = address
        self._runtime = runtime
        self._server: BrowserServer | None = None
        self._was_connected = False

    def run(self, request: WorkerRequest, timeout_seconds: float, variables: Mapping[str, str]) -> dict[str, Any]:
        """Run one fresh Web Worker; see ``edgeopt.device.base.Device``. Environment variables are ignored.

        If the page is closed or reloaded, the request runs once more on the page that comes back.

        Raises:
            DeviceLostError: no page came back, or it was lost again.
        """
        try:
            return self._run(request, timeout_seconds)
        except DeviceLostError as error:
            if not self._was_connected:
                raise
            _logger.debug("running %s once more after: %s", request.mode, error)
        return self._run(request, timeout_seconds)

    def _run(self, request: WorkerRequest, timeout_seconds: float) -> dict[str, Any]:
        with self.start() as worker:
            return worker.ask(request, timeout_seconds)

    @contextmanager
    def start(self) -> Iterator[Worker]:
        """Start a Web Worker that stays; see ``edgeopt.device.base.Device``."""
        server = self._connect_page()
        worker = _WebWorker(self._uri, server)
        try:
            yield worker
        finally:
            server.send(worker.id, None)

    def _connect_page(self) -> BrowserServer:
        """Return the server with its page connected; start it if necessary, and wait for a browser.

        Raises:
            DeviceError: the page cannot be served.
            DeviceLostError: no browser opened it.
        """
        if self._server is None:
            self._server = self._start_server()
            self._ask_to_open(self._server, "open this page in the browser that you want to measure")
        elif not self._wait_for_page(self._server, RELOAD_SECONDS):
            self._server.reopen()
            self._ask_to_open(self._server, "the page was lost; open it again")
        self._was_connected = True
        return self._server

    def _start_server(self) -> BrowserServer:
        host, port, tls, phone = self._address
        shown = "localhost" if phone is not None else reachable_address(host)
        certificate = make_certificate(self._uri, shown) if tls and not is_loopback(host) else None
        with ExitStack() as stack:
            try:
                server = BrowserServer((host, port), shown, self._runtime, certificate)
            except OSError as error:
                raise DeviceError(
                    f"{self._uri}: cannot listen on that address: {error.strerror}. Use another one."
                ) from error
            stack.callback(server.close)
            if phone is not None:
                stack.enter_context(Adb(self._uri, phone).reverse_port(server.port))
            _logger.debug("%s: serving the page on %s, port %d", self._uri, host, server.port)
            self.close = weakref.finalize(self, stack.pop_all().close)
        return server

    def _ask_to_open(self, server: BrowserServer, text: str) -> None:
        host, _, tls, phone = self._address
        say(f"{text}: {server.address}")
        if server.certificate is not None:
            say(
                "its certificate was made on this machine just now and no authority signed it, so the browser warns: "
                f"continue only if it shows the SHA-256 fingerprint {server.certificate.fingerprint}"
            )
        elif not tls and not is_loopback(host):
            say("it is served over plain http: the browser will allow one thread and a coarse clock")
        if phone is not None:
            Adb(self._uri, phone).open_page(server.address)
        elif not is_loopback(host):
            show_qr_code(server.address)
        if not self._wait_for_page(server, CLAIM_SECONDS):
            raise DeviceLostError(f"{self._uri}: no browser opened the page within {CLAIM_SECONDS / 60:.0f} minutes.")

    def _wait_for_page(self, server: BrowserServer, seconds: float) -> bool:
        """Wait until a page is connected; return whether one is."""
        deadline = time.monotonic() + seconds
        while server.page is None or server.silent_seconds() > SILENCE_SECONDS:
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
        summary, begin = summarize_message(message), time.monotonic()
        _logger.debug("Web Worker %s: asked for %s", self.id, summary)
        with tempfile.TemporaryDirectory(prefix="edgeopt-browser-") as folder:
            offered = self._offer_files(message, Path(folder)) if isinstance(message, WorkerRequest) else message
            self._server.send(self.id, offered)
            fields = self._wait(timeout_seconds)
            _logger.debug("Web Worker %s: answered %s after %.3f s", self.id, summary, time.monotonic() - begin)
            if isinstance(message, WorkerRequest) and message.outputs:
                received = Path(folder) / "outputs"
                received.write_bytes(self._server.outputs.pop(self.id))
                read_records(received, Path(message.outputs))
            return fields

    def _wait(self, timeout_seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_seconds
        while (fields := self._server.next_answer(self.id, seconds=1.0)) is None:
            if time.monotonic() > deadline:
                raise DeviceError(f"{self._uri}: the browser did not answer within {timeout_seconds:.0f} s.")
            if self._server.page != self._page or self._server.silent_seconds() > SILENCE_SECONDS:
                raise DeviceLostError(
                    f"{self._uri}: the browser was lost: its page was closed or reloaded, or the device went to sleep. "
                    "Keep the page in the foreground and the device awake."
                )
        if fields.pop("ok"):
            return fields
        if fields["kind"] == "device":
            raise DeviceError(f"{self._uri}: {fields['reason']}. Reload the page, or try another browser.")
        raise WorkerRefused(fields["kind"], fields["reason"])

    def _offer_files(self, request: WorkerRequest, folder: Path) -> WorkerRequest:
        """Let the page download a request's files, and return the request with their names."""
        if request.mode == "nodes":
            raise CannotProfileError(f"{self._uri}: this kind of device can't time single nodes.")
        if weight_files(Path(request.model)):
            raise WorkerRefused("model", "a browser loads a model only from one file, which holds at most 2 GiB")
        names = {"model": self._server.offer(Path(request.model))} if Path(request.model).is_file() else {}
        if request.inputs:
            packed = folder / "inputs.arrays"
            write_records(Path(request.inputs), packed)
            names["inputs"] = self._server.offer(packed)
        return msgspec.structs.replace(request, **names)


def is_loopback(host: str) -> bool:
    """Return whether an address only reaches this machine; a name counts as one on the network."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reachable_address(host: str) -> str:
    """Return the address that others open: ``host``, or this machine's outgoing address if ``host`` means all of them.

    Connecting a datagram socket sends nothing; the remote address (reserved for documentation) only selects a route.
    """
    if host not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not listened on
        return host
    family, remote = (socket.AF_INET6, "2001:db8::1") if ":" in host else (socket.AF_INET, "192.0.2.1")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((remote, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()


def say(text: str) -> None:
    """Print a line for the person who has to open the page."""
    print(text, file=sys.stderr, flush=True)


def show_qr_code(address: str) -> None:
    """Draw an address for a phone's camera, if stderr is a terminal."""
    if sys.stderr.isatty():
        import segno

        segno.make(address, error="l", micro=False).terminal(sys.stderr, border=2, compact=True)
