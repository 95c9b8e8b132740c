import json
import os
import subprocess
import sys

import pytest

from edgeopt.cli.doctor import INT8

PROGRAMS = ("ssh", "adb")


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
    assert found["load_average"] == pytest.approx(os.getloadavg()[0], abs=50)


def test_what_is_missing_for_cuda_is_said_with_how_to_get_it(found):
    notes = [finding for finding in found["findings"] if "CUDA" in finding["what"]]
    assert bool(notes) == ("CUDAExecutionProvider" not in found["providers"])
    assert all("onnxruntime-gpu" in note["advice"] for note in notes)


def test_a_device_whose_program_is_there_is_ready_and_another_says_what_to_install(tmp_path):
    for name in PROGRAMS:
        program = tmp_path / name
        program.write_text("#!/bin/sh\nexit 1\n")
        program.chmod(0o755)
    ready = json.loads(doctor("--json", PATH=str(tmp_path)))["devices"]
    missing = json.loads(doctor("--json", PATH=""))["devices"]
    assert [place["kind"] for place in ready] == ["local", "ssh", "adb", "browser"]
    assert all(place["ready"] for place in ready)
    assert [place["kind"] for place in missing if not place["ready"]] == list(PROGRAMS)
    assert all("apt-get install" in place["advice"] for place in missing if not place["ready"])


def test_people_read_it_line_by_line():
    lines = doctor().splitlines()
    for start in ("edgeopt ", "processor ", "int8 ", "memory ", "system ", "onnxruntime ", "device ", "free disk "):
        assert any(line.startswith(start) for line in lines), start
