import json
import os
import subprocess
import sys

import pytest

import edgeopt.cli.doctor
from edgeopt.cli.doctor import BF16, INT8


def doctor(*arguments, **variables):
    command = [sys.executable, "-m", "edgeopt", "doctor", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **variables})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def found():
    return json.loads(doctor("--json"))


def test_it_knows_the_machine_and_the_runtime(found):
    machine = found["environment"]
    assert machine["cores"] >= 1
    assert machine["memory_bytes"] > 0
    assert found["packages"]["onnxruntime"] == machine["onnxruntime"]
    assert "CPUExecutionProvider" in found["providers"]
    assert found["int8_instructions"] == [name for name in machine["features"] if name in INT8]
    assert found["bf16_instructions"] == [name for name in machine["features"] if name in BF16]
    assert found["load_average"] == pytest.approx(os.getloadavg()[0], abs=50)


def test_every_kind_of_device_is_among_them(found):
    assert [place["kind"] for place in found["devices"]] == ["local", "ssh", "adb", "browser", "qemu"]


def test_what_is_missing_for_cuda_is_said_with_how_to_get_it(found):
    notes = [finding for finding in found["findings"] if "CUDA" in finding["what"]]
    assert bool(notes) == ("CUDAExecutionProvider" not in found["providers"])
    assert all("onnxruntime-gpu" in note["advice"] for note in notes)
    assert all("car-cuda and server-cuda are refused" in note["what"] for note in notes)


def test_a_runtime_that_does_not_tell_its_providers_in_time_is_not_said_to_refuse_every_target(monkeypatch):
    monkeypatch.setattr(edgeopt.cli.doctor, "available_providers", tuple)
    found = edgeopt.cli.doctor.diagnose()
    assert found.environment is not None
    assert not [finding for finding in found.findings if "refused" in finding.what]


def test_people_read_it_line_by_line():
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
