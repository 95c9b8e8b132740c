"""`edgeopt build` of an ONNX file, as a process that a test watches."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tiny_models import a_convolution, write_quick_target


def write_files(folder: Path) -> str:
    """Write the inputs of a build (the file, its data and the target) and return the target's path.

    It has few variants to measure: the file itself, int8, and float32 after simplification.
    """
    a_convolution(folder / "m.onnx")
    np.savez(folder / "in.npz", x=np.random.default_rng(0).standard_normal((64, 64, 8, 8)).astype(np.float32))
    return write_quick_target(folder, precisions='["int8", "fp32"]')


IMPATIENT = (
    sys.executable,
    "-c",
    "from edgeopt import statistics; statistics.MIN_PAIRS, statistics.LOOK_PAIRS = 2, (2,); "
    "from edgeopt.device import adb; adb.WAIT_SECONDS = 10.0; "
    "from edgeopt.cli import main; main()",
)
"""The command ``edgeopt``, but an A/B takes two pairs of processes, and a lost phone gets ten seconds to come back."""


def start_build(folder: Path, uri: str) -> subprocess.Popen:
    command = ["build", "m.onnx", "--data", "in.npz", "--target", "./quick.toml", "--device", uri]
    return subprocess.Popen(
        [*IMPATIENT, *command],
        cwd=folder,
        env=os.environ,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for_worker(process: subprocess.Popen, stage: str, is_running: Callable[[], object]) -> None:
    """Wait until the progress names a stage and a worker runs on the device."""
    for line in process.stderr:
        if line.startswith(stage):
            break
    else:
        raise AssertionError(f"the build ended without {stage}")
    while not is_running():
        time.sleep(0.02)


def run_build(folder: Path, uri: str) -> dict:
    """Run a build to its end, check its choice as for any build on a measuring device, and return it."""
    with start_build(folder, uri) as process:
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    choice = json.loads((folder / "edgeopt-out" / "choice.json").read_text())
    assert choice["device"]["uri"] == uri
    assert choice["device"]["kind"] == "measured"
    assert choice["proven_on_target"] is True
    assert {trial["status"] for trial in choice["trials"]} == {"measured"}
    assert {trial["parities"][-1]["stage"] for trial in choice["trials"]} == {"device"}
    return choice
