"""Another processor, emulated by qemu: what a file computes there is right, how long it takes says nothing.

The native runner runs under ``qemu-user`` with the files of this machine. qemu 10.0 runs ONNX Runtime for aarch64; 7.2
crashes in it, as it shows the program this machine's ``/proc/cpuinfo``.
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
from edgeopt.device.elf import machine_of
from edgeopt.device.named import NamedDevice
from edgeopt.device.process import Ending, WorkerProcess, explain_ending
from edgeopt.errors import CannotProfileError, DeviceError

EMULATORS = {"aarch64": "qemu-aarch64", "armv7l": "qemu-arm", "x86_64": "qemu-x86_64", "i686": "qemu-i386"}
ROOTS = {"aarch64": "/usr/aarch64-linux-gnu", "armv7l": "/usr/arm-linux-gnueabihf"}
"""Where Debian's cross compilers keep the C library of another processor."""


class EmulatedDevice(NamedDevice):
    """The native runner under qemu.

    Args:
        uri: How the user names it.
        cpu: A processor that qemu knows, such as ``cortex-a53``; empty for one with everything.
        runner: The native runner for that processor.
        library: ``libonnxruntime.so`` for it.
        root: Folder whose ``lib`` has its C library; None for the usual place.
    """

    def __init__(self, uri: str, cpu: str, runner: Path, library: Path, root: Path | None) -> None:
        super().__init__(uri)
        self._cpu = cpu
        self._files = (runner, library)
        self._root = root

    def run(self, request: WorkerRequest, timeout_seconds: float, variables: Mapping[str, str]) -> dict[str, Any]:
        """Run one fresh runner to its end; see ``edgeopt.device.base.Device``."""
        if request.mode not in ("describe", "outputs"):
            raise CannotProfileError(f"{self._uri}: an emulated processor has no times and no memory to measure.")
        with tempfile.TemporaryDirectory(prefix="edgeopt-qemu-") as folder, self._started(variables) as worker:
            inputs, outputs = Path(folder) / "inputs", Path(folder) / "outputs"
            if request.inputs:
                write_records(Path(request.inputs), inputs)
            try:
                there = msgspec.structs.replace(request, inputs=str(inputs), outputs=str(outputs))
                fields = worker.ask(there, timeout_seconds)
            except WorkerRefused as refused:
                if refused.kind == "device":
                    raise DeviceError(f"{self._uri}: {refused.reason}.") from refused
                raise
            if request.outputs:
                read_records(outputs, Path(request.outputs))
            return fields

    @contextmanager
    def start(self) -> Iterator[Worker]:
        """Refuse: only what is timed needs a worker that stays."""
        raise CannotProfileError(f"{self._uri}: an emulated processor has no times to measure.")
        yield

    def _started(self, variables: Mapping[str, str]) -> WorkerProcess:
        runner, library = self._files
        machine = machine_of(runner)
        if machine_of(library) != machine:
            raise DeviceError(
                f"{self._uri}: {runner} is built for {machine}, but {library} for {machine_of(library)}. "
                "`tools/build_runner.py --help` says how to make both for one processor."
            )
        name = EMULATORS.get(machine, f"qemu-{machine}")
        program = shutil.which(name) or shutil.which(f"{name}-static")
        if program is None:
            raise DeviceError(f"{self._uri}: there is no program `{name}` here. Install qemu-user (10.0 or newer).")
        root = self._root or Path(ROOTS.get(machine, "/"))
        words = [program, *(("-cpu", self._cpu) if self._cpu else ()), "-L", str(root), str(runner), str(library)]
        return WorkerProcess(words, variables, self._explain)

    def _explain(self, ending: Ending) -> DeviceError:
        crashed = "qemu: uncaught target signal" in ending.errors
        advice = ". qemu before 10.0 is known to crash in ONNX Runtime: put a newer one into PATH" if crashed else ""
        return DeviceError(f"{self._uri}: {explain_ending(ending)}{advice}")
