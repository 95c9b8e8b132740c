"""The web server of the browser device: the page, the files of requests, messages out, answers in."""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from edgeopt.records.codec import to_json

WEB = Path(__file__).parent / "web"
TYPES = {".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}
POLL_SECONDS = 20.0


class BrowserServer:
    """Serve one browser; everything is below a token.

    Args:
        place: Address and port to listen on.
        token: The secret in the page's address.
        runtime: Folder with onnxruntime-web's files.

    Raises:
        OSError: the address cannot be listened on.
    """

    def __init__(self, place: tuple[str, int], token: str, runtime: Path) -> None:
        self.claimed = threading.Event()
        self.session = secrets.token_urlsafe(16)
        self.token = token
        self.runtime = runtime
        self.files: dict[str, Path] = {}
        self.outputs: dict[str, bytes] = {}
        self.messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._answers: defaultdict[str, queue.SimpleQueue[dict[str, Any]]] = defaultdict(queue.SimpleQueue)
        self._mutex = threading.Lock()
        self._heard = time.monotonic()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(place, handler)
        self._server.daemon_threads = True
        host, port = place[0], self._server.server_address[1]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}/{token}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving; the page then says so."""
        self._server.shutdown()
        self._server.server_close()

    def claim(self) -> str | None:
        """Give the session to the first browser that asks."""
        with self._mutex:
            if self.claimed.is_set():
                return None
            self.claimed.set()
            return self.session

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
        self.messages.put(to_json({"id": worker, "message": message}))

    def answer(self, worker: str, *, seconds: float) -> dict[str, Any] | None:
        """Return a Web Worker's next answer, or None where none comes in time."""
        try:
            return self._answers[worker].get(timeout=seconds)
        except queue.Empty:
            return None

    def take(self, kind: str, worker: str, body: bytes) -> None:
        """Keep what a Web Worker sent: outputs come before the answer that counts them."""
        if kind == "outputs":
            self.outputs[worker] = body
        else:
            self._answers[worker].put(msgspec.json.decode(body))


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
        if words == ["next"]:
            try:
                return self._send(200, self.owner.messages.get(timeout=POLL_SECONDS), "application/json")
            except queue.Empty:
                return self._send(204, b"")
        if len(words) == 2 and words[0] == "file" and words[1] in self.owner.files:
            return self._send_file(self.owner.files[words[1]])
        return self._send(404, b"")

    def do_POST(self) -> None:
        """Take an answer, outputs, or the claim of the token."""
        words = self._words()
        body = self.rfile.read(int(self.headers.get("Content-Length", "0"))) if words else b""
        if words == ["claim"]:
            session = self.owner.claim()
            return self._send(403, b"") if session is None else self._send(200, session.encode())
        if not self._known():
            return self._send(403, b"")
        self.owner.hear()
        if len(words) == 2 and words[0] in ("answer", "outputs"):
            self.owner.take(words[0], words[1], body)
            return self._send(204, b"")
        return self._send(404, b"")

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
