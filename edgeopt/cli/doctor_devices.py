"""The kinds of device that can be reached from here, and what the others lack. Nothing is connected or started."""

from __future__ import annotations

import re
import shutil
import subprocess

from edgeopt.device.emulated import EMULATORS
from edgeopt.records.base import Record

_VERSION_TIMEOUT_SECONDS = 20.0
_MIN_QEMU_VERSION = (10, 0)
"""Older versions crash in ONNX Runtime."""


class Route(Record, frozen=True, kw_only=True):
    """How to reach a kind of device."""

    kind: str
    ready: bool
    version: str | None
    """Name and version of the program that it needs; None if it needs none or the program is missing."""
    advice: str
    """The option to give if it is ready; the program to install if it is not."""


def find_routes() -> tuple[Route, ...]:
    """Look at each kind of device."""
    local = "--device local: (this machine), or 'local:?python=PATH' for another Python environment on it"
    ssh = _program(
        "ssh",
        "-V",
        "--device ssh://user@host; the host needs a Python with onnxruntime and numpy",
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
    """Look at a kind that needs a program of the same name; ``option`` makes the program print its version."""
    version = find_version(kind, option)
    return _missing(kind, missing) if version is None else Route(kind=kind, ready=True, version=version, advice=ready)


def _browser() -> Route:
    """Look at browsers: they need the runtime's files, and on another machine also a certificate."""
    advice = "--device 'browser:?runtime=FOLDER'; `tools/fetch_web_runtime.py --out FOLDER` fetches onnxruntime-web"
    fetched = "" if shutil.which("npm") else " with npm, which is missing"
    version = find_version("openssl", "version")
    lacking = "" if version else "; for a phone's browser over the network, install openssl"
    return Route(kind="browser", ready=True, version=version, advice=f"{advice}{fetched}{lacking}")


def _qemu() -> Route:
    names = [name for program in EMULATORS.values() for name in (program, f"{program}-static") if shutil.which(name)]
    version = find_version(names[0], "--version") if names else None
    found = re.search(r" (\d+)\.(\d+)", version or "")
    if found and (int(found[1]), int(found[2])) >= _MIN_QEMU_VERSION:
        advice = "--device 'qemu:CPU?runner=PATH&library=PATH', for `edgeopt check` only"
        return Route(kind="qemu", ready=True, version=version, advice=advice)
    older = f"; {version} crashes in ONNX Runtime" if version else ""
    return _missing("qemu", f"install qemu-user {_MIN_QEMU_VERSION[0]}.{_MIN_QEMU_VERSION[1]} or newer{older}")


def _missing(kind: str, advice: str) -> Route:
    return Route(kind=kind, ready=False, version=None, advice=advice)


def find_version(program: str, option: str) -> str | None:
    """Return a program's name, with its version if it prints one; None if the program is missing."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, option], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return program
    found = re.search(r"\d+(\.\d+)+\w*", done.stdout or done.stderr) if done.returncode == 0 else None
    return f"{program} {found[0]}" if found else program
