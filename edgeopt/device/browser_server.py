"""The web server of the browser device: the page, the files of requests, messages out, answers in."""

from __future__ import annotations

import contextlib
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

WEB = Path(__file__).parent / "web"
TYPES = {".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}
_POLL_SECONDS = 20.0


class BrowserServer:
    """Serve one page; everything is below a token.

    Messages to the page are numbered: it says which was the last that it has, so that one which a network lost is sent
    again. Answers are numbered, too, and taken once.

    Args:
        place: Address and port to listen on.
        shown: The host in the page's address.
        runtime: Folder with onnxruntime-web's files.
        certificate: For HTTPS; None for plain http.

    Raises:
        OSError: the address cannot be listened on.
    """

    def __init__(self, place: tuple[str, int], shown: str, runtime: Path, certificate: Certificate | None) -> None:
        self.session = secrets.token_urlsafe(16)
        self.page: str | None = None
        """The page that is there; another each time it is loaded."""
        self.token = secrets.token_urlsafe(16)
        self.runtime = runtime
        self.certificate = certificate
        self.files: dict[str, Path] = {}
        self.outputs: dict[str, bytes] = {}
        self._messages: deque[tuple[int, bytes]] = deque()
        self._sent = 0
        self._taken: set[tuple[str, str, str]] = set()
        self._answers: defaultdict[str, queue.SimpleQueue[dict[str, Any]]] = defaultdict(queue.SimpleQueue)
        self._claimed = False
        self._changed = threading.Condition()
        self._heard = time.monotonic()
        handler = type("Handler", (_Handler,), {"owner": self})
        server = _Server6 if ":" in place[0] else _Server
        self._server = server(place, handler)
        if certificate is not None:  # the handshake waits for the handler's thread: a slow browser must not hold others
            self._server.socket = certificate.context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port: int = self._server.server_address[1]
        scheme, host = "http" if certificate is None else "https", f"[{shown}]" if ":" in shown else shown
        self.address = f"{scheme}://{host}:{self.port}/{self.token}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving; the page then says so."""
        self._server.shutdown()
        self._server.server_close()

    def claim(self, page: str) -> str | None:
        """Give the session to the first page that asks."""
        with self._changed:
            if self._claimed:
                return None
            self._claimed = True
            self.session = secrets.token_urlsafe(16)
        self.arrive(page)
        return self.session

    def reopen(self) -> None:
        """Let one more browser claim the page: the one that did is lost. It may still come back before another does."""
        with self._changed:
            self._claimed = False

    def arrive(self, page: str) -> None:
        """Note a page that was loaded: what was meant for the one before is void."""
        with self._changed:
            self.page = page
            self._heard = time.monotonic()
            self._messages.clear()
            self._changed.notify_all()

    def leave(self, page: str) -> None:
        """Note that a page was closed, unless another is there already."""
        with self._changed:
            if self.page == page:
                self.page = None
                self._changed.notify_all()

    def hear(self) -> None:
        """Note that the browser is there."""
        self._heard = time.monotonic()

    def silence(self) -> float:
        """Return the seconds since the browser last asked for anything."""
        return time.monotonic() - self._heard

    def offer(self, path: Path) -> str:
        """Let the page download a file by the name that is returned."""
        name = secrets.token_hex(16)
        self.files[name] = path
        return name

    def send(self, worker: str, message: object) -> None:
        """Queue a message for a Web Worker; None ends it."""
        with self._changed:
            self._sent += 1
            text = to_json({"number": self._sent, "id": worker, "message": message})
            self._messages.append((self._sent, text))
            self._changed.notify_all()

    def next_message(self, page: str, last: int, seconds: float) -> bytes | None:
        """Return the message after number ``last`` for a page; None where none comes in time, or another page came."""
        with self._changed:
            while self.page == page and self._messages and self._messages[0][0] <= last:
                self._messages.popleft()
            self._changed.wait_for(lambda: self._messages or self.page != page, seconds)
            return self._messages[0][1] if self._messages and self.page == page else None

    def answer(self, worker: str, *, seconds: float) -> dict[str, Any] | None:
        """Return a Web Worker's next answer, or None where none comes in time."""
        try:
            return self._answers[worker].get(timeout=seconds)
        except queue.Empty:
            return None

    def take(self, kind: str, worker: str, number: str, body: bytes) -> None:
        """Keep what a Web Worker sent, once: outputs come before the answer that counts them."""
        with self._changed:
            if (kind, worker, number) in self._taken:
                return
            self._taken.add((kind, worker, number))
        if kind == "outputs":
            self.outputs[worker] = body
        else:
            self._answers[worker].put(msgspec.json.decode(body))


class _Server(ThreadingHTTPServer):
    """Does not speak of browsers that turn away, at the certificate for one."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Write what went wrong in our own code, and nothing about connections that broke."""
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
        words = self._words()
        if words == [""]:
            return self._send_file(WEB / "page.html")
        if len(words) == 1 and words[0] in ("page.js", "worker.js"):
            return self._send_file(WEB / words[0])
        if len(words) == 1 and words[0].startswith("ort"):
            return self._send_file(self.owner.runtime / words[0])
        if not self._known():
            return self._send(403, b"")
        self.owner.hear()
        if len(words) == 3 and words[0] == "next" and words[2].isdigit():
            message = self.owner.next_message(words[1], int(words[2]), _POLL_SECONDS)
            return self._send(204, b"") if message is None else self._send(200, message, "application/json")
        if len(words) == 2 and words[0] == "file" and words[1] in self.owner.files:
            return self._send_file(self.owner.files[words[1]])
        return self._send(404, b"")

    def do_POST(self) -> None:
        """Take an answer, outputs, the claim of the token, or the word that a page came or was left."""
        words = self._words()
        body = self.rfile.read(int(self.headers.get("Content-Length", "0"))) if words else b""
        if len(words) == 2 and words[0] == "claim":
            session = self.owner.claim(words[1])
            return self._send(403, b"") if session is None else self._send(200, session.encode())
        if not self._known():
            return self._send(403, b"")
        match words:
            case ["arrived", page]:
                self.owner.arrive(page)
            case ["left", page]:
                self.owner.leave(page)
            case ["answer" | "outputs" as kind, worker, number]:
                self.owner.hear()
                self.owner.take(kind, worker, number, body)
            case _:
                return self._send(404, b"")
        return self._send(204, b"")

    def _words(self) -> list[str]:
        """Return the path below the token, or nothing where the token is wrong."""
        _, token, *words = urlsplit(self.path).path.split("/")
        return words if secrets.compare_digest(token.encode(), self.owner.token.encode()) else []

    def _known(self) -> bool:
        return bool(self._words()) and secrets.compare_digest(
            urlsplit(self.path).query.encode(), self.owner.session.encode()
        )

    def _send_file(self, path: Path) -> None:
        try:
            self._send(200, path.read_bytes(), TYPES.get(path.suffix, "application/octet-stream"))
        except OSError:
            self._send(404, b"")

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

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Write nothing: stderr shows the progress."""
