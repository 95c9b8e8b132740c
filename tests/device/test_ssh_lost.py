"""Connections to a device over ssh that break, and workers that end there, against a real OpenSSH server."""

import contextlib
import gc
import os
import re
import signal
import time
from pathlib import Path

import pytest
from small_disk import fill_disk, mount_small_disk
from ssh_server import find_connections, find_descendants, find_workers, read_process_name
from tiny_models import a_network, a_request
from waiting import in_background, wait_until

from edgeopt.device.base import WorkerRequest
from edgeopt.device.open import open_device
from edgeopt.device.ssh import SshDevice
from edgeopt.device.ssh_connection import Address
from edgeopt.errors import DeviceError, DeviceLostError


@pytest.fixture
def device(sshd):
    return open_device(sshd.uri)


def an_impatient_device(sshd) -> SshDevice:
    return SshDevice(sshd.uri, Address("127.0.0.1", None, sshd.port), None, reconnect_seconds=1.0)


def a_timing(tmp_path, seconds: float) -> WorkerRequest:
    return a_request("time", a_network(tmp_path / "m.onnx"), min_seconds=seconds)


def find_ssh() -> list[int]:
    """Return the programs `ssh` of this process."""
    return [pid for pid in find_descendants(os.getpid()) if "ssh" in read_process_name(pid)]


def test_a_connection_that_breaks_during_a_run_is_opened_again_and_the_run_is_repeated(device, sshd, tmp_path):
    first: list[int] = []

    def cut():
        first.extend(wait_until(lambda: find_workers(sshd), "no worker runs"))
        sshd.cut()

    with in_background(cut):
        answer = device.run(a_timing(tmp_path, 1.0), 60, {})
    assert sum(answer["wall_ns"]) > 0.2e9
    assert first
    wait_until(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in first), "the first worker outlived its connection"
    )


def test_a_device_that_does_not_come_back_is_an_error_and_leaves_no_process_here(sshd, tmp_path):
    gc.collect()  # so that no ssh of an earlier test's connection is left
    device = an_impatient_device(sshd)
    device.describe()

    def stop():
        wait_until(lambda: find_workers(sshd), "no worker runs")
        sshd.stop()

    with in_background(stop), pytest.raises(DeviceLostError, match="nothing listens there"):
        device.run(a_timing(tmp_path, 30.0), 60, {})
    wait_until(lambda: not find_ssh(), "ssh outlived the device")


def test_a_run_waits_for_a_device_that_restarts(device, sshd, tmp_path):
    def restart():
        wait_until(lambda: find_workers(sshd), "no worker runs")
        sshd.stop()
        time.sleep(3)
        sshd.start()

    with in_background(restart):
        assert device.run(a_timing(tmp_path, 2.0), 60, {})["wall_ns"]


def test_a_device_that_falls_silent_during_a_run_is_lost(sshd, short_timeouts, tmp_path):
    device = an_impatient_device(sshd)
    device.describe()

    def freeze():
        wait_until(lambda: find_workers(sshd), "no worker runs")
        for pid in (sshd.process.pid, *find_connections(sshd.process.pid)):
            os.kill(pid, signal.SIGSTOP)

    begin = time.monotonic()
    with in_background(freeze), pytest.raises(DeviceLostError, match="does not answer"):
        device.run(a_timing(tmp_path, 30.0), 120, {})
    assert time.monotonic() - begin < 90
    for pid in (*find_connections(sshd.process.pid), sshd.process.pid):
        os.kill(pid, signal.SIGCONT)


def test_a_staying_worker_whose_connection_breaks_is_lost(device, sshd, tmp_path):
    serve = a_request("serve", a_network(tmp_path / "m.onnx"))
    block = {"warmup_runs": 0, "min_runs": 1, "min_seconds": 0.0, "max_seconds": 5.0}
    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(device.start())
        worker.ask(serve, 60)
        assert len(worker.ask(block, 60)["wall_ns"]) == 1
        sshd.cut()
        with pytest.raises(DeviceLostError, match="connection was lost"):
            worker.ask(block, 60)
    assert device.describe()[0]


def test_a_worker_that_is_killed_on_the_device_is_not_a_lost_connection(device, sshd, tmp_path):
    def kill():
        for pid in wait_until(lambda: find_workers(sshd), "no worker runs"):
            os.kill(pid, signal.SIGKILL)

    with in_background(kill), pytest.raises(DeviceError, match=r"killed by SIGKILL.*out of memory") as caught:
        device.run(a_timing(tmp_path, 30.0), 60, {})
    assert not isinstance(caught.value, DeviceLostError)
    assert device.describe()[0]


def test_a_worker_that_takes_too_long_is_stopped_on_the_device(device, sshd, tmp_path):
    with pytest.raises(DeviceError, match="did not answer within 1 s"):
        device.run(a_timing(tmp_path, 60.0), 1.0, {})
    wait_until(lambda: not find_workers(sshd), "the worker goes on")


def test_a_device_that_nothing_refers_to_is_disconnected(sshd):
    device = open_device(sshd.uri)
    device.describe()
    assert find_connections(sshd.process.pid)
    del device
    wait_until(lambda: not find_connections(sshd.process.pid), "the connection stays")


def test_a_full_disk_on_the_device_is_not_a_full_disk_here(sshd, device, tmp_path):
    cache = sshd.home / "cache"
    with mount_small_disk(cache, 256):
        messages = fill_disk(device, tmp_path)
        assert re.search(r"No space left on device in .*MB free\)\. Free some space there", messages[1])
        assert not list(cache.glob("**/*.part"))
