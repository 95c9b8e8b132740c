"""A real OpenSSH server, and phones behind a server of adb's protocol, as devices."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from adb_server import Server as AdbServer
from ssh_server import SSHD, Server, need_system

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sshd(monkeypatch):
    """Return a running server, with ``ssh`` in PATH knowing it."""
    need_system(SSHD, "OpenSSH's server (openssh-server)")
    need_system(shutil.which("ssh"), "OpenSSH's client (openssh-client)")
    with tempfile.TemporaryDirectory(prefix="edgeopt-sshd-", ignore_cleanup_errors=True) as folder:
        server = Server(Path(folder))
        monkeypatch.setenv("PATH", str(server.folder / "bin"), prepend=os.pathsep)
        yield server
        if server.process.poll() is None:
            server.stop()


@pytest.fixture(scope="session")
def native(tmp_path_factory):
    """Return a folder with the native runner and the library, built for this machine."""
    need_system(shutil.which("cc"), "a C compiler")
    folder = tmp_path_factory.mktemp("native")
    subprocess.run([sys.executable, ROOT / "tools" / "build_runner.py", "--out", folder], check=True)
    return folder


@pytest.fixture
def phones(tmp_path, monkeypatch):
    """Return a server of adb's protocol with one phone, which `adb` talks to."""
    need_system(shutil.which("adb"), "Android's platform tools (adb)")
    with AdbServer(tmp_path / "phone", {"SERIAL1": "device"}) as server:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(server.port))
        yield server


@pytest.fixture(scope="session")
def runtime(tmp_path_factory):
    """Return a folder with onnxruntime-web: fetched by npm, or the one that the environment names."""
    given = os.environ.get("EDGEOPT_WEB_RUNTIME")
    if given:
        return Path(given)
    need_system(shutil.which("npm"), "npm")
    folder = tmp_path_factory.mktemp("runtime")
    subprocess.run([sys.executable, ROOT / "tools" / "fetch_web_runtime.py", "--out", folder], check=True)
    return folder
