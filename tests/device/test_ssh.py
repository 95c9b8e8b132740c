"""A device over ssh: measurements, refused connections, and commands, against a real OpenSSH server."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from builds import IMPATIENT
from scored_task import write_scored_task
from ssh_server import find_free_port, keygen
from tiny_bundles import a_bundle
from tiny_models import a_network, a_request, a_run_target, write_quick_target

from edgeopt.bench.nodes import ProfilingTurns, profile_nodes
from edgeopt.bench.outputs import read_batches, run_arrays, run_model, write_batches
from edgeopt.device.base import WorkerRequest
from edgeopt.device.local import LocalDevice
from edgeopt.device.open import open_device
from edgeopt.errors import DeviceError
from edgeopt.graph.model import save
from edgeopt.model_files.layout import weight_files


@pytest.fixture
def device(sshd):
    return open_device(sshd.uri)


def a_timing(tmp_path) -> WorkerRequest:
    return a_request("time", a_network(tmp_path / "m.onnx"))


def test_a_device_on_loopback_is_described_like_this_machine(device):
    (there, environment), (here, _) = device.describe(), LocalDevice().describe()
    assert there == here
    assert environment.onnxruntime


def test_a_models_time_and_memory_are_measured_on_the_device(device, tmp_path):
    request = a_timing(tmp_path)
    answer = device.run(request, 60, {})
    assert len(answer["wall_ns"]) == len(answer["cpu_ns"]) >= 20
    memory = device.run(msgspec.structs.replace(request, mode="memory"), 60, {"MALLOC_TRIM_THRESHOLD_": "65536"})
    assert memory["load_peak_bytes"] > 0


def test_outputs_come_back_equal_to_those_of_this_machine_and_are_removed_on_the_device(device, sshd, tmp_path):
    model, inputs = a_network(tmp_path / "m.onnx"), tmp_path / "in.npz"
    rng = np.random.default_rng(0)
    write_batches(inputs, [{"x": rng.standard_normal((20_000, 32)).astype(np.float32)} for _ in range(2)])
    for name, where in (("here", LocalDevice()), ("there", device)):
        run_model(model, inputs, tmp_path / f"{name}.npz", a_run_target(device=where))
    here, there = (read_batches(tmp_path / f"{name}.npz") for name in ("here", "there"))
    assert len(here) == len(there) == 2
    assert all(np.array_equal(a["y"], b["y"]) for a, b in zip(here, there, strict=True))
    assert sorted(path.suffix for path in (sshd.home / "cache" / "edgeopt").iterdir()) == [".npz", ".onnx", ".py"]


def test_a_model_above_the_limit_of_one_file_is_sent_with_its_weights(device, sshd, tmp_path, monkeypatch):
    monkeypatch.setenv("_EDGEOPT_MAX_FILE_BYTES", "5000")
    save(onnx.load(a_network(tmp_path / "whole.onnx")), tmp_path / "m.onnx")
    (weights,) = weight_files(tmp_path / "m.onnx")
    batches = [{"x": np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)}]
    (there,) = run_arrays(tmp_path / "m.onnx", batches, a_run_target(device=device), "test")
    (here,) = run_arrays(tmp_path / "whole.onnx", batches, a_run_target(), "test")
    assert np.array_equal(here["y"], there["y"])
    assert (sshd.home / "cache" / "edgeopt" / weights.name).read_bytes() == weights.read_bytes()


def test_a_file_is_only_sent_once_unless_it_was_damaged(device, sshd, tmp_path):
    request = a_timing(tmp_path)
    device.run(request, 60, {})
    sent = next((sshd.home / "cache" / "edgeopt").glob("*.onnx"))
    inode = sent.stat().st_ino
    device.run(request, 60, {})
    assert sent.stat().st_ino == inode
    sent.write_bytes(b"spoilt")
    assert device.run(request, 60, {})["wall_ns"]
    assert sent.read_bytes() == Path(request.model).read_bytes()


def test_output_of_a_login_shell_is_not_mistaken_for_an_answer(sshd, device):
    (sshd.home / ".bashrc").write_text("echo noise\n")
    (sshd.home / ".profile").write_text("echo noise\n")
    assert device.describe()[0]


def test_another_python_on_the_device_can_be_named(sshd, tmp_path):
    program = tmp_path / "a python"
    program.write_text(f'#!/bin/sh\ntouch "{tmp_path}/was-here"\nexec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    assert open_device(f"{sshd.uri}?python={program}").describe()[0]
    assert (tmp_path / "was-here").exists()


# -- connections that are not made -------------------------------------------------------------------------------------


def refused(uri: str) -> str:
    with pytest.raises(DeviceError) as caught:
        open_device(uri).describe()
    return str(caught.value)


def test_an_unknown_host_is_not_accepted(sshd):
    sshd.known_hosts.write_text("")
    message = refused(sshd.uri)
    assert "host key is not known yet" in message
    assert f"Connect once by hand with `ssh -p {sshd.port} " in message
    assert sshd.known_hosts.read_text() == ""


def test_a_changed_host_key_is_refused_with_what_it_may_mean(sshd):
    sshd.add_known_host(keygen(sshd.folder / "other_key"))
    message = refused(sshd.uri)
    assert "set up again, or another machine answers" in message
    assert f"ssh-keygen -R '[127.0.0.1]:{sshd.port}'" in message


def test_a_refused_login_says_how_to_set_up_a_key(sshd):
    (sshd.folder / "authorized_keys").write_text("")
    assert "ssh-copy-id" in refused(sshd.uri)


def test_a_closed_port_and_an_unknown_name_are_different_errors(sshd):
    assert "nothing listens there" in refused(f"ssh://127.0.0.1:{find_free_port()}")
    assert "no host with that name" in refused("ssh://no-such-host.invalid")


def test_a_silent_server_is_given_up_on(sshd, short_timeouts):
    os.kill(sshd.process.pid, signal.SIGSTOP)
    try:
        begin = time.monotonic()
        assert "does not answer" in refused(sshd.uri)
        assert time.monotonic() - begin < 40
    finally:
        os.kill(sshd.process.pid, signal.SIGCONT)


def test_a_missing_ssh_is_reported(sshd, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "openssh-client" in refused(sshd.uri)


def test_a_python_without_onnxruntime_is_named_with_how_to_get_one(sshd, tmp_path):
    bare = tmp_path / "bin"
    bare.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    (bare / "python3").symlink_to(tmp_path / "bare" / "bin" / "python3")
    sshd.write_config(bare)
    sshd.stop()
    sshd.start()
    message = refused(f"{sshd.uri}?python={tmp_path}/bare/bin/python3")
    assert "lacks numpy and onnxruntime" in message
    assert "pip install onnxruntime numpy" in message
    assert "is not a Python program there" in refused(f"{sshd.uri}?python=/nowhere/python")


def test_a_device_without_python_is_reported(sshd, tmp_path):
    for tool in ("sh", "env"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    text = (sshd.folder / "sshd_config").read_text()
    (sshd.folder / "sshd_config").write_text(re.sub(r"PATH=\S+", f"PATH={tmp_path}", text))
    sshd.stop()
    sshd.start()
    assert "there is no python3 or python in its PATH" in refused(sshd.uri)


def test_a_package_for_another_processor_is_reported_as_such(sshd, tmp_path):
    packages = tmp_path / "packages" / "onnxruntime"
    shutil.copytree(Path(onnxruntime_folder()), packages, copy_function=os.symlink)
    library = next(packages.glob("capi/onnxruntime_pybind11_state*.so"))
    foreign = bytearray(library.read_bytes())
    foreign[18:20] = (183 if foreign[18] == 62 else 62).to_bytes(2, "little")
    library.unlink()
    library.write_bytes(foreign)
    sshd.write_config(Path(sys.executable).parent, PYTHONPATH=packages.parent)
    sshd.stop()
    sshd.start()
    message = refused(sshd.uri)
    assert "ImportError" in message
    assert "built for another processor or system. Run there: `python -m pip install" in message


def onnxruntime_folder() -> str:
    """Return the folder of the package, without importing it."""
    return str(Path(importlib.util.find_spec("onnxruntime").origin).parent)


# -- commands ----------------------------------------------------------------------------------------------------------


def test_bench_compares_two_files_on_the_device(sshd, tmp_path):
    a_network(tmp_path / "m.onnx")
    a_network(tmp_path / "o.onnx", layers=6, width=256)
    command = ["bench", "m.onnx", "--target", write_quick_target(tmp_path), "--against", "o.onnx"]
    done = subprocess.run(
        [*IMPATIENT, *command, "--device", sshd.uri, "--json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["against"]["verdict"] == "faster"
    assert result["measurement"]["device"]["uri"] == sshd.uri
    assert result["measurement"]["device"]["kind"] == "measured"


def test_check_verifies_a_bundle_and_its_score_on_the_device(sshd, tmp_path):
    command = ["check", a_bundle(tmp_path).name, "--target", "./quick.toml", "--device", sshd.uri, "--json"]
    command += ["--score", write_scored_task(tmp_path, right=1820)]
    done = subprocess.run(
        [sys.executable, "-m", "edgeopt", *command], cwd=tmp_path, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["measurement"]["device"]["kind"] == "measured"
    assert (result["device"], result["score"]["score"]["value"]) == (sshd.uri, 0.91)
    statuses = {finding["name"]: finding["status"] for finding in result["findings"]}
    assert (statuses["y"], statuses["score"]) == ("passed", "passed")


def test_nodes_of_several_files_are_timed_on_the_device(device, tmp_path):
    models = [a_network(tmp_path / f"{width}.onnx", width=width) for width in (128, 32)]
    turns = ProfilingTurns(rounds=2, seconds=0.005)
    found = profile_nodes(models, a_run_target(device=device, batch_size=2), turns)
    assert [one.file for one in found] == [0, 1]
    assert all(node.ns > 0 for one in found for node in one.nodes)


def test_the_files_to_profile_are_sent(device, sshd, tmp_path):
    models = [a_network(tmp_path / f"{layers}.onnx", layers=layers) for layers in (2, 3)]
    request = msgspec.structs.replace(
        a_timing(tmp_path), mode="nodes", model=str(models[0]), models=tuple(map(str, models)), max_seconds=1.0
    )
    turns = device.run(request, 60, {})["turns"]
    assert {turn["model"] for turn in turns} == {0, 1}
    assert len(list((sshd.home / "cache" / "edgeopt").glob("*.onnx"))) == 2
