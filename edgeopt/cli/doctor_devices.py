"""Which kinds of device can be reached from here, and what the others lack; nothing is connected or started."""

from __future__ import annotations

import re
import shutil
import subprocess

from edgeopt.device.emulated import EMULATORS
from edgeopt.records.base import Record

VERSION_SECONDS = 20.0
QEMU_SINCE = (10, 0)
"""Older ones crash in ONNX Runtime."""


class Route(Record, frozen=True, kw_only=True):
    """The way to a kind of device that workers can run on."""

    kind: str
    ready: bool
    version: str | None
    """Name and version of the program that it takes; None where there is none."""
    advice: str
    """What to type where it is ready, what to get where it is not."""


def routes() -> tuple[Route, ...]:
    """Look at each kind of device."""
    local = "--device local: (this machine), or 'local:?python=PATH' for another environment of it"
    ssh = _program(
        "ssh",
        "-V",
        "--device ssh://user@host, which needs a Python there with onnxruntime and numpy",
        "install OpenSSH's client (Debian: apt-get install openssh-client)",
    )
    adb = _program(
        "adb",
        "version",
        "--device 'adb:?runner=PATH&library=PATH'; `tools/build_runner.py --help` says how to get both files",
        "install Android's platform tools (Debian: apt-get install adb)",
    )
    return (Route(kind="local", ready=True, version=None, advice=local), ssh, adb, _browser(), _qemu())


def _program(kind: str, option: str, ready: str, missing: str) -> Route:
    """Look at a kind that takes a program of the same name, which ``option`` asks for its version."""
    version = version_of(kind, option)
    return _missing(kind, missing) if version is None else Route(kind=kind, ready=True, version=version, advice=ready)


def _browser() -> Route:
    """A browser needs nothing here but the runtime's files; one of another machine a certificate too."""
    advice = "--device 'browser:?runtime=FOLDER'; `tools/fetch_web_runtime.py --out FOLDER` fetches onnxruntime-web"
    fetched = "" if shutil.which("npm") else " with npm, which is missing"
    version = version_of("openssl", "version")
    lacking = "" if version else "; for a phone's browser over the network install openssl"
    return Route(kind="browser", ready=True, version=version, advice=f"{advice}{fetched}{lacking}")


def _qemu() -> Route:
    names = [name for program in EMULATORS.values() for name in (program, f"{program}-static") if shutil.which(name)]
    version = version_of(names[0], "--version") if names else None
    found = re.search(r" (\d+)\.(\d+)", version or "")
    if found and (int(found[1]), int(found[2])) >= QEMU_SINCE:
        advice = "--device 'qemu:CPU?runner=PATH&library=PATH', for `edgeopt check` alone"
        return Route(kind="qemu", ready=True, version=version, advice=advice)
    older = f"; {version} crashes in ONNX Runtime" if version else ""
    return _missing("qemu", f"install qemu-user {QEMU_SINCE[0]}.{QEMU_SINCE[1]} or newer{older}")


def _missing(kind: str, advice: str) -> Route:
    return Route(kind=kind, ready=False, version=None, advice=advice)


def version_of(program: str, option: str) -> str | None:
    """Return a program's name and its version as far as it tells; None where it is not there."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run([path, option], capture_output=True, text=True, timeout=VERSION_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return program
    found = re.search(r"\d+(\.\d+)+\w*", done.stdout or done.stderr) if done.returncode == 0 else None
    return f"{program} {found[0]}" if found else program
