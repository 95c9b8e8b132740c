"""Phones through the real `adb` and a server that speaks its protocol; the native runner runs on this machine."""

import contextlib
import functools
import os
import subprocess
import sys
import threading
import time

import msgspec
import numpy as np
import onnx
import pytest
from builds import IMPATIENT
from small_disk import fill_disk, mount_small_disk
from test_runner import a_request
from tiny_models import a_network, a_run_target, write_quick_target

from edgeopt.bench.outputs import read_batches, run_arrays, run_model, write_batches
from edgeopt.device import adb
from edgeopt.device.adb import AdbDevice, read_machine
from edgeopt.device.local import LocalDevice
from edgeopt.device.open import open_device
from edgeopt.errors import CannotProfileError, DeviceError, DeviceLostError
from edgeopt.graph.model import save
from edgeopt.model_files.layout import weight_files


@pytest.fixture
def device(native, phones):
    return open_device(uri_of(native, "SERIAL1"))


def uri_of(native, serial: str) -> str:
    return f"adb:{serial}?runner={native}/runner&library={native}/libonnxruntime.so"


def refused(native, serial: str) -> str:
    with pytest.raises(DeviceError) as caught:
        open_device(uri_of(native, serial)).describe()
    return str(caught.value)


def test_the_phone_describes_itself_and_measures_a_models_time_and_memory(device, tmp_path):
    assert device.describe()[0] == LocalDevice().describe()[0]
    model = a_network(tmp_path / "m.onnx")
    assert len(device.run(a_request("time", model), 60, {})["wall_ns"]) >= 20
    memory = device.run(a_request("memory", model), 60, {"MALLOC_TRIM_THRESHOLD_": "65536"})
    assert memory["load_peak_bytes"] > 0


def test_outputs_come_back_equal_and_only_named_files_stay_on_the_phone(device, phones, tmp_path):
    model, inputs = a_network(tmp_path / "m.onnx"), tmp_path / "in.npz"
    rng = np.random.default_rng(0)
    write_batches(inputs, [{"x": rng.standard_normal((20_000, 32)).astype(np.float32)} for _ in range(2)])
    for name, where in (("here", LocalDevice()), ("there", device)):
        run_model(model, inputs, tmp_path / f"{name}.npz", a_run_target(device=where))
    here, there = (read_batches(tmp_path / f"{name}.npz") for name in ("here", "there"))
    assert all(np.array_equal(a["y"], b["y"]) for a, b in zip(here, there, strict=True))
    assert sorted(path.suffix for path in (phones.folder / "edgeopt").iterdir()) == ["", ".arrays", ".onnx", ".so"]


def test_a_model_above_the_limit_of_one_file_is_sent_with_its_weights(device, phones, tmp_path, monkeypatch):
    monkeypatch.setenv("_EDGEOPT_MAX_FILE_BYTES", "5000")
    save(onnx.load(a_network(tmp_path / "whole.onnx")), tmp_path / "m.onnx")
    (weights,) = weight_files(tmp_path / "m.onnx")
    batches = [{"x": np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)}]
    (there,) = run_arrays(tmp_path / "m.onnx", batches, a_run_target(device=device), "test")
    (here,) = run_arrays(tmp_path / "whole.onnx", batches, a_run_target(), "test")
    assert np.array_equal(here["y"], there["y"])
    assert (phones.folder / "edgeopt" / weights.name).read_bytes() == weights.read_bytes()


def test_a_file_is_only_sent_once(device, phones, tmp_path):
    request = a_request("time", a_network(tmp_path / "m.onnx"))
    device.run(request, 60, {})
    sent = phones.requests.count("sync:")
    device.run(request, 60, {})
    assert phones.requests.count("sync:") == sent > 0


def test_every_call_names_the_phone(device, phones, tmp_path):
    phones.phones["SERIAL2"] = "device"
    device.run(a_request("time", a_network(tmp_path / "m.onnx")), 60, {})
    assert not [request for request in phones.requests if request.endswith("-any")]


def test_a_single_phone_needs_no_serial_number(native, phones):
    assert open_device(uri_of(native, "")).describe()[0]
    phones.phones["SERIAL2"] = "device"
    assert "Name one by its serial number" in refused(native, "")
    phones.phones.clear()
    assert "turn on USB debugging" in refused(native, "")


def test_a_phone_that_is_not_ready_is_an_error_with_advice(native, phones):
    assert "Connect it, turn on USB debugging" in refused(native, "SERIAL9")
    phones.phones["SERIAL1"] = "unauthorized"
    assert "confirm USB debugging on its screen" in refused(native, "SERIAL1")
    phones.phones["SERIAL1"] = "offline"
    assert "Unplug it" in refused(native, "SERIAL1")


def test_files_for_another_processor_are_refused_before_they_are_sent(native, phones):
    phones.machine = "aarch64"
    message = refused(native, "SERIAL1")
    assert f"is built for {os.uname().machine}, but the phone's processor is aarch64" in message
    assert "sync:" not in phones.requests


def test_a_file_that_is_not_a_program_is_refused(tmp_path):
    (tmp_path / "runner").write_text("#!/bin/sh\n")
    with pytest.raises(DeviceError, match="not an ELF file"):
        read_machine(tmp_path / "runner")


def test_a_full_phone_is_reported(native, phones):
    phones.is_full = True
    assert "Free some space there" in refused(native, "SERIAL1")


def test_a_full_disk_on_the_phone_is_not_a_full_disk_here(native, phones, tmp_path):
    size = sum(path.stat().st_size for path in native.iterdir()) // 1024 + 256
    with mount_small_disk(phones.folder, size):
        fill_disk(open_device(uri_of(native, "SERIAL1")), tmp_path)
        suffixes = sorted(path.suffix for path in (phones.folder / "edgeopt").iterdir())
        assert suffixes == ["", ".arrays", ".onnx", ".so"]


def test_a_library_that_is_not_onnx_runtimes_is_an_error_of_the_device(native, phones, tmp_path):
    (tmp_path / "empty.c").write_text("")
    subprocess.run(["cc", "-shared", tmp_path / "empty.c", "-o", tmp_path / "lib.so"], check=True)
    for library, words in (
        (tmp_path / "lib.so", "is not ONNX Runtime's library"),
        (native / "runner", "does not load"),
    ):
        device = open_device(f"adb:SERIAL1?runner={native}/runner&library={library}")
        with pytest.raises(DeviceError, match=f"{words}.*Build the runner and get the library again"):
            device.run(a_request("time", a_network(tmp_path / "m.onnx")), 60, {})


def test_a_32_bit_system_on_a_64_bit_processor_runs_32_bit_files(native, phones, tmp_path):
    phones.machine = "armv8l"
    header = bytearray((native / "runner").read_bytes())
    header[18:20] = (40).to_bytes(2, "little")
    for name in ("runner", "lib.so"):
        (tmp_path / name).write_bytes(header)
    with pytest.raises(DeviceError) as caught:  # it tries to run, which fails on this machine
        open_device(f"adb:SERIAL1?runner={tmp_path}/runner&library={tmp_path}/lib.so").describe()
    assert "is built for" not in str(caught.value)
    assert "ended with exit code 126" in str(caught.value)


def test_files_that_were_not_used_for_a_day_are_removed(device, phones, tmp_path):
    folder = phones.folder / "edgeopt"
    folder.mkdir(parents=True)
    (folder / "old.onnx").write_bytes(b"old")
    os.utime(folder / "old.onnx", (0, 0))
    model = a_network(tmp_path / "m.onnx")
    os.utime(model, (0, 0))  # adb keeps a file's modification time
    device.run(a_request("time", model), 60, {})
    assert not (folder / "old.onnx").exists()
    assert len(list(folder.glob("*.onnx"))) == 1


def test_a_missing_adb_is_reported(native, phones, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "Install Android's platform tools" in refused(native, "SERIAL1")


def unplug_in_a_second(phones, *, stays_listed: bool) -> threading.Timer:
    def unplug() -> None:
        if not stays_listed:
            phones.phones.clear()
        phones.unplug()

    timer = threading.Timer(1.0, unplug)
    timer.start()
    return timer


def test_a_run_survives_a_cable_that_is_pulled_for_a_moment(device, phones, tmp_path):
    request = a_request("time", a_network(tmp_path / "m.onnx"), min_seconds=2.0)
    device.describe()
    timer = unplug_in_a_second(phones, stays_listed=True)
    assert device.run(request, 60, {})["wall_ns"]
    timer.join()


def test_a_run_waits_for_a_phone_that_restarts(device, phones, tmp_path):
    request = a_request("time", a_network(tmp_path / "m.onnx"), min_seconds=2.0)
    device.describe()
    timers = (
        unplug_in_a_second(phones, stays_listed=False),
        threading.Timer(4.0, phones.phones.update, [{"SERIAL1": "device"}]),
    )
    timers[1].start()
    assert device.run(request, 60, {})["wall_ns"]
    assert [request for request in phones.requests if "wait-for-" in request]
    for timer in timers:
        timer.join()


def test_a_staying_runner_whose_phone_was_lost_starts_again_on_the_one_that_came_back(device, phones, tmp_path):
    serve = a_request("serve", a_network(tmp_path / "m.onnx"))
    block = {"warmup_runs": 0, "min_runs": 1, "min_seconds": 0.0, "max_seconds": 5.0}
    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(device.start())
        worker.ask(serve, 60)
        phones.unplug()
        with pytest.raises(DeviceLostError, match="connection to the phone was lost"):
            worker.ask(block, 60)
    with device.start() as worker:
        worker.ask(serve, 60)
        assert len(worker.ask(block, 60)["wall_ns"]) == 1


def test_a_phone_that_does_not_come_back_is_lost(device, phones, tmp_path, monkeypatch):
    monkeypatch.setattr(adb, "WAIT_SECONDS", 1.0)
    request = a_request("time", a_network(tmp_path / "m.onnx"), min_seconds=4.0)
    device.describe()
    timer = unplug_in_a_second(phones, stays_listed=False)
    begin = time.monotonic()
    with pytest.raises(DeviceLostError, match=r"adb did not answer within 1 s\. Is the phone connected"):
        device.run(request, 60, {})
    assert time.monotonic() - begin < 30
    timer.join()


def test_a_runner_that_takes_too_long_is_stopped(device, tmp_path):
    request = a_request("time", a_network(tmp_path / "m.onnx"), min_seconds=60.0, max_seconds=60.0)
    with pytest.raises(DeviceError, match="did not answer within 1 s"):
        device.run(request, 1.0, {})


def test_a_server_that_never_answers_is_given_up_on(native, phones, monkeypatch):
    monkeypatch.setattr(adb, "CALL_SECONDS", 1.0)
    phones.is_mute = True
    assert "adb did not answer within 1 s. Is the phone connected?" in refused(native, "SERIAL1")
    phones.is_mute = False


def test_a_call_that_hangs_is_given_up_on(native, monkeypatch, tmp_path):
    program = tmp_path / "adb"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    device = AdbDevice("adb:x", "x", native / "runner", native / "libonnxruntime.so")
    with pytest.raises(DeviceLostError, match="adb did not answer within 0 s"):
        device._adb.call(0.2, "shell", "true")


def test_bench_compares_two_files_on_the_phone(native, phones, tmp_path):
    a_network(tmp_path / "m.onnx")
    a_network(tmp_path / "o.onnx", layers=6, width=256)
    target = write_quick_target(tmp_path)
    command = ["bench", "m.onnx", "--target", target, "--device", uri_of(native, "SERIAL1")]
    run = functools.partial(subprocess.run, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    done = run([*IMPATIENT, *command, "--against", "o.onnx", "--json"])
    assert done.returncode == 0, done.stderr
    result = msgspec.json.decode(done.stdout)
    assert result["against"]["verdict"] == "faster"
    assert result["measurement"]["device"]["uri"].startswith("adb:SERIAL1")
    stdout = run([sys.executable, "-m", "edgeopt", *command]).stdout
    assert "not reported by this device" in stdout
    assert "none left after optimization" not in stdout


def test_a_phone_refuses_to_profile_nodes(device, tmp_path):
    with pytest.raises(CannotProfileError, match="can't time single nodes"):
        device.run(a_request("nodes", a_network(tmp_path / "m.onnx")), 60, {})
