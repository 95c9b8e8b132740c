"""The web server of the browser device: serves the page and files, sends messages, receives answers."""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import socket
import sys
import threading
import time
from collections import defaultdict, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from edgeopt.device.certificate import Certificate
from edgeopt.records.codec import to_json

WEB_FOLDER = Path(__file__).parent / "web"
CONTENT_TYPES = {".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}
_POLL_SECONDS = 20.0

_logger = logging.getLogger(__name__)


class BrowserServer:
    """Serve one page; every path begins with a token.

    Messages to the page are numbered: the page reports the last one it received, so a message that the network lost is
    sent again. Answers are numbered too, and accepted once.

    Args:
        address: Address and port to listen on.
        shown_host: The host in the page's address.
        runtime: Folder with onnxruntime-web's files.
        certificate: For HTTPS; None for plain http.

    Raises:
        OSError: it cannot listen on the address.
    """

    def __init__(
        self, address: tuple[str, int], shown_host: str, runtime: Path, certificate: Certificate | None
    ) -> None:
        self.session = secrets.token_urlsafe(16)
        self.page: str | None = None
        """The page that is connected; it gets a new id each time it is loaded."""
        self.token = secrets.token_urlsafe(16)
        self.runtime = runtime
        self.certificate = certificate
        self.files: dict[str, Path] = {}
        self.outputs: dict[str, bytes] = {}
        self._messages: deque[tuple[int, bytes]] = deque()
        self._sent = 0
        self._accepted: set[tuple[str, str, str]] = set()
        self._answers: defaultdict[str, queue.SimpleQueue[dict[str, Any]]] = defaultdict(queue.SimpleQueue)
        self._claimed = False
        self._changed = threading.Condition()
        self._last_contact = time.monotonic()
        handler = type("Handler", (_Handler,), {"owner": self})
        server = _Server6 if ":" in address[0] else _Server
        self._server = server(address, handler)
        if certificate is not None:  # the handshake runs in the handler's thread: a slow browser must not block others
            self._server.socket = certificate.context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port: int = self._server.server_address[1]
        scheme = "http" if certificate is None else "https"
        host = f"[{shown_host}]" if ":" in shown_host else shown_host
        self.address = f"{scheme}://{host}:{self.port}/{self.token}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving; the page then says that it lost edgeopt."""
        _logger.debug("port %d: closing", self.port)
        self._server.shutdown()
        self._server.server_close()

    def claim(self, page: str) -> str | None:
        """Give the session to the first page that asks; return it, or None to later pages."""
        with self._changed:
            if self._claimed:
                return None
            self._claimed = True
            self.session = secrets.token_urlsafe(16)
        self.connect_page(page)
        return self.session

    def reopen(self) -> None:
        """Let one more browser claim the page, as the last one is lost; that one may still come back first."""
        _logger.debug("port %d: the page was lost; another browser may claim it", self.port)
        with self._changed:
            self._claimed = False

    def connect_page(self, page: str) -> None:
        """Note that a page was loaded, and drop the messages for the page before."""
        _logger.debug("port %d: page %s is connected", self.port, page)
        with self._changed:
            self.page = page
            self._last_contact = time.monotonic()
            self._messages.clear()
            self._changed.notify_all()

    def disconnect_page(self, page: str) -> None:
        """Note that a page was closed, unless another one is already connected."""
        _logger.debug("port %d: page %s was closed", self.port, page)
        with self._changed:
            if self.page == page:
                self.page = None
                self._changed.notify_all()

    def note_contact(self) -> None:
        """Note that the browser sent a request."""
        self._last_contact = time.monotonic()

    def silent_seconds(self) -> float:
        """Return the seconds since the browser's last request."""
        return time.monotonic() - self._last_contact

    def offer(self, path: Path) -> str:
        """Let the page download a file, and return the name to ask for."""
        _logger.debug("port %d: offering %s, %d bytes", self.port, path.name, path.stat().st_size)
        name = secrets.token_hex(16)
        self.files[name] = path
        return name

    def send(self, worker: str, message: object) -> None:
        """Queue a message for a Web Worker; None ends it."""
        with self._changed:
            self._sent += 1
            _logger.debug("port %d: message %d to Web Worker %s", self.port, self._sent, worker)
            text = to_json({"number": self._sent, "id": worker, "message": message})
            self._messages.append((self._sent, text))
            self._changed.notify_all()

    def next_message(self, page: str, last: int, seconds: float) -> bytes | None:
        """Return a page's message after number ``last``; None if none comes in time, or another page was loaded."""
        with self._changed:
            while self.page == page and self._messages and self._messages[0][0] <= last:
                self._messages.popleft()
            self._changed.wait_for(lambda: self._messages or self.page != page, seconds)
            return self._messages[0][1] if self._messages and self.page == page else None

    def next_answer(self, worker: str, *, seconds: float) -> dict[str, Any] | None:
        """Return a Web Worker's next answer, or None if none comes in time."""
        try:
            return self._answers[worker].get(timeout=seconds)
        except queue.Empty:
            return None

    def accept(self, kind: str, worker: str, number: str, body: bytes) -> None:
        """Keep a Web Worker's outputs or answer, once: the outputs come before the answer that counts them."""
        with self._changed:
            if (kind, worker, number) in self._accepted:
                return
            self._accepted.add((kind, worker, number))
        _logger.debug("port %d: %s %s of Web Worker %s, %d bytes", self.port, kind, number, worker, len(body))
        if kind == "outputs":
            self.outputs[worker] = body
        else:
            self._answers[worker].put(msgspec.json.decode(body))


class _Server(ThreadingHTTPServer):
    """Ignores browsers that hang up, for example because of the certificate."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print errors of our own code, and nothing about connections that broke."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    """Answers one request of the page."""

    owner: BrowserServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Send the page, a file or the next message."""
        parts = self._path_parts()
        if parts == [""]:
            return self._send_file(WEB_FOLDER / "page.html")
        if len(parts) == 1 and parts[0] in ("page.js", "worker.js"):
            return self._send_file(WEB_FOLDER / parts[0])
        if len(parts) == 1 and parts[0].startswith("ort"):
            return self._send_file(self.owner.runtime / parts[0])
        if not self._has_session():
            return self._send(403, b"")
        self.owner.note_contact()
        if len(parts) == 3 and parts[0] == "next" and parts[2].isdigit():
            message = self.owner.next_message(parts[1], int(parts[2]), _POLL_SECONDS)
            return self._send(204, b"") if message is None else self._send(200, message, "application/json")
        if len(parts) == 2 and parts[0] == "file" and parts[1] in self.owner.files:
            return self._send_file(self.owner.files[parts[1]])
        return self._send(404, b"")

    def do_POST(self) -> None:
        """Accept an answer, outputs, a claim of the token, or the news that a page was loaded or closed."""
        parts = self._path_parts()
        body = self.rfile.read(int(self.headers.get("Content-Length", "0"))) if parts else b""
        if len(parts) == 2 and parts[0] == "claim":
            session = self.owner.claim(parts[1])
            return self._send(403, b"") if session is None else self._send(200, session.encode())
        if not self._has_session():
            return self._send(403, b"")
        match parts:
            case ["arrived", page]:
                self.owner.connect_page(page)
            case ["left", page]:
                self.owner.disconnect_page(page)
            case ["answer" | "outputs" as kind, worker, number]:
                self.owner.note_contact()
                self.owner.accept(kind, worker, number, body)
            case _:
                return self._send(404, b"")
        return self._send(204, b"")

    def _path_parts(self) -> list[str]:
        """Return the parts of the path after the token, or nothing if the token is wrong."""
        _, token, *parts = urlsplit(self.path).path.split("/")
        return parts if secrets.compare_digest(token.encode(), self.owner.token.encode()) else []

    def _has_session(self) -> bool:
        return bool(self._path_parts()) and secrets.compare_digest(
            urlsplit(self.path).query.encode(), self.owner.session.encode()
        )

    def _send_file(self, path: Path) -> None:
        begin = time.monotonic()
        try:
            body = path.read_bytes()
            self._send(200, body, CONTENT_TYPES.get(path.suffix, "application/octet-stream"))
        except OSError:
            self._send(404, b"")
        else:
            seconds = time.monotonic() - begin
            _logger.debug("port %d: sent %s, %d bytes in %.3f s", self.owner.port, path.name, len(body), seconds)

    def _send(self, status: int, body: bytes, kind: str = "text/plain") -> None:
        with contextlib.suppress(ConnectionError):  # the page was closed
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")  # threads and a fine clock need both
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.send_header("Cross-Origin-Resource-Policy", "same-origin")
            self.send_header("Referrer-Policy", "no-referrer")
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Print nothing: stderr shows the progress."""
