"""A whole build from the code of a guide."""

import json
import subprocess
import sys

import pytest
from guide_code import guide_project


@pytest.mark.slow
def test_a_build_of_the_detector_ends_with_a_bundle(tmp_path):
    with guide_project("detection", tmp_path, my_detector="detector"):
        import my_detector

        my_detector.train()
        command = [sys.executable, "-m", "edgeopt", "build", "my_task.py:task", "--target", "phone", "--quick"]
        done = subprocess.run(
            [*command, "--max-drop", "0.2", "--yes"], capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stderr
        choice = json.loads((tmp_path / "edgeopt-out" / "choice.json").read_text("utf-8"))
        assert choice["winner"]["size_bytes"] < choice["baseline"]["size_bytes"]
