"""Devices for tests: a real OpenSSH server, and phones behind a server that speaks adb's protocol."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from adb_server import Server as AdbServer
from ssh_server import SSHD, Server, require_system

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sshd(monkeypatch):
    """Return a running server that the ``ssh`` in PATH is configured for."""
    require_system(SSHD, "OpenSSH's server (openssh-server)")
    require_system(shutil.which("ssh"), "OpenSSH's client (openssh-client)")
    with tempfile.TemporaryDirectory(prefix="edgeopt-sshd-", ignore_cleanup_errors=True) as folder:
        server = Server(Path(folder))
        monkeypatch.setenv("PATH", str(server.folder / "bin"), prepend=os.pathsep)
        yield server
        if server.process.poll() is None:
            server.stop()


@pytest.fixture(scope="session")
def native(tmp_path_factory):
    """Return a folder with the native runner and its library, built for this machine."""
    require_system(shutil.which("cc"), "a C compiler")
    folder = tmp_path_factory.mktemp("native")
    subprocess.run([sys.executable, ROOT / "tools" / "build_runner.py", "--out", folder], check=True)
    return folder


@pytest.fixture
def phones(tmp_path, monkeypatch):
    """Return the server that `adb` talks to, with one phone."""
    require_system(shutil.which("adb"), "Android's platform tools (adb)")
    with AdbServer(tmp_path / "phone", {"SERIAL1": "device"}) as server:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(server.port))
        yield server


@pytest.fixture(scope="session")
def runtime(tmp_path_factory):
    """Return a folder with onnxruntime-web: downloaded by npm, or named by EDGEOPT_WEB_RUNTIME."""
    given = os.environ.get("EDGEOPT_WEB_RUNTIME")
    if given:
        return Path(given)
    require_system(shutil.which("npm"), "npm")
    folder = tmp_path_factory.mktemp("runtime")
    subprocess.run([sys.executable, ROOT / "tools" / "fetch_web_runtime.py", "--out", folder], check=True)
    return folder
