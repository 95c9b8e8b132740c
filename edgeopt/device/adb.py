"""An Android phone as a device, by ``adb``: a native runner and ONNX Runtime's library, which the user points to.

Every call names the phone and has a timeout: ``adb`` waits without end for one that was unplugged.
"""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from edgeopt.device.arrays import pack, unpack
from edgeopt.device.base import Request, Worker, WorkerRefused
from edgeopt.device.named import NamedDevice
from edgeopt.device.process import WorkerProcess, explain_remote, last_line
from edgeopt.errors import CannotProfileError, DeviceError, DeviceLostError
from edgeopt.records.base import Record

FOLDER = "/data/local/tmp/edgeopt"
CALL_SECONDS = 30.0
COPY_SECONDS = 600.0
WAIT_SECONDS = 120.0
"""How long a phone that was there may take to come back; starting anew takes a minute."""

MACHINES = {183: "aarch64", 40: "armv7l", 62: "x86_64", 3: "i686"}
"""From the number in an ELF file's header to what ``uname -m`` says."""

ADVICE = (
    ("unauthorized", "Unlock it and confirm the question about USB debugging on its screen"),
    ("offline", "Unplug it, plug it in again, and see what `adb devices` says"),
    ("not found", "Connect it, switch on USB debugging, and see what `adb devices` says"),
    ("no devices", "Connect a phone, switch on USB debugging, and see what `adb devices` says"),
    ("more than one", "Name one: `adb:SERIAL`; `adb devices` lists them"),
    ("No space left", "Free some space there and run the same command again"),
)


class AdbDevice(NamedDevice):
    """Workers on an Android phone.

    Args:
        uri: How the user names it.
        serial: As ``adb devices`` lists it; empty for the only one.
        runner: The native runner for its processor.
        library: ``libonnxruntime.so`` for its processor.
    """

    def __init__(self, uri: str, serial: str, runner: Path, library: Path) -> None:
        super().__init__(uri)
        self._serial = serial
        self._files = (runner, library)
        self._there: list[str] = []
        self._mutex = threading.Lock()

    def run(self, request: Request, timeout_seconds: float, variables: Mapping[str, str]) -> dict[str, Any]:
        """Run one fresh runner to its end; see ``edgeopt.device.base.Device``.

        A phone that is lost is waited for, and the request runs once more.

        Raises:
            DeviceLostError: it did not come back.
        """
        try:
            return self._run(request, timeout_seconds, variables)
        except DeviceLostError:
            if not self._there:
                raise
            self._there = []
            self._adb(WAIT_SECONDS, "wait-for-device")
        return self._run(request, timeout_seconds, variables)

    def _run(self, request: Request, timeout_seconds: float, variables: Mapping[str, str]) -> dict[str, Any]:
        there = self.sent(request)
        try:
            with self._started(variables) as worker:
                fields = worker.ask(there, timeout_seconds)
            if request.outputs:
                self._fetch(there.outputs, Path(request.outputs))
        except WorkerRefused as refused:
            if refused.kind == "device":
                raise DeviceError(
                    f"{self._uri}: {refused.reason}. Free some space there, or build the runner anew."
                ) from refused
            raise
        finally:
            if request.outputs:
                self._adb(CALL_SECONDS, "shell", f"rm -f {FOLDER}/{there.outputs}", check=False)
        return fields

    @contextmanager
    def start(self) -> Iterator[Worker]:
        """Start a runner that stays; see ``edgeopt.device.base.Device``."""
        self._prepare()
        with self._started({}) as process:
            yield _StayingRunner(self, process)

    def _started(self, variables: Mapping[str, str]) -> WorkerProcess:
        settings = shlex.join(f"{name}={value}" for name, value in variables.items())
        runner, library = self._there
        script = f'cd {FOLDER} && {settings} ./{runner} ./{library}; echo "edgeopt-exit $?"'
        return WorkerProcess([*self._command(), "shell", "-T", script], {}, partial(explain_remote, self._uri, lost))

    # -- files and calls -----------------------------------------------------------------------------------------------

    def _command(self) -> list[str]:
        return ["adb", *(("-s", self._serial) if self._serial else ())]

    def _adb(self, seconds: float, *words: str, check: bool = True) -> str:
        """Run one call to its end and return what it wrote.

        Raises:
            DeviceLostError: it failed, or took too long.
        """
        try:
            done = subprocess.run(
                [*self._command(), *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
            )
        except FileNotFoundError as error:
            raise DeviceError(
                f"{self._uri}: there is no program `adb` here. Install Android's platform tools (adb)."
            ) from error
        except subprocess.TimeoutExpired as error:
            raise DeviceLostError(
                f"{self._uri}: adb did not answer within {seconds:.0f} s. Is the phone connected?"
            ) from error
        said = done.stderr.decode(errors="replace") + done.stdout.decode(errors="replace")
        if check and done.returncode:
            advice = next((advice for words, advice in ADVICE if words in said), "See what `adb devices` says")
            raise DeviceLostError(f"{self._uri}: adb failed: {last_line(said)}. {advice}.")
        return done.stdout.decode(errors="replace")

    def _prepare(self) -> None:
        """Bring runner and library there, once, if they fit its processor."""
        with self._mutex:
            if not self._there:
                self._there = self._bring()

    def _bring(self) -> list[str]:
        machine = self._adb(CALL_SECONDS, "shell", f"mkdir -p {FOLDER} && uname -m").strip()
        for path in self._files:
            built_for = machine_of(path)
            if built_for != machine:
                raise DeviceError(
                    f"{self._uri}: {path} is built for {built_for}, but the phone's processor is {machine}. "
                    "`tools/build_runner.py --help` says how to make one for it."
                )
        names = [self.push(path) for path in self._files]
        self._adb(CALL_SECONDS, "shell", f"chmod 755 {FOLDER}/{names[0]}")
        return names

    def push(self, path: Path) -> str:
        """Bring a file there, if it is not there yet, and return its name in the folder."""
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        name = sha256 + path.suffix
        if self._hash(name) != sha256:
            self._adb(COPY_SECONDS, "push", str(path), f"{FOLDER}/{name}.part")
            if self._hash(f"{name}.part") != sha256:
                raise DeviceError(f"{self._uri}: {path} arrived changed. Run the same command again; check the cable.")
            self._adb(CALL_SECONDS, "shell", f"mv {FOLDER}/{name}.part {FOLDER}/{name}")
        return name

    def _hash(self, name: str) -> str:
        return self._adb(CALL_SECONDS, "shell", f"sha256sum {FOLDER}/{name} 2>/dev/null; true").partition(" ")[0]

    def _fetch(self, name: str, here: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="edgeopt-adb-") as folder:
            local = Path(folder) / "outputs"
            self._adb(COPY_SECONDS, "pull", f"{FOLDER}/{name}", str(local))
            with local.open("rb") as stream:
                right = hashlib.file_digest(stream, "sha256").hexdigest() == self._hash(name)
            if not right:
                raise DeviceError(f"{self._uri}: outputs arrived changed. Run the same command again; check the cable.")
            unpack(local, here)

    def sent(self, request: Request) -> Request:
        """Send a request's files and return it with their names in the folder, where the runner runs."""
        if request.mode == "nodes":
            raise CannotProfileError(f"{self._uri}: this kind of device cannot tell the times of single nodes.")
        self._prepare()
        names = {}
        if Path(request.model).is_file():
            names["model"] = self.push(Path(request.model))
        if request.inputs:
            with tempfile.TemporaryDirectory(prefix="edgeopt-adb-") as folder:
                packed = Path(folder) / "inputs.arrays"
                pack(Path(request.inputs), packed)
                names["inputs"] = self.push(packed)
        outputs = f"{uuid.uuid4().hex}.arrays" if request.outputs else ""
        return msgspec.structs.replace(request, outputs=outputs, **names)


class _StayingRunner:
    """A runner that stays; the files of its first request are sent."""

    def __init__(self, device: AdbDevice, process: WorkerProcess) -> None:
        self._device = device
        self._process = process

    def ask(self, message: Mapping[str, Any] | Record, timeout_seconds: float) -> dict[str, Any]:
        """Send one line and return the answer's fields; see ``edgeopt.device.base.Worker``."""
        there = self._device.sent(message) if isinstance(message, Request) else message
        return self._process.ask(there, timeout_seconds)


def machine_of(path: Path) -> str:
    """Return the processor that a program or library is built for, in the words of ``uname -m``.

    Raises:
        DeviceError: it is no ELF file.
    """
    with path.open("rb") as stream:
        head = stream.read(20)
    if head[:4] != b"\x7fELF":
        raise DeviceError(f"{path} is no program or library for Linux or Android (no ELF file).")
    number = int.from_bytes(head[18:20], "little")
    return MACHINES.get(number, f"ELF machine {number}")


def lost(uri: str, errors: str) -> DeviceLostError:
    """Return the error for a phone that was there and is no more."""
    said = last_line(errors)
    return DeviceLostError(f"{uri}: the phone was lost in the middle of work{f' ({said})' if said else ''}.")
