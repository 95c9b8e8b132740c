"""`edgeopt doctor` on this machine."""

import json
import os
import subprocess
import sys

import pytest

import edgeopt.cli.doctor
from edgeopt.cli.doctor import BF16_FEATURES, INT8_FEATURES
from edgeopt.device.local import LocalDevice
from edgeopt.errors import DeviceError


def doctor(*arguments, **variables):
    command = [sys.executable, "-m", "edgeopt", "doctor", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **variables})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def found():
    return json.loads(doctor("--json"))


def test_it_finds_the_machine_and_the_runtime(found):
    machine = found["environment"]
    assert machine["cores"] >= 1
    assert machine["memory_bytes"] > 0
    assert found["packages"]["onnxruntime"] == machine["onnxruntime"]
    assert "CPUExecutionProvider" in found["providers"]
    assert found["int8_instructions"] == [name for name in machine["features"] if name in INT8_FEATURES]
    assert found["bf16_instructions"] == [name for name in machine["features"] if name in BF16_FEATURES]
    assert found["load_average"] == pytest.approx(os.getloadavg()[0], abs=50)


def test_every_kind_of_device_is_listed(found):
    assert [route["kind"] for route in found["devices"]] == ["local", "ssh", "adb", "browser", "qemu"]


def test_a_missing_cuda_provider_is_reported_with_how_to_get_it(found):
    notes = [finding for finding in found["findings"] if "CUDA" in finding["what"]]
    assert bool(notes) == ("CUDAExecutionProvider" not in found["providers"])
    assert all("onnxruntime-gpu" in note["advice"] for note in notes)
    assert all("car-cuda and server-cuda are refused" in note["what"] for note in notes)


def test_a_plugin_that_is_installed_and_does_not_start_is_reported_with_the_reason(tmp_path):
    package = tmp_path / "onnxruntime_ep_broken"
    package.mkdir()
    names = "def get_ep_names(): return ['BrokenExecutionProvider']\n"
    (package / "__init__.py").write_text(names + "def get_library_path(): return __file__\n")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    found = json.loads(doctor("--json", PYTHONPATH=path))
    assert "BrokenExecutionProvider" in found["providers"]
    (note,) = [finding for finding in found["findings"] if "plug-in" in finding["what"]]
    assert note["what"].startswith("the plug-in BrokenExecutionProvider can't be loaded")
    assert "its package" in note["advice"]


def test_no_target_is_reported_as_refused_if_the_runtime_does_not_start(monkeypatch):
    def fail(self):
        raise DeviceError("onnxruntime does not start")

    monkeypatch.setattr(LocalDevice, "describe", fail)
    found = edgeopt.cli.doctor.diagnose()
    assert (found.environment, found.providers) == (None, ())
    assert not [finding for finding in found.findings if "refused" in finding.what]
    assert any("onnxruntime does not start" in finding.what for finding in found.findings)


def test_the_text_has_a_line_for_each_fact():
    lines = doctor().splitlines()
    for start in (
        "edgeopt ",
        "processor ",
        "int8 ",
        "bfloat16 ",
        "memory ",
        "system ",
        "onnxruntime ",
        "device ",
        "free disk ",
    ):
        assert any(line.startswith(start) for line in lines), start
