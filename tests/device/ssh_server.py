"""A real OpenSSH server on loopback as the device, with its own keys and configuration in a short folder."""

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


def require_system(found: object, name: str) -> None:
    """Skip if a program is not installed; fail if the environment promises that it is."""
    if found:
        return
    if os.environ.get("EDGEOPT_REQUIRE_SYSTEM"):
        pytest.fail(f"{name} is missing, but EDGEOPT_REQUIRE_SYSTEM is set")
    pytest.skip(f"needs {name}")


def keygen(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


def find_descendants(pid: int) -> list[int]:
    """Return the descendants of a process, each after its parent."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == pid:
            found += [int(stat.parent.name), *find_descendants(int(stat.parent.name))]
    return found


class Server:
    """The server, and a program ``ssh`` that is configured only for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir()
        self.port = find_free_port()
        self.host_key = keygen(folder / "host_key")
        self.client_key = keygen(folder / "client_key")
        (folder / "authorized_keys").write_text((folder / "client_key.pub").read_text())
        self.known_hosts = folder / "known_hosts"
        self.add_known_host(self.host_key)
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

    def add_known_host(self, key: Path) -> None:
        kind, public, *_ = key.with_name(key.name + ".pub").read_text().split()
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {kind} {public}\n")

    def write_config(self, *paths: Path | str, **variables: object) -> None:
        """Write the configuration; ``paths`` come first in the device's PATH."""
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
        """Kill the connections, but not the server: their processes run on until they see that stdin ended."""
        kill(find_connections(self.process.pid))

    def stop(self) -> None:
        """Kill the server and its connections."""
        pids = find_connections(self.process.pid)
        self.process.kill()
        self.process.wait()
        kill(pids)


def kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def read_process_name(pid: int) -> str:
    """Return a process's name; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def find_connections(server: int) -> list[int]:
    """Return a server's descendants named ``sshd``."""
    return [pid for pid in find_descendants(server) if read_process_name(pid).startswith("sshd")]


def find_workers(sshd) -> list[int]:
    """Return the device's worker processes, without the file agent."""
    found = []
    for pid in find_descendants(sshd.process.pid):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"python" in words[0] and words[1].endswith(b".py"):
                found.append(pid)
    return found


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
