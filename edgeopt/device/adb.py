"""An Android phone as a device, over ``adb``: it runs a native runner with the user's ONNX Runtime library."""

from __future__ import annotations

import hashlib
import logging
import shlex
import tempfile
import threading
import time
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
from edgeopt.device.elf import read_machine
from edgeopt.device.named import NamedDevice
from edgeopt.device.process import WorkerProcess, explain_remote_exit
from edgeopt.errors import CannotProfileError, DeviceError, DeviceLostError, is_disk_full, last_line
from edgeopt.model_files.layout import weight_files
from edgeopt.records.base import Record

FOLDER = "/data/local/tmp/edgeopt"
COPY_SECONDS = 600.0
WAIT_SECONDS = 120.0
"""How long a lost phone may take to come back; a restart takes a minute."""

MACHINE_ALIASES = {"armv8l": "armv7l", "armv7": "armv7l", "i586": "i686", "i386": "i686"}
"""Other names that ``uname -m`` prints: a 64-bit processor with a 32-bit system is ``armv8l``."""

_logger = logging.getLogger(__name__)


class AdbDevice(NamedDevice):
    """Workers on an Android phone.

    Args:
        uri: How the user names it.
        serial: As ``adb devices`` lists it; empty if only one phone is connected.
        runner: The native runner for its processor.
        library: ``libonnxruntime.so`` for its processor.
    """

    def __init__(self, uri: str, serial: str, runner: Path, library: Path) -> None:
        super().__init__(uri)
        self._adb = Adb(uri, serial)
        self._files = (runner, library)
        self._remote_names: list[str] = []
        self._was_connected = False
        self._mutex = threading.Lock()

    def run(self, request: WorkerRequest, timeout_seconds: float, variables: Mapping[str, str]) -> dict[str, Any]:
        """Run one fresh runner to its end; see ``edgeopt.device.base.Device``.

        If the phone is lost, edgeopt waits for it and runs the request once more.

        Raises:
            DeviceLostError: it did not come back.
        """
        try:
            return self._run(request, timeout_seconds, variables)
        except DeviceLostError as error:
            if not self._was_connected:
                raise
            _logger.debug("running %s once more after: %s", request.mode, error)
        return self._run(request, timeout_seconds, variables)

    def _run(self, request: WorkerRequest, timeout_seconds: float, variables: Mapping[str, str]) -> dict[str, Any]:
        with self._clearing_when_lost():
            remote_request = self.send_files(request)
            try:
                with self._start_runner(variables) as worker, explaining_refusals(self._uri):
                    fields = worker.ask(remote_request, timeout_seconds)
                if request.outputs:
                    self._fetch(remote_request.outputs, Path(request.outputs))
            finally:
                if request.outputs:
                    self._adb.call(CALL_SECONDS, "shell", f"rm -f {FOLDER}/{remote_request.outputs}", check=False)
            return fields

    @contextmanager
    def start(self) -> Iterator[Worker]:
        """Start a runner that stays; see ``edgeopt.device.base.Device``."""
        with self._clearing_when_lost():
            self._prepare()
            with self._start_runner({}) as process:
                yield _StayingRunner(self, process)

    @contextmanager
    def _clearing_when_lost(self) -> Iterator[None]:
        """If the phone is lost, forget the names of the runner's files there, so that they are checked again."""
        try:
            yield
        except DeviceLostError:
            self._remote_names = []
            raise

    def _start_runner(self, variables: Mapping[str, str]) -> WorkerProcess:
        settings = shlex.join(f"{name}={value}" for name, value in variables.items())
        runner, library = self._remote_names
        script = f'cd {FOLDER} && {settings} ./{runner} ./{library}; echo "edgeopt-exit $?"'
        explain = partial(explain_remote_exit, self._uri, explain_lost_phone)
        return WorkerProcess([*self._adb.command(), "shell", "-T", script], {}, explain)

    # -- files and calls -----------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Send the runner and the library, once, if they are built for the phone's processor."""
        with self._mutex:
            if not self._remote_names:
                if self._was_connected:
                    _logger.debug("%s: waiting for the phone to come back", self._uri)
                    self._adb.call(WAIT_SECONDS, "wait-for-device")
                self._remote_names = self._push_runner()
                self._was_connected = True

    def _push_runner(self) -> list[str]:
        stale = f"find {FOLDER} -type f -mtime +0 -exec rm -f {{}} +"  # files that were not used for a day
        name = self._adb.call(CALL_SECONDS, "shell", f"mkdir -p {FOLDER} && {stale}; uname -m").strip()
        machine = MACHINE_ALIASES.get(name, name)
        for path in self._files:
            built_for = read_machine(path)
            if built_for != machine:
                raise DeviceError(
                    f"{self._uri}: {path} is built for {built_for}, but the phone's processor is {name}. "
                    "`tools/build_runner.py --help` shows how to make one for it."
                )
        names = [self.push(path) for path in self._files]
        self._adb.call(CALL_SECONDS, "shell", f"chmod 755 {FOLDER}/{names[0]}")
        return names

    def push(self, path: Path) -> str:
        """Send a file, if the phone does not have it yet, and return its name in the folder."""
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        name = sha256 + path.suffix
        if self._hash(name) != sha256:
            self._send(path, f"{FOLDER}/{name}", sha256)
        _logger.debug("%s: %s is %s there", self._uri, path.name, name)
        return name

    def _send(self, path: Path, remote_path: str, sha256: str) -> None:
        part, begin = f"{remote_path}.part", time.monotonic()
        try:
            self._adb.call(COPY_SECONDS, "push", str(path), part)
        except DeviceLostError:
            self._adb.call(CALL_SECONDS, "shell", f"rm -f {part}", check=False)  # part of a file also takes up space
            raise
        if self._hash(f"{Path(remote_path).name}.part") != sha256:
            raise DeviceError(
                f"{self._uri}: {path} arrived corrupted. Check the cable, and run the same command again."
            )
        self._adb.call(CALL_SECONDS, "shell", f"mv {part} {remote_path}")
        size_bytes, seconds = path.stat().st_size, time.monotonic() - begin
        _logger.debug("%s: sent %s, %d bytes in %.3f s", self._uri, path.name, size_bytes, seconds)

    def _hash(self, name: str) -> str:
        """Return a file's SHA-256 in hex digits, empty if it is missing; asking keeps it for another day."""
        script = f"cd {FOLDER} && sha256sum {name} 2>/dev/null && touch {name}; true"
        return self._adb.call(CALL_SECONDS, "shell", script).partition(" ")[0]

    def _fetch(self, name: str, target: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="edgeopt-adb-") as folder:
            local, begin = Path(folder) / "outputs", time.monotonic()
            self._adb.call(COPY_SECONDS, "pull", f"{FOLDER}/{name}", str(local))
            with local.open("rb") as stream:
                is_intact = hashlib.file_digest(stream, "sha256").hexdigest() == self._hash(name)
            if not is_intact:
                raise DeviceError(
                    f"{self._uri}: outputs arrived corrupted. Check the cable, and run the same command again."
                )
            size_bytes, seconds = local.stat().st_size, time.monotonic() - begin
            _logger.debug("%s: fetched %s, %d bytes in %.3f s", self._uri, target.name, size_bytes, seconds)
            read_records(local, target)

    def send_files(self, request: WorkerRequest) -> WorkerRequest:
        """Send a request's files and return it with their names in the folder in which the runner runs."""
        if request.mode == "nodes":
            raise CannotProfileError(f"{self._uri}: this kind of device can't time single nodes.")
        self._prepare()
        names = {}
        if Path(request.model).is_file():
            names["model"] = self.push(Path(request.model))
            for path in weight_files(Path(request.model)):
                self.push(path)  # under the name that the model's graph has for it
        if request.inputs:
            with tempfile.TemporaryDirectory(prefix="edgeopt-adb-") as folder:
                packed = Path(folder) / "inputs.arrays"
                write_records(Path(request.inputs), packed)
                names["inputs"] = self.push(packed)
        outputs = f"{uuid.uuid4().hex}.arrays" if request.outputs else ""
        return msgspec.structs.replace(request, outputs=outputs, **names)


class _StayingRunner:
    """A runner that stays; it gets the files of its first request."""

    def __init__(self, device: AdbDevice, process: WorkerProcess) -> None:
        self._device = device
        self._process = process

    def ask(self, message: Mapping[str, Any] | Record, timeout_seconds: float) -> dict[str, Any]:
        """Send one line and return the answer's fields; see ``edgeopt.device.base.Worker``."""
        if isinstance(message, WorkerRequest):
            message = self._device.send_files(message)
        with explaining_refusals(self._device.uri):
            return self._process.ask(message, timeout_seconds)


@contextmanager
def explaining_refusals(uri: str) -> Iterator[None]:
    """Turn refusals that are about the phone into errors; a refusal about the model or its inputs stays one."""
    try:
        yield
    except WorkerRefused as refused:
        if refused.kind != "device":
            raise
        if is_disk_full(refused):
            advice = "Free some space there and run the same command again"
            raise DeviceLostError(f"{uri}: {refused.reason}. {advice}.") from refused
        advice = "Build the runner and get the library again: `tools/build_runner.py --help`"
        raise DeviceError(f"{uri}: {refused.reason}. {advice}.") from refused


def explain_lost_phone(uri: str, errors: str) -> DeviceLostError:
    """Return the error for a phone that was connected and is gone."""
    line = last_line(errors)
    return DeviceLostError(f"{uri}: the connection to the phone was lost{f' ({line})' if line else ''}.")
