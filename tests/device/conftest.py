"""A real OpenSSH server as the device."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from ssh_server import SSHD, Server, need_system


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
