"""The top level of the project is fixed: what libraries and tests leave there is not committed."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"edgeopt", "targets", "tests", "benchmarks", "tools"}
FILES = {"pyproject.toml", "README.md", "LICENSE", "constraints.txt", "CONTRIBUTING.md", "CHANGELOG.md"}


def test_nothing_else_lies_at_the_top_level():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a checkout with its history")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = {name.split("/")[0] for name in listed}
    assert {name for name in found if not name.startswith(".")} == FOLDERS | FILES
