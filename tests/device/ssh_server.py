"""A real OpenSSH server on loopback as the device: its own host key, client key and configuration in a short folder."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")
START_SECONDS = 20.0


def need_system(found: object, what: str) -> None:
    """Skip where a program of the system is missing; fail where the gate has promised it."""
    if found:
        return
    if os.environ.get("EDGEOPT_REQUIRE_SYSTEM"):
        pytest.fail(f"{what} is missing, but EDGEOPT_REQUIRE_SYSTEM is set")
    pytest.skip(f"needs {what}")


def keygen(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


def children_of(pid: int) -> list[int]:
    """Return the processes below one, each after its parent."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == pid:
            found += [int(stat.parent.name), *children_of(int(stat.parent.name))]
    return found


class Server:
    """The server, and a program ``ssh`` whose configuration names it alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir()
        self.port = free_port()
        self.host_key = keygen(folder / "host_key")
        self.client_key = keygen(folder / "client_key")
        (folder / "authorized_keys").write_text((folder / "client_key.pub").read_text())
        self.known_hosts = folder / "known_hosts"
        self.know(self.host_key)
        self.process: subprocess.Popen | None = None
        self.write_config(Path(sys.executable).parent)
        client = folder / "bin" / "ssh"
        client.parent.mkdir()
        client.write_text(
            f"#!/bin/sh\nexec {shutil.which('ssh')} -F /dev/null -o UserKnownHostsFile={self.known_hosts} "
            f'-o GlobalKnownHostsFile=/dev/null -o IdentityFile={self.client_key} -o IdentitiesOnly=yes "$@"\n'
        )
        client.chmod(0o755)
        self.start()

    @property
    def uri(self) -> str:
        return f"ssh://{pwd.getpwuid(os.getuid()).pw_name}@127.0.0.1:{self.port}"

    def know(self, key: Path) -> None:
        kind, public, *_ = key.with_name(key.name + ".pub").read_text().split()
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {kind} {public}\n")

    def write_config(self, *paths: Path | str, **variables: object) -> None:
        """Write the configuration; ``paths`` come first in PATH over there."""
        path = ":".join([*map(str, paths), "/usr/bin", "/bin"])
        settings = {"HOME": self.home, "XDG_CACHE_HOME": self.home / "cache", "PATH": path, **variables}
        (self.folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.host_key}\n"
            f"AuthorizedKeysFile {self.folder}/authorized_keys\nStrictModes no\nUsePAM no\nPidFile none\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
            f"SetEnv {' '.join(f'{name}={value}' for name, value in settings.items())}\n"
        )

    def start(self) -> None:
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        command = [SSHD, "-D", "-e", "-f", self.folder / "sshd_config"]
        with (self.folder / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "sshd.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def cut(self) -> None:
        """Kill the connections, but not the server: what ran in them goes on until it sees that its stdin ended."""
        kill(connections_of(self.process.pid))

    def stop(self) -> None:
        """Kill the server and its connections."""
        pids = connections_of(self.process.pid)
        self.process.kill()
        self.process.wait()
        kill(pids)


def kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def name_of(pid: int) -> str:
    """Return a process's name; empty where it has gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def connections_of(server: int) -> list[int]:
    """Return the processes named ``sshd`` below a server."""
    return [pid for pid in children_of(server) if name_of(pid).startswith("sshd")]


def workers_of(sshd) -> list[int]:
    """Return the worker processes over there; the courier is no worker."""
    found = []
    for pid in children_of(sshd.process.pid):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"python" in words[0] and words[1].endswith(b".py"):
                found.append(pid)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
