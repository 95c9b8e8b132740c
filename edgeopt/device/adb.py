"""An Android phone as a device, by ``adb``: a native runner and ONNX Runtime's library, which the user points to."""

from __future__ import annotations

import hashlib
import shlex
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from edgeopt.device.adb_client import CALL_SECONDS, Adb
from edgeopt.device.arrays import read_records, write_records
from edgeopt.device.base import Worker, WorkerRefused, WorkerRequest
from edgeopt.device.elf import machine_of
from edgeopt.device.named import NamedDevice
from edgeopt.device.process import WorkerProcess, explain_remote, last_line
from edgeopt.errors import CannotProfileError, DeviceError, DeviceLostError, is_disk_full
from edgeopt.records.base import Record

FOLDER = "/data/local/tmp/edgeopt"
COPY_SECONDS = 600.0
WAIT_SECONDS = 120.0
"""How long a phone that was there may take to come back; starting anew takes a minute."""

ALSO_RUNS = {"armv8l": "armv7l", "armv7": "armv7l", "i586": "i686", "i386": "i686"}
"""Other words of ``uname -m``: a 64-bit processor whose system is a 32-bit one says ``armv8l``."""


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
        self._adb = Adb(uri, serial)
        self._files = (runner, library)
        self._there: list[str] = []
        self._was_there = False
        self._mutex = threading.Lock()

    def run(self, request: WorkerRequest, timeout_seconds: float, variables: Mapping[str, str]) -> dict[str, Any]:
        """Run one fresh runner to its end; see ``edgeopt.device.base.Device``.

        A phone that is lost is waited for, and the request runs once more.

        Raises:
            DeviceLostError: it did not come back.
        """
        try:
            return self._run(request, timeout_seconds, variables)
        except DeviceLostError:
            if not self._was_there:
                raise
        return self._run(request, timeout_seconds, variables)

    def _run(self, request: WorkerRequest, timeout_seconds: float, variables: Mapping[str, str]) -> dict[str, Any]:
        with self._watched():
            there = self.sent(request)
            try:
                with self._started(variables) as worker, explaining(self._uri):
                    fields = worker.ask(there, timeout_seconds)
                if request.outputs:
                    self._fetch(there.outputs, Path(request.outputs))
            finally:
                if request.outputs:
                    self._adb.call(CALL_SECONDS, "shell", f"rm -f {FOLDER}/{there.outputs}", check=False)
            return fields

    @contextmanager
    def start(self) -> Iterator[Worker]:
        """Start a runner that stays; see ``edgeopt.device.base.Device``."""
        with self._watched():
            self._prepare()
            with self._started({}) as process:
                yield _StayingRunner(self, process)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """After the phone was lost, look anew for what is there."""
        try:
            yield
        except DeviceLostError:
            self._there = []
            raise

    def _started(self, variables: Mapping[str, str]) -> WorkerProcess:
        settings = shlex.join(f"{name}={value}" for name, value in variables.items())
        runner, library = self._there
        script = f'cd {FOLDER} && {settings} ./{runner} ./{library}; echo "edgeopt-exit $?"'
        return WorkerProcess(
            [*self._adb.command(), "shell", "-T", script], {}, partial(explain_remote, self._uri, adb_lost)
        )

    # -- files and calls -----------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Bring runner and library there, once, if they fit its processor."""
        with self._mutex:
            if not self._there:
                if self._was_there:
                    self._adb.call(WAIT_SECONDS, "wait-for-device")
                self._there = self._bring()
                self._was_there = True

    def _bring(self) -> list[str]:
        stale = f"find {FOLDER} -type f -mtime +0 -exec rm -f {{}} +"  # what nobody asked for during a day
        said = self._adb.call(CALL_SECONDS, "shell", f"mkdir -p {FOLDER} && {stale}; uname -m").strip()
        machine = ALSO_RUNS.get(said, said)
        for path in self._files:
            built_for = machine_of(path)
            if built_for != machine:
                raise DeviceError(
                    f"{self._uri}: {path} is built for {built_for}, but the phone's processor is {said}. "
                    "`tools/build_runner.py --help` says how to make one for it."
                )
        names = [self.push(path) for path in self._files]
        self._adb.call(CALL_SECONDS, "shell", f"chmod 755 {FOLDER}/{names[0]}")
        return names

    def push(self, path: Path) -> str:
        """Bring a file there, if it is not there yet, and return its name in the folder."""
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        name = sha256 + path.suffix
        if self._hash(name) != sha256:
            self._send(path, f"{FOLDER}/{name}", sha256)
        return name

    def _send(self, path: Path, there: str, sha256: str) -> None:
        part = f"{there}.part"
        try:
            self._adb.call(COPY_SECONDS, "push", str(path), part)
        except DeviceLostError:
            self._adb.call(CALL_SECONDS, "shell", f"rm -f {part}", check=False)  # half a file fills the disk, too
            raise
        if self._hash(f"{Path(there).name}.part") != sha256:
            raise DeviceError(f"{self._uri}: {path} arrived changed. Run the same command again; check the cable.")
        self._adb.call(CALL_SECONDS, "shell", f"mv {part} {there}")

    def _hash(self, name: str) -> str:
        """Return a file's SHA-256 in hex digits, empty where it is not there; it stays for another day."""
        script = f"cd {FOLDER} && sha256sum {name} 2>/dev/null && touch {name}; true"
        return self._adb.call(CALL_SECONDS, "shell", script).partition(" ")[0]

    def _fetch(self, name: str, here: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="edgeopt-adb-") as folder:
            local = Path(folder) / "outputs"
            self._adb.call(COPY_SECONDS, "pull", f"{FOLDER}/{name}", str(local))
            with local.open("rb") as stream:
                right = hashlib.file_digest(stream, "sha256").hexdigest() == self._hash(name)
            if not right:
                raise DeviceError(f"{self._uri}: outputs arrived changed. Run the same command again; check the cable.")
            read_records(local, here)

    def sent(self, request: WorkerRequest) -> WorkerRequest:
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
                write_records(Path(request.inputs), packed)
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
        there = self._device.sent(message) if isinstance(message, WorkerRequest) else message
        with explaining(self._device.uri):
            return self._process.ask(there, timeout_seconds)


@contextmanager
def explaining(uri: str) -> Iterator[None]:
    """Make errors of what the phone itself could not; a refusal about the model or its inputs stays one."""
    try:
        yield
    except WorkerRefused as refused:
        if refused.kind != "device":
            raise
        if is_disk_full(refused):
            advice = "Free some space there and run the same command again"
            raise DeviceLostError(f"{uri}: {refused.reason}. {advice}.") from refused
        advice = "Make runner and library anew: `tools/build_runner.py --help`"
        raise DeviceError(f"{uri}: {refused.reason}. {advice}.") from refused


def adb_lost(uri: str, errors: str) -> DeviceLostError:
    """Return the error for a phone that was there and is no more."""
    said = last_line(errors)
    return DeviceLostError(f"{uri}: the phone was lost in the middle of work{f' ({said})' if said else ''}.")
