"""A target that is calibrated on another machine (OpenSSH on loopback), then estimated without it."""

import json
import os
import subprocess
import sys

import msgspec
import pytest
from tiny_models import a_network, write_quick_target

from edgeopt.bench.nodes import ProfilingTurns
from edgeopt.config.calibrations import calibration_path, read_calibration, write_calibration
from edgeopt.config.profiles import load_profile
from edgeopt.device.open import open_device
from edgeopt.latency.probe_models import calibration_models
from edgeopt.pipeline.device_calibration import calibrate_device
from edgeopt.records.profile import TimingRule

PROBES = ("empty", "matmul fp32 1x32x192", "elementwise fp32 1x64x28x28", "encoder fp32", "speech fp32", "mobile fp32")
RULE = TimingRule(processes=1, warmup_runs=1, warmup_seconds=0.0, min_runs=5, min_seconds=0.01, max_seconds=1.0)
TURNS = ProfilingTurns(rounds=2, seconds=0.01, min_runs=3, min_models=100)


def run_edgeopt(folder, *arguments):
    command = [sys.executable, "-m", "edgeopt", *arguments]
    return subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, timeout=300)


def test_a_calibration_over_ssh_estimates_without_the_device_until_it_no_longer_holds(sshd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = write_quick_target(tmp_path)
    a_network(tmp_path / "m.onnx", width=256)
    uncalibrated = run_edgeopt(tmp_path, "bench", "m.onnx", "--target", target, "--estimate")
    assert uncalibrated.returncode == 2
    assert "Make one with `edgeopt targets calibrate ./quick.toml --device URI`" in " ".join(
        uncalibrated.stderr.split()
    )

    models, messages = [m for m in calibration_models(("fp32",), quick=True) if m.name in PROBES], []
    found = calibrate_device(
        load_profile(target), open_device(sshd.uri), models, rule=RULE, turns=TURNS, sustained_seconds=None,
        allow_fallback=(), progress=messages.append,
    )  # fmt: skip
    assert {probe.name for probe in found.probes} == set(PROBES)
    assert found.device.uri == sshd.uri
    assert found.clock == "cpu"
    assert any(sshd.uri in text for text in messages)
    path = calibration_path(target)
    write_calibration(found, path)

    done = run_edgeopt(tmp_path, "bench", "m.onnx", "--target", target, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["estimate"]["device"]["uri"] == sshd.uri
    assert document["measurement"]["device"]["kind"] == "estimated"
    assert (
        document["latency_ms"]["limit_ci95"][0]
        < document["latency_ms"]["limit"]
        < document["latency_ms"]["limit_ci95"][1]
    )
    assert document["measurement"]["timings"]  # this host's own, raw

    old = msgspec.structs.replace(read_calibration(path), runtime=load_profile("server").runtime, target="other")
    write_calibration(old, path)
    done = run_edgeopt(tmp_path, "bench", "m.onnx", "--target", target, "--json")
    document = json.loads(done.stdout)
    assert document["estimate"] is None
    assert document["measurement"]["device"]["kind"] == "stand-in"
    assert "does not hold: it is for the target 'other'" in document["calibration_refused"]


@pytest.mark.slow
def test_the_command_finds_this_machine_as_fast_as_itself(sshd, tmp_path):
    target = write_quick_target(tmp_path)
    done = run_edgeopt(tmp_path, "targets", "calibrate", target, "--device", sshd.uri, "--quick", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["path"] == "quick.calibration.json"
    assert all(0.7 < row["ratio"] < 1.4 for row in document["classes"].values()), document["classes"]
    assert all(abs(row["error_ratio"]) < 0.3 for row in document["held_out"].values()), document["held_out"]
