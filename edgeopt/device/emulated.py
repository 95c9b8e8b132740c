"""Another processor, emulated by qemu: a file's outputs there are right, its times mean nothing.

The native runner runs under ``qemu-user`` and reads this machine's files. qemu 10.0 runs ONNX Runtime for aarch64; in
7.2 it crashes, because qemu shows it this machine's ``/proc/cpuinfo``.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from edgeopt.device.arrays import read_records, write_records
from edgeopt.device.base import Worker, WorkerRefused, WorkerRequest
from edgeopt.device.elf import read_machine
from edgeopt.device.named import NamedDevice
from edgeopt.device.process import WorkerExit, WorkerProcess, explain_exit
from edgeopt.errors import CannotProfileError, DeviceError

EMULATORS = {"aarch64": "qemu-aarch64", "armv7l": "qemu-arm", "x86_64": "qemu-x86_64", "i686": "qemu-i386"}
LIBRARY_ROOTS = {"aarch64": "/usr/aarch64-linux-gnu", "armv7l": "/usr/arm-linux-gnueabihf"}
"""The folder in which Debian's cross compilers keep the C library of another processor."""


class EmulatedDevice(NamedDevice):
    """The native runner under qemu.

    Args:
        uri: How the user names it.
        cpu: A processor that qemu supports, such as ``cortex-a53``; empty for one with all features.
        runner: The native runner for that processor.
        library: ``libonnxruntime.so`` for it.
        root: Folder whose ``lib`` holds its C library; None for the usual folder.
    """

    def __init__(self, uri: str, cpu: str, runner: Path, library: Path, root: Path | None) -> None:
        super().__init__(uri)
        self._cpu = cpu
        self._files = (runner, library)
        self._root = root

    def run(self, request: WorkerRequest, timeout_seconds: float, variables: Mapping[str, str]) -> dict[str, Any]:
        """Run one fresh runner to its end; see ``edgeopt.device.base.Device``."""
        if request.mode not in ("describe", "outputs"):
            raise CannotProfileError(f"{self._uri}: an emulated processor has no real times or memory to measure.")
        with tempfile.TemporaryDirectory(prefix="edgeopt-qemu-") as folder, self._start_runner(variables) as worker:
            inputs, outputs = Path(folder) / "inputs", Path(folder) / "outputs"
            if request.inputs:
                write_records(Path(request.inputs), inputs)
            try:
                runner_request = msgspec.structs.replace(request, inputs=str(inputs), outputs=str(outputs))
                fields = worker.ask(runner_request, timeout_seconds)
            except WorkerRefused as refused:
                if refused.kind == "device":
                    raise DeviceError(f"{self._uri}: {refused.reason}.") from refused
                raise
            if request.outputs:
                read_records(outputs, Path(request.outputs))
            return fields

    @contextmanager
    def start(self) -> Iterator[Worker]:
        """Refuse: only timing needs a worker that stays."""
        raise CannotProfileError(f"{self._uri}: an emulated processor has no real times to measure.")
        yield

    def _start_runner(self, variables: Mapping[str, str]) -> WorkerProcess:
        runner, library = self._files
        machine = read_machine(runner)
        if read_machine(library) != machine:
            raise DeviceError(
                f"{self._uri}: {runner} is built for {machine}, but {library} for {read_machine(library)}. "
                "`tools/build_runner.py --help` shows how to make both for one processor."
            )
        name = EMULATORS.get(machine, f"qemu-{machine}")
        program = shutil.which(name) or shutil.which(f"{name}-static")
        if program is None:
            raise DeviceError(f"{self._uri}: `{name}` is not installed here. Install qemu-user (10.0 or newer).")
        root = self._root or Path(LIBRARY_ROOTS.get(machine, "/"))
        command = [program, *(("-cpu", self._cpu) if self._cpu else ()), "-L", str(root), str(runner), str(library)]
        return WorkerProcess(command, variables, self._explain)

    def _explain(self, ended: WorkerExit) -> DeviceError:
        crashed = "qemu: uncaught target signal" in ended.errors
        advice = ". qemu before 10.0 is known to crash in ONNX Runtime: put a newer one in PATH" if crashed else ""
        return DeviceError(f"{self._uri}: {explain_exit(ended)}{advice}")
