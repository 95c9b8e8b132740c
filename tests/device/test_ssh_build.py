"""`edgeopt build` on a device behind a connection that breaks."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from conftest import workers_of
from tiny_models import write_quick_target

TASK = f"{Path(__file__).parents[1] / 'tiny_task.py'}:task"


def a_build(folder: Path, uri: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "edgeopt", "build", TASK, "--target", "./quick.toml", "--device", uri, "--quick"]
    return subprocess.Popen(
        command, cwd=folder, env=os.environ, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def wait_for_stage(process: subprocess.Popen, stage: str) -> str:
    """Read the progress until a line has ``stage``."""
    for line in process.stderr:
        if stage in line:
            return line
    raise AssertionError(f"the build ended without {stage}")


def test_a_build_survives_a_connection_that_breaks_and_resumes_where_the_device_stayed_away(sshd, tmp_path):
    write_quick_target(tmp_path)
    with a_build(tmp_path, sshd.uri) as process:
        wait_for_stage(process, "train")
        while not workers_of(sshd):
            time.sleep(0.02)
        sshd.cut()
        stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    choice = json.loads((tmp_path / "edgeopt-out" / "choice.json").read_text())
    assert choice["device"]["kind"] == "measured"
    assert choice["proven_on_target"] is True
    assert {trial["status"] for trial in choice["trials"]} == {"measured"}
    assert "quantize" in {step["step"] for step in choice["winner"]["recipe"]["graph_steps"]}
