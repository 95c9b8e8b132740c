"""Helpers of the end-to-end tests: run the command, write a target with short timings, read choice.json."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
TASK = f"{TESTS / 'tiny_task.py'}:task"
QUICK_TIMING = {
    "processes": "2",
    "warmup_runs": "3",
    "warmup_seconds": "0.02",
    "min_runs": "20",
    "min_seconds": "0.05",
    "max_seconds": "2.0",
}


def edgeopt(folder, *arguments, **variables):
    """Run the command in ``folder`` and return the finished process."""
    return subprocess.run(
        [sys.executable, "-m", "edgeopt", *map(str, arguments)],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def write_target(path, **values):
    """Write the phone's profile with short timings and the given values."""
    text = (TESTS.parent / "targets" / "phone.toml").read_text()
    for name, value in (QUICK_TIMING | {"name": f'"{path.stem}"', "max_score_drop": "0.2"} | values).items():
        text, count = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
        assert count == 1, name
    path.write_text(text)


def choice_of(folder, out="edgeopt-out"):
    return json.loads((folder / out / "choice.json").read_text())
