"""A server that speaks the host's part of adb's protocol; the phone behind it is this machine.

The phone's folder is one of the test's; commands run in this machine's shell with its path instead of the phone's.
"""

import asyncio
import contextlib
import os
import struct
import threading
from pathlib import Path

PROTOCOL = 41  # expected by adb 1.0.41, which replaces a server of another version
PHONE = "/data/local/tmp"
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)


class Server:
    """Phones by serial number, each with the state that `adb devices` shows; use it in a ``with``."""

    def __init__(self, folder: Path, phones: dict[str, str]) -> None:
        self.folder = folder
        self.phones = phones
        self.machine = os.uname().machine
        self.is_full = False
        self.is_mute = False
        """Whether it accepts requests and never answers."""
        self.port = 0
        self.requests: list[str] = []
        self._running: set[asyncio.subprocess.Process] = set()
        self._commands: dict[int, str] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Server":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.unplug()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def unplug(self) -> None:
        """Break every connection to a phone."""

        async def close() -> None:
            for writer in list(self._writers):
                writer.transport.abort()

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(10)

    def runners(self) -> list[int]:
        """Return the process ids of the shells in which the native runner runs."""
        return [process.pid for process in list(self._running) if "./" in self._commands.get(process.pid, "")]

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        await asyncio.wait(tasks, timeout=5) if tasks else None

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                request = (await reader.readexactly(int(await reader.readexactly(4), 16))).decode()
                self.requests.append(request)
                while self.is_mute:
                    await asyncio.sleep(0.05)
                if not await self._answer(request, reader, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, request: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection continues as one to a phone."""
        head, _, rest = request.partition(":")
        if request == "host:version":
            writer.write(b"OKAY" + encode_text(f"{PROTOCOL:04x}"))
        elif request in ("host:devices", "host:devices-l"):
            writer.write(b"OKAY" + encode_text("".join(f"{name}\t{state}\n" for name, state in self.phones.items())))
        elif head in ("host", "host-serial", "host-transport-id") and rest.endswith("features"):
            writer.write(b"OKAY" + encode_text("shell_v2,cmd"))
        elif "wait-for-" in request:
            writer.write(b"OKAY")
            await writer.drain()
            while "device" not in self.phones.values() and not self._stop.is_set():
                await asyncio.sleep(0.05)
            writer.write(b"OKAY")
        elif head == "host" and rest.startswith(("transport", "tport")):
            problem = self._find_problem(rest)
            if problem:
                writer.write(b"FAIL" + encode_text(problem))
                return False
            writer.write(b"OKAY" + (struct.pack("<Q", 1) if rest.startswith("tport") else b""))
            return True
        elif request.startswith("shell,v2"):
            writer.write(b"OKAY")
            await self._shell(request.partition("raw:")[2], reader, writer)
        elif request.startswith("reverse:"):  # the phone is this machine, so its ports are too
            writer.write(b"OKAYOKAY")
        elif request == "sync:":
            writer.write(b"OKAY")
            await self._sync(reader, writer)
        else:
            writer.write(b"FAIL" + encode_text(f"unknown request {request}"))
        await writer.drain()
        return False

    def _find_problem(self, rest: str) -> str:
        if rest.endswith("any"):
            if len(self.phones) != 1:
                return "more than one device/emulator" if self.phones else "no devices/emulators found"
            state = next(iter(self.phones.values()))
        else:
            serial = rest.rpartition(":")[2]
            state = self.phones.get(serial, f"'{serial}' not found")
        return "" if state == "device" else f"device {state}"

    async def _shell(self, command: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Run a command; each packet has a kind, a length and bytes."""
        command = command.replace(PHONE, str(self.folder)).replace("uname -m", f"echo {self.machine}")
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._running.add(process)
        self._commands[process.pid] = command

        async def copy(source: asyncio.StreamReader, kind: int) -> None:
            while data := await source.read(1 << 16):
                writer.write(struct.pack("<BI", kind, len(data)) + data)
                await writer.drain()

        async def feed() -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    kind, size = struct.unpack("<BI", await reader.readexactly(5))
                    data = await reader.readexactly(size)
                    if kind == CLOSE_STDIN:
                        break
                    if kind == STDIN:
                        process.stdin.write(data)
                        await process.stdin.drain()
            process.stdin.close()

        feeding = asyncio.create_task(feed())
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(copy(process.stdout, STDOUT), copy(process.stderr, STDERR))
        code = await process.wait()
        self._running.discard(process)
        feeding.cancel()
        with contextlib.suppress(ConnectionError):
            writer.write(struct.pack("<BIB", EXIT, 1, code % 256))

    async def _sync(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send and receive files; each packet has four letters and a length."""
        while True:
            kind, size = struct.unpack("<4sI", await reader.readexactly(8))
            name = (await reader.readexactly(size)).decode() if kind != b"QUIT" else ""
            path = Path(name.partition(",")[0].replace(PHONE, str(self.folder)))
            if kind == b"QUIT":
                return
            if kind in (b"STAT", b"LSTA"):
                mode, length = (path.stat().st_mode, path.stat().st_size) if path.exists() else (0, 0)
                writer.write(kind + struct.pack("<III", mode, length, 0))
            elif kind == b"SEND":
                await self._receive(path, reader, writer)
            elif kind == b"RECV":
                data = path.read_bytes()
                for begin in range(0, len(data), 1 << 16):
                    part = data[begin : begin + (1 << 16)]
                    writer.write(b"DATA" + struct.pack("<I", len(part)) + part)
                writer.write(b"DONE" + struct.pack("<I", 0))
            await writer.drain()

    async def _receive(self, path: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = bytearray()
        while True:
            kind, size = struct.unpack("<4sI", await reader.readexactly(8))
            if kind == b"DONE":
                break
            data += await reader.readexactly(size)
        if self.is_full:
            reason = b"couldn't write: No space left on device"
            writer.write(b"FAIL" + struct.pack("<I", len(reason)) + reason)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.write_bytes(data)
        except OSError as error:
            reason = f"couldn't write: {error.strerror}".encode()
            writer.write(b"FAIL" + struct.pack("<I", len(reason)) + reason)
        else:
            writer.write(b"OKAY" + struct.pack("<I", 0))


def encode_text(value: str) -> bytes:
    """Return a string after its length in four hex digits."""
    return f"{len(value):04x}{value}".encode()
