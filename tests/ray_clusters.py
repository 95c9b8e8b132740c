"""A Ray cluster on this machine, as small as it gets, which ends with the test."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'edgeopt[ray]'")

TESTS = Path(__file__).parent
_ATTEMPTS = 3

HEAD = """
import sys

import ray

found = ray.init(
    num_cpus=int(sys.argv[1]), num_gpus=0, include_dashboard=False, object_store_memory=80_000_000,
    _temp_dir=sys.argv[2], log_to_driver=False, logging_level="ERROR",
)
print(found.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


class RayCluster(NamedTuple):
    """A cluster that runs."""

    address: str
    folder: str
    """Its files, and sockets."""

    def actors(self) -> list[int]:
        """Return the processes of its actors that train."""
        found = []
        for path in Path("/proc").iterdir():
            if not path.name.isdigit():
                continue
            try:
                title = (path / "cmdline").read_bytes()
                parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
                started_by = Path(f"/proc/{parent}/cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if title.startswith(b"ray::NodeTraining") and self.folder in started_by:
                found.append(int(path.name))
        return found

    def kill_actors(self) -> None:
        """Kill them, as a node that is lost does."""
        for process in self.actors():
            os.kill(process, signal.SIGKILL)


def start_head(cores: int, folder: str) -> subprocess.Popen:
    """Start a cluster; on a busy machine Ray may give up at first."""
    return subprocess.Popen(
        [sys.executable, "-c", HEAD, str(cores), folder],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder, start_new_session=True,
        text=True,
    )  # fmt: skip


def end_head(head: subprocess.Popen) -> None:
    """End a cluster with all its processes."""
    head.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        head.wait(60)
    with suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGKILL)
    head.wait()
    head.stdout.close()


@contextmanager
def a_cluster(cores: int, monkeypatch) -> Iterator[RayCluster]:
    """Run a cluster of one node for the length of a block; it takes only a token of its own."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_gcs_server_port_wait_time_s", "300")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # paths of Unix sockets are short
    try:
        for _ in range(_ATTEMPTS):
            head = start_head(cores, folder)
            address = head.stdout.readline().strip()
            if address:
                break
            end_head(head)
        assert address, "the cluster did not start"
        try:
            yield RayCluster(address, folder)
        finally:
            end_head(head)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
