"""`edgeopt build` of a given file on a device whose connection breaks."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from ssh_server import workers_of
from tiny_models import a_network, write_quick_target


def a_build(folder: Path, uri: str) -> subprocess.Popen:
    command = ["build", "m.onnx", "--data", "in.npz", "--target", "./quick.toml", "--device", uri]
    return subprocess.Popen(
        [sys.executable, "-m", "edgeopt", *command],
        cwd=folder,
        env=os.environ,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for_worker(process: subprocess.Popen, stage: str, sshd) -> None:
    """Wait until the progress names a stage and a worker runs over there."""
    for line in process.stderr:
        if line.startswith(stage):
            break
    else:
        raise AssertionError(f"the build ended without {stage}")
    while not workers_of(sshd):
        time.sleep(0.02)


def test_a_build_survives_broken_connections_and_resumes_where_the_device_did_not_come_back(sshd, tmp_path):
    write_quick_target(tmp_path)
    a_network(tmp_path / "m.onnx", width=256, layers=3)
    np.savez(tmp_path / "in.npz", x=np.random.default_rng(0).standard_normal((256, 32)).astype(np.float32))
    with a_build(tmp_path, sshd.uri) as process:
        wait_for_worker(process, "measure", sshd)
        sshd.cut()
        wait_for_worker(process, "measure", sshd)
        authorized = (sshd.folder / "authorized_keys").read_text()
        (sshd.folder / "authorized_keys").write_text("")
        sshd.cut()
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "the login was refused" in stderr
    assert "Finished trials are kept: run the same command again" in stderr
    assert not (tmp_path / "edgeopt-out").exists()

    (sshd.folder / "authorized_keys").write_text(authorized)
    with a_build(tmp_path, sshd.uri) as process:
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    choice = json.loads((tmp_path / "edgeopt-out" / "choice.json").read_text())
    assert choice["device"]["uri"] == sshd.uri
    assert choice["device"]["kind"] == "measured"
    assert choice["proven_on_target"] is True
    assert {trial["status"] for trial in choice["trials"]} == {"measured"}
    assert {trial["parities"][-1]["stage"] for trial in choice["trials"]} == {"device"}
    assert "quantize" in {step["step"] for step in choice["winner"]["recipe"]["graph_steps"]}
